"""Greedy verification: keeps the tokens that the target's argmax would have written."""

from __future__ import annotations

from ..decoding.sampling import LogitsPipeline
from ..errors import MMSpecError
from .rules import Match
from .walk import TreeWalk


class Greedy(TreeWalk):
    """Lossless at temperature 0: the emitted ids are those of `model.generate(do_sample=False)`."""

    def __init__(self) -> None:
        super().__init__(Match())

    def check_sampling(self, pipeline: LogitsPipeline) -> None:
        """Refuse a temperature above 0."""
        if not pipeline.greedy:
            raise MMSpecError(
                f"Greedy verifies at temperature 0 only, not {pipeline.temperature}; "
                "use PointMassSampling or RejectionSampling"
            )
