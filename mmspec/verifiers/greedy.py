"""Greedy verification: keep what the target's argmax would have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..sampling import LogitsPipeline
from ..tree import DraftTree
from .base import Verifier, follow

if TYPE_CHECKING:
    from ..target import Context


class Greedy(Verifier):
    """Lossless at temperature 0: the emitted ids are those of `model.generate(do_sample=False)`."""

    @property
    def lossless(self) -> bool:
        return True

    def check(self, pipeline: LogitsPipeline) -> None:
        if not pipeline.greedy:
            raise MMSpecError(
                f"Greedy verifies at temperature 0 only, not {pipeline.temperature}; "
                "use PointMassSampling or RejectionSampling"
            )

    def first_token(self, context: Context) -> Tensor:
        return self.processed_first(context).argmax(-1)

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        return follow(tree, self.processed(tree, scores).argmax(-1))
