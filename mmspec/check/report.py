"""The result of a self-check: one comparison a line, and what was not checked."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import MMSpecError
from ..models.model import Model

TOLERANCE = {torch.float32: 3e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""The largest error of a logit that rounding may cause, in standard deviations of the logits [OUR]. A wrong mask or a
wrong position costs some tenths to several."""


@dataclass
class Finding:
    """The result of one comparison.

    Args:
        what: name of what is compared.
        error: the largest difference of any logit.
        spread: standard deviation of the logits.
        dtype: the dtype that the target computes in.
    """

    what: str
    error: float
    spread: float
    dtype: torch.dtype

    @property
    def relative(self) -> float:
        """The error in standard deviations of the logits."""
        return self.error / self.spread if self.spread else float(self.error > 0)

    @property
    def ok(self) -> bool:
        """True if rounding explains the error."""
        return self.relative <= TOLERANCE.get(self.dtype, TOLERANCE[torch.bfloat16])


@dataclass
class CheckReport:
    """All comparisons of a self-check.

    Args:
        findings: all comparisons.
        notes: sentences about what was not checked, and why.
        kinds: kinds of the media that were shown: `"image"`, `"video"`, `"audio"`.
    """

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """True if rounding explains all errors."""
        return all(finding.ok for finding in self.findings)

    def raise_if_wrong(self, target: Model) -> None:
        """Refuse the target if anything is wrong.

        Raises:
            MMSpecError: if anything differs by more than rounding.
        """
        wrong = [f"{f.what} by {f.relative:.2g} standard deviations" for f in self.findings if not f.ok]
        if wrong:
            raise MMSpecError(
                f"{type(target.model).__name__} does not pass the self-check: its logits differ from those of its own "
                f"generate, {'; '.join(wrong)}. It would write wrong tokens, so it is refused. It may need a family of "
                "its own in mmspec/families, which is one small file; `python -m mmspec.check MODEL` shows all"
            )

    def __str__(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"{f.what:<{width}}  {f.relative:9.2e}  {'ok' if f.ok else 'WRONG'}" for f in self.findings]
        return "\n".join([f"{'error in standard deviations':>{width + 11}}", *lines, *self.notes])
