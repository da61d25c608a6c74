"""Sampling with deterministic drafts: the target draws, and the draft is kept where it guessed the draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..sampling import LogitsPipeline, NoiseTape
from ..tree import DraftTree
from .base import Verifier, follow

if TYPE_CHECKING:
    from ..target import Context


class PointMassSampling(Verifier):
    """Lossless sampling for trees that are a deterministic function of the past (top-k children, look-up).

    EAGLE-2 (arXiv 2406.16858) tries the children of a node in turn, accepts x with probability p(x), and after a
    refusal sets p(x) to zero and renormalises; child x is then chosen with probability p(x) whatever the order. Drawing
    one token from p and following the child that equals it has the same law and needs one draw per node, all in
    parallel; this is what is done here. The draws are tied to positions (see `NoiseTape`): with the same seed every
    drafter, and no drafter, gives the same text.

    The noise of a row is that of its number in the batch. So equal prompts in a batch give independent samples, and the
    first row's text is that of its prompt alone; but a prompt in another row samples another text than it does alone
    with the same seed.
    """

    @property
    def lossless(self) -> bool:
        return True

    def check(self, pipeline: LogitsPipeline) -> None:
        if pipeline.greedy:
            raise MMSpecError(f"{type(self).__name__} samples: give temperature= above 0, or use Greedy")

    def start(self, seed: int) -> None:
        logits = self.context.logits
        self.noise = NoiseTape(logits.shape[0], logits.shape[-1], seed, logits.device)

    def first_token(self, context: Context) -> Tensor:
        token = (self.processed_first(context) + self.noise.peek(1)[:, 0]).argmax(-1)
        self.noise.consume([1] * len(token))
        return token

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        if tree.proposal != "point":
            raise MMSpecError(
                f"{type(self).__name__} needs point proposals, the tree was sampled; use RejectionSampling"
            )
        noise = self.noise.peek(tree.max_depth + 1)
        depth = tree.depth[..., None].expand(-1, -1, noise.shape[-1])
        verdict = follow(tree, (self.processed(tree, scores) + noise.gather(1, depth)).argmax(-1))
        self.noise.consume(verdict.length.tolist())
        return verdict
