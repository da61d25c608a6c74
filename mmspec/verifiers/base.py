"""Base class of verifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from torch import Tensor

from ..decoding.sampling import LogitsPipeline
from ..outcome import Scores, Verdict
from ..per_request import PerRequest
from ..settings.calls import Named
from ..tree import DraftTree

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class Verifier(Named, PerRequest):
    """Decides how much of a tree is kept. One instance serves any number of requests: `fork_for` gives each request its
    own state.

    Subclasses implement `first_token` and `verify`, and state in `lossless` whether the emitted text follows the
    target's own distribution; that must follow from their parameters.
    """

    context: Context
    """The request that a copy serves."""
    pipeline: LogitsPipeline
    """The request's logits pipeline."""

    @property
    def proposal(self) -> str:
        """The way in which drafters should choose children: `"point"` (the likeliest) or `"sampled"` (drawn, with their
        q)."""
        return "point"

    @property
    def lossless(self) -> bool:
        """True if the emitted text follows the target's own distribution."""
        raise NotImplementedError

    def fork_for(self, context: Context, pipeline: LogitsPipeline, seed: int) -> Self:
        """Return a copy for one request, ready to verify."""
        verifier = self.fork()
        verifier.context, verifier.pipeline = context, pipeline
        verifier.start(seed)
        return verifier

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        """Return the states of the target that the verifier looks at, see `Drafter.feature_layers`."""
        return ()

    def start(self, seed: int) -> None:
        """Set up the state of a request; `self.context` and `self.pipeline` are set already."""

    def check(self, target: Target, pipeline: LogitsPipeline) -> None:
        """Refuse a request that this verifier cannot serve, before anything is run.

        Raises:
            MMSpecError: for example for a temperature that does not fit, or a target that lacks what the verifier
                needs.
        """
        self.check_sampling(pipeline)

    def check_sampling(self, pipeline: LogitsPipeline) -> None:
        """Refuse sampling settings that do not fit: the part of `check` that needs no target, so that it can run before
        one is loaded."""

    def proposal_under(self, pipeline: LogitsPipeline) -> str:
        """Return how drafters should choose children in a request with these settings, see `proposal`."""
        return self.proposal

    def first_token(self, context: Context) -> Tensor:
        """Return the first root, `[batch]`, from the logits after the prompt."""
        raise NotImplementedError

    @property
    def may_settle(self) -> bool:
        """True if `skim` may settle a round. The drafter must then be able to continue without the target's scores."""
        return False

    def skim(self, tree: DraftTree) -> Verdict | None:
        """Settle a round without the target, or return None to have the tree scored and verified.

        The verdict must be `settled`; the target reads the emitted tokens in its next pass.
        """
        return None

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Return the accepted path of each row and its bonus token."""
        raise NotImplementedError

    def processed(self, tree: DraftTree, scores: Scores) -> Tensor:
        """Return the scores after the logits pipeline, `[batch, nodes, vocab]`, each node judged with its own prefix.

        They are computed once and stay on `scores`, where drafters may read them and p (`Scores.p`).
        """
        if scores.processed is None:
            scores.processed = self.pipeline(scores.logits, lambda: node_prefixes(self.context.history, tree))
            scores.greedy = self.pipeline.greedy
        return scores.processed

    def processed_first(self, context: Context) -> Tensor:
        """Return the scores of the first token after the logits pipeline, `[batch, vocab]`."""
        return self.pipeline(context.logits[:, None], lambda: [[ids] for ids in context.history], first=True)[:, 0]


def node_prefixes(history: list[list[int]], tree: DraftTree) -> list[list[list[int]]]:
    """Return, per row and node, the tokens of the sequence up to and including that node. The root ends the history."""
    rows = []
    for past, tokens, parents in zip(history, tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        prefixes = [past]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            prefixes.append([*prefixes[parent], token])
        rows.append(prefixes)
    return rows
