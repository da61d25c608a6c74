"""Speculative sampling: drafts are drawn from q and kept with probability min(1, p/q)."""

from __future__ import annotations

from ..decoding.sampling import LogitsPipeline
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .point_mass import refuse_greedy
from .rules import Match, Rejection
from .walk import TreeWalk


class RejectionSampling(TreeWalk):
    """Multi-round rejection sampling over a tree whose siblings were drawn without replacement.

    At a node with target distribution p and draft distribution q, the children are tried in the order of their draw:
    child x is accepted with probability min(1, p(x) / q(x)); after a refusal p becomes norm(max(p - q, 0)), x is struck
    from q and q is renormalised. If no child is accepted the bonus is drawn from what is left of p. With one child per
    node this is Leviathan et al. (arXiv 2211.17192, algorithm 1); with several, the recursive scheme of SpecInfer
    (arXiv 2305.09781) in its without-replacement form, which EAGLE-1 uses. Lossless if the shape of the tree does not
    depend on which tokens were drawn; builders that choose nodes by their tokens refuse to draw (see
    `TreeBuilder.value_independent`). Trees of point proposals (look-up drafters) are verified as by
    `PointMassSampling`, which is the limit of the same rule.
    """

    def __init__(self) -> None:
        super().__init__(Rejection())

    def check_sampling(self, pipeline: LogitsPipeline) -> None:
        """Refuse temperature 0."""
        refuse_greedy(self, pipeline)

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Return the accepted path; a tree of point proposals is verified as by `PointMassSampling`."""
        if tree.proposal == "point":
            return self._by_choice(Match(), tree, scores)
        return super().verify(tree, scores)
