"""Sampling with deterministic drafts: the target draws, and a drafted token is kept where it equals the draw."""

from __future__ import annotations

from ..decoding.sampling import LogitsPipeline
from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .rules import Match
from .walk import TreeWalk


def refuse_greedy(verifier: TreeWalk, pipeline: LogitsPipeline) -> None:
    """Refuse temperature 0 for a verifier that samples."""
    if pipeline.greedy:
        raise MMSpecError(f"{type(verifier).__name__} samples: give temperature= above 0, or use Greedy")


class PointMassSampling(TreeWalk):
    """Lossless sampling for trees that are a deterministic function of the past (top-k children, look-up).

    EAGLE-2 (arXiv 2406.16858) tries the children of a node in turn, accepts x with probability p(x), and after a
    refusal sets p(x) to zero and renormalises; child x is then chosen with probability p(x) whatever the order. Drawing
    one token from p and following the child that equals it has the same law and needs one draw per node, all in
    parallel; this is what is done here. The draws are tied to positions (see `NoiseTape`): with the same seed every
    drafter, and no drafter, gives the same text.

    The noise of a row depends on its number in the batch. So equal prompts in a batch give independent samples, and the
    first row's text is that of its prompt alone; but a prompt in another row samples another text than it does alone
    with the same seed.
    """

    def __init__(self) -> None:
        super().__init__(Match())

    def check_sampling(self, pipeline: LogitsPipeline) -> None:
        """Refuse temperature 0."""
        refuse_greedy(self, pipeline)

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Return the path on which every token equals the target's draw."""
        if tree.proposal != "point":
            raise MMSpecError(
                f"{type(self).__name__} needs point proposals, the tree was sampled; use RejectionSampling"
            )
        return super().verify(tree, scores)
