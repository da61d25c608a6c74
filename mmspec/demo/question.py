"""A question to the page, and the checks before any work is done for it.

The values of a page come over the network: a sender may put anything in place of a text or a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import MMSpecError, cut, shown
from .limits import PageLimits

LARGEST_SEED = 2**63
WORDS = 60
"""Number of characters of a wrong value that an error repeats."""


@dataclass(frozen=True)
class PageQuestion:
    """A question to the page.

    Args:
        prompt: text of the question.
        image: path of a picture, or None.
        chosen: names of groups with the chosen options.
        temperature, max_new_tokens, seed: see `mmspec.stream`.
        image_name: name of the picture's file on the visitor's machine.
    """

    prompt: str
    image: str | None
    chosen: Mapping[str, str]
    temperature: float = 0.0
    max_new_tokens: int = 128
    seed: int = 0
    image_name: str | None = None

    def check(self, limits: PageLimits) -> None:
        """Refuse values of a wrong type or beyond the limits. `Choices.check` checks the chosen options.

        Raises:
            MMSpecError: naming the field, its value and what may stand there.
        """
        if not isinstance(self.prompt, str):
            raise MMSpecError(f"the question must be text, not {shown(self.prompt, WORDS)}")
        if len(self.prompt) > limits.characters:
            raise MMSpecError(
                f"the question has {len(self.prompt)} characters, but this page takes {limits.characters} at most: "
                f"shorten it, or start the page with a larger characters= than {limits.characters}"
            )
        for name, value in (("image", self.image), ("image name", self.image_name)):
            if value is not None and not isinstance(value, str):
                raise MMSpecError(f"the {name} must be text, not {shown(value, WORDS)}: drop the picture again")
        for name in ("temperature", "max_new_tokens", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_small(value)):
                raise MMSpecError(f"{name}={shown(value, WORDS)} is no number")
        if abs(self.seed) >= LARGEST_SEED:
            raise MMSpecError(f"seed={cut(f'{self.seed}', WORDS)} is out of range: it must be below {LARGEST_SEED}")
        if self.max_new_tokens > limits.longest:
            raise MMSpecError(
                f"max_new_tokens={shown(self.max_new_tokens, WORDS)} is more than this page answers: ask for "
                f"{limits.longest} at most, or start the page with a larger longest="
            )


def _small(value: float) -> float:
    """Return a number as a float, and infinity for one that is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
