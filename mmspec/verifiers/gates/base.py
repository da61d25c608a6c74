"""Base class of gates, and the verifier that settles rounds without the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...decoding.sampling import LogitsPipeline
from ...outcome import Scores, Verdict
from ...per_request import PerRequest
from ...settings.arguments import instance
from ...settings.calls import Named
from ...tree import DraftTree
from ..base import Verifier

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target


class Gate(Named, PerRequest):
    """Decides whether the target is asked about a draft.

    A subclass implements `settle`. It keeps what it learns in attributes: every request works on a copy.
    """

    @property
    def lossless(self) -> bool:
        """True if the gate never settles a round. This follows from the parameters."""
        raise NotImplementedError

    def settle(self, tree: DraftTree, context: Context) -> Tensor | None:
        """Choose what is emitted of a draft without asking the target.

        Args:
            tree: the draft.
            context: the request; `context.pending` is the number of tokens of each row that the target has not read.

        Returns:
            `[batch]` the nodes at which the emitted paths end, or None to ask the target. A row that has not ended must
                emit something: where a path is the root alone, the target is asked.
        """
        raise NotImplementedError

    def observe(self, tree: DraftTree, verdict: Verdict) -> None:
        """Update the gate's state from a round that the target was asked about."""


class Gated(Verifier):
    """A verifier behind a gate. Where the gate settles a round, the target does not read it at once; it reads the
    emitted tokens in its next pass, and judges what comes after them.

    NOT lossless, unless the gate never settles a round. The drafter must be able to continue without the target's
    hidden states.

    Args:
        inner: verifier of the rounds that the gate does not settle.
        gate: decides which rounds are settled without the target.

    Raises:
        MMSpecError: for objects of other classes.
    """

    def __init__(self, inner: Verifier, gate: Gate):
        self.inner = instance(self, Verifier, "Greedy()", inner=inner)
        self.gate = instance(self, Gate, "Every(rounds=5)", gate=gate)

    @property
    def lossless(self) -> bool:
        """True if both the gate and the inner verifier are lossless."""
        return self.inner.lossless and self.gate.lossless

    @property
    def proposal(self) -> str:
        """The way in which the inner verifier wants children to be chosen."""
        return self.inner.proposal

    @property
    def may_settle(self) -> bool:
        """True unless the gate never settles a round."""
        return not self.gate.lossless

    def proposal_under(self, pipeline: LogitsPipeline) -> str:
        """Return how the inner verifier wants children to be chosen."""
        return self.inner.proposal_under(pipeline)

    def check(self, target: Target, pipeline: LogitsPipeline) -> None:
        """Refuse a request that the inner verifier cannot serve."""
        self.inner.check(target, pipeline)

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        """Return the states that the inner verifier looks at."""
        return self.inner.feature_layers(target)

    def start(self, seed: int) -> None:
        """Start the inner verifier."""
        self.inner.context, self.inner.pipeline = self.context, self.pipeline
        self.inner.start(seed)

    def first_token(self, context: Context) -> Tensor:
        """Return the inner verifier's first token."""
        return self.inner.first_token(context)

    def skim(self, tree: DraftTree) -> Verdict | None:
        """Settle the round if the gate chooses to."""
        nothing = tree.num_nodes == 1  # a tree builder may let its drafter rest
        ends = None if nothing or not self.may_settle else self.gate.settle(tree, self.context)
        if ends is None:
            return None
        active = torch.tensor(self.context.active, device=ends.device)
        if (active & (ends == 0)).any():
            return None
        path, length = tree.path_to(ends)
        return Verdict(path, length, tree.tokens.gather(1, ends[:, None])[:, 0], settled=True)

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Return the inner verifier's verdict, and update the gate."""
        verdict = self.inner.verify(tree, scores)
        self.gate.observe(tree, verdict)
        return verdict
