"""Best-first trees: of all trees with so many nodes, the one that the drafter thinks is accepted farthest."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings.arguments import positive
from ..tree import DraftTree
from .base import TreeBuilder
from .candidates import cleaned
from .growth import Growth
from .marginal_paths import likeliest


@dataclass(eq=False)
class BestFirstTree(TreeBuilder):
    """The `budget` likeliest paths of the drafter (DDTree, arXiv 2604.12989; GLANCE, arXiv 2609.00355).

    A path is as likely as the product of its tokens' probabilities under the drafter, and never likelier than what it
    begins with: the likeliest paths are a tree. If the drafter were right about the target, the sum of these
    probabilities would be the mean number of accepted tokens, and no other tree of that size has a larger one. So width
    and depth need no setting: the tree is a chain where the drafter is sure.

    **Marginals.** From a drafter whose levels do not depend on each other (`Drafter.independent`: Medusa, block
    drafters without a Markov head) the tree comes from one pass, exact, in about 25 operations whatever the budget
    (`mmspec.trees.marginal_paths`). With `top_k=8` it is the tree of GLANCE.

    **Other drafters.** The levels are drafted one after the other, each with all nodes that can still have a child in
    the tree: those among the `budget - 1` likeliest so far. That is exact too, down to `depth` levels. `DynamicTree`,
    which expands `top_k` nodes a level, costs less; what is exact pays where levels are cheap
    (`Drafter.cheap_levels`). The host reads one number per row and level.

    Of equally likely paths the shallower comes first. Guesses from logits that are no distribution are the last ones
    taken from marginals, and left out otherwise.

    Lossless with point proposals. It picks nodes by their probability, so children cannot be drawn from q.

    Args:
        budget: drafted nodes, the root not counted.
        top_k: children per node at most; None for as many as the budget allows.
        tempered: True to take the probabilities at the request's temperature, False as the drafter gives them. The law
            of the text is the target's either way.
        depth: levels of drafted nodes at most, which are passes of drafters that are not `independent`.

    Raises:
        MMSpecError: for a size that is not a positive integer, or a switch that is none.
    """

    value_independent = False

    budget: int = 32
    top_k: int | None = None
    tempered: bool = False
    depth: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None:
            positive(self, top_k=self.top_k)

    @property
    def max_nodes(self) -> int:
        """The number of drafted nodes."""
        return self.budget

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree from the marginals of one pass, or level by level."""
        if self.tempered:
            growth.temper()
        depth, count = growth.limit_depth(self.depth), min(self.budget, self.top_k or self.budget)
        if growth.independent:
            levels = growth.marginals(depth, count)
            return growth.graft(levels, likeliest(cleaned(levels.log_probs()), self.budget))
        newest = growth.expand(growth.root, count)
        for _ in range(depth - 1):
            # A child comes behind its parent and all that come before that one.
            scores = growth.path_log_probs[:, 1:]
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.budget - 1] + 1
            fertile = (best >= newest[:, :1]) & scores.gather(1, best - 1).isfinite()
            width = int(fertile.sum(-1).max())
            if not width:
                break
            # As many as the row with the most; another one expands nodes too whose children it will not keep.
            order = growth.newest_path_log_probs.sort(dim=1, descending=True, stable=True).indices
            places = order[:, :width]
            newest = growth.expand(newest.gather(1, places), count, places)
        return growth.keep_likeliest(self.budget, growth.path_log_probs.isfinite())
