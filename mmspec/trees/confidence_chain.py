"""The confidence chain: it ends where the drafter's confidence says that the next guess is not worth its cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from ..errors import MMSpecError
from ..settings.arguments import number, positive
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth


@dataclass(eq=False)
class ConfidenceChain(TreeBuilder):
    """A chain that goes on while the drafter's confidence in the whole chain is high enough.

    **A drafter that estimates its confidence** (`StepDrafter.confidence`: DSpark's head, arXiv 2607.05147) says, before
    each guess, with which probability that guess will be accepted if all before it are. The product of these estimates
    is the chance that the chain survives so far, and the chain ends before the first guess with which it falls below
    the threshold. Each row of a batch has a chain of its own. Such drafters have cheap levels: the whole chain is
    drafted and then cut, for which the host reads one table. With `total`, the guesses of largest survival among all
    rows are kept, so many together (the paper's algorithm 1). The released code compares each estimate with a
    threshold, not the product [OUR].

    **Every other drafter** has the probabilities of its tokens. Transformers' assisted generation stops where a single
    one falls below a threshold (`assistant_confidence_threshold`), and EAGLE-2 (arXiv 2406.16858) shows that the
    product along a path is close to the chance that the path is accepted. Here the product decides [OUR]: the chain
    ends behind the guess with which it falls below the threshold. All rows of a batch have chains of the same length:
    it goes on while the mean product of the rows is high enough. The host reads one number per row and level.

    The mean number of accepted tokens per cost is largest for a threshold of (cost of one more level) / (seconds per
    emitted token): from about 0.3 for cheap drafters to 0.6 for dear ones. `mmspec.speed.AutoTree` works it out for the
    machine and the text.

    Lossless with any verifier, and children may be drawn: whether a token is drafted depends on the tokens before it,
    never on its own. A chain that drops a token for what it is would bias the law.

    Args:
        threshold: the product below which no further token is drafted, from 0 to 1.
        max_length: tokens drafted per round at most.
        total: tokens drafted per round in all rows together at most, for drafters that estimate their confidence; None
            for no such limit. Without it one token at least is drafted in every row.

    Raises:
        MMSpecError: if a size is not positive, or the threshold no probability.
    """

    threshold: float = 0.4
    max_length: int = 16
    total: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, lowest=0, highest=1, threshold=self.threshold)
        if self.total is not None:
            positive(self, total=self.total)

    @property
    def max_nodes(self) -> int:
        """The largest number of drafted nodes."""
        return self.max_length

    def build(self, growth: Growth) -> DraftTree:
        """Draft one token after the other, as long as the drafter is sure enough."""
        reached = [1.0] * len(growth.root)

        def go_on(probabilities: list[float]) -> bool:
            if self.total is not None:
                raise MMSpecError(
                    f"ConfidenceChain: total={self.total} shares out tokens by the drafter's own estimates, and "
                    f"{type(growth.drafter).__name__} makes none; leave total=null"
                )
            reached[:] = [before * now for before, now in zip(reached, probabilities, strict=True)]
            return sum(reached) >= self.threshold * len(reached)

        return growth.chain(self.max_length, go_on, self._lengths)

    def _lengths(self, estimates: list[list[float]]) -> list[int]:
        """Return the length of each row's chain, from the estimates of its guesses."""
        survival = [list(accumulate(row, mul)) for row in estimates]
        lengths = [max(1, sum(chance >= self.threshold for chance in row)) for row in survival]
        if self.total is None:
            return lengths
        slots = [(survival[row][level], -level, -row) for row, kept in enumerate(lengths) for level in range(kept)]
        admitted = [-row for *_, row in sorted(slots, reverse=True)[: self.total]]
        return [admitted.count(row) for row in range(len(lengths))]
