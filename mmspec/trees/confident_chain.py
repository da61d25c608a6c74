"""The confident chain: it ends where the drafter's own probabilities say that the next guess is not worth its cost."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings.arguments import number
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth


@dataclass(eq=False)
class ConfidentChain(TreeBuilder):
    """A chain that goes on while the drafter's probability of the whole chain so far is high enough.

    Transformers' assisted generation stops where a single token's probability falls below a threshold
    (`assistant_confidence_threshold`), and EAGLE-2 (arXiv 2406.16858) shows that the product along a path is close to
    the chance that the path is accepted. Here the product decides [OUR]. The mean number of accepted tokens per cost is
    largest for a threshold of (cost of one more level) / (seconds per emitted token): from about 0.3 for cheap drafters
    to 0.6 for dear ones. `mmspec.speed.AutoTree` works it out for the machine and the text.

    All rows of a batch have chains of the same length: it goes on while the mean product of the rows is high enough.
    The host reads one number per row and level.

    Lossless with any verifier, and children may be drawn: whether a level is drafted depends on the tokens before it,
    never on its own.

    Args:
        threshold: the mean product of probabilities below which no further token is drafted, from 0 to 1.
        max_length: tokens drafted per round at most.

    Raises:
        MMSpecError: if the length is not positive, or the threshold no probability.
    """

    threshold: float = 0.4
    max_length: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, lowest=0, highest=1, threshold=self.threshold)

    @property
    def max_nodes(self) -> int:
        """The largest number of drafted nodes."""
        return self.max_length

    def build(self, growth: Growth) -> DraftTree:
        """Draft one token after the other, as long as the drafter is sure enough."""
        reached = [1.0] * len(growth.root)

        def go_on(probabilities: list[float]) -> bool:
            reached[:] = [before * now for before, now in zip(reached, probabilities, strict=True)]
            return sum(reached) >= self.threshold * len(reached)

        return growth.chain(self.max_length, go_on)
