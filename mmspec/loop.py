"""The loop: draft, skim, score, verify, commit, observe. The only one; it knows no method and no family by name."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .anticipation import score_while
from .drafters import Drafter, NoDrafter
from .inputs import Request
from .sampling import LogitsPipeline, random_stream
from .seeing.trace import Trace
from .stats import PhaseClock
from .stopping import Stopping
from .target import Target
from .transcript import Piece, Transcript
from .tree import DraftTree
from .trees import Proposals
from .verifiers import Verifier
from .wellformed import refuse_malformed


class Run:
    """One call of `generate`: a request on its way through the loop.

    Args:
        target: the model whose output is preserved.
        drafter: a fork for this request, or None for `NoDrafter`.
        verifier: what is forked for this request.
        pipeline: of the logits.
        request: the prompt.
        stopping: what ends a row.
        seed: of all draws.
        trace: whether to keep the trees.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        verifier: Verifier,
        pipeline: LogitsPipeline,
        request: Request,
        stopping: Stopping,
        seed: int,
        trace: bool = False,
    ):
        self.target, self.drafter, self.verifier = target, drafter or NoDrafter(target), verifier
        self.pipeline, self.request, self.stopping, self.seed = pipeline, request, stopping, seed
        self.trace = Trace(target.tokenizer) if trace else None
        cuda = target.device.type == "cuda"
        self.clock = PhaseClock(torch.cuda.synchronize if cuda else None)

    def rounds(self) -> Iterator[list[Piece]]:
        """What the prompt's pass and then every round add, until all rows have ended."""
        yield self.prefill()
        while any(self.context.active):
            self.clock.resume()
            yield self.round()

    @torch.inference_mode()
    def prefill(self) -> list[Piece]:
        """Read the prompt; emit the first token of every row."""
        clock, drafter, request = self.clock, self.drafter, self.request
        clock.resume()
        vision = self.target.encode(request)
        clock.lap("vision")
        capacity = self.target.first_capacity(request.max_length, self.stopping.max_new_tokens)
        context = self.context = self.target.prefill(request, vision, capacity, drafter.feature_layers)
        self.verifier = self.verifier.fork(context, self.pipeline, self.seed)
        self.transcript = Transcript(context, self.stopping, self.pipeline, self.verifier.lossless, self.trace)
        self.root = self.verifier.first_token(context)
        emitted = self.root[:, None].tolist()
        context.admit(emitted)
        sampled = self.verifier.proposal_under(self.pipeline) == "sampled"
        generator = random_stream(self.target.device, self.seed, "drafter") if sampled else None
        context.proposals = Proposals(sampled, self.pipeline, context.history, generator)
        drafter.start(context)
        clock.lap("prefill")
        return self._closed(self.transcript.begin(emitted))

    @torch.inference_mode()
    def round(self) -> list[Piece]:
        """One round of every row that is still active."""
        context, drafter, verifier, clock = self.context, self.drafter, self.verifier, self.clock
        before, anticipated = dict(clock.seconds), 0.0
        tree, scores = self._drafted(), None
        clock.lap("draft")
        verdict = verifier.skim(tree)
        clock.lap("verify")
        if verdict is None:
            scores, anticipated = score_while(context, drafter, tree)
            clock.lap("score")
            verdict = verifier.verify(tree, scores)
        verdict = verdict.only(context.active)
        clock.lap("verify")
        if self.trace is not None:
            self.trace.record(tree, scores, verdict, context.active)
            clock.lap("other")
        emitted = context.commit(tree, verdict)
        clock.lap("commit")
        drafter.observe(tree, scores, verdict)
        clock.lap("observe")
        self.root = verdict.bonus
        pieces = self._closed(self.transcript.add(emitted, tree, verdict.settled))
        record = self.transcript.stats.rounds[-1]
        record.seconds = {name: clock.seconds[name] - before[name] for name in before}
        record.anticipated = anticipated
        return pieces

    def _drafted(self) -> DraftTree:
        """The drafter's tree, looked at unless mmspec chose its tokens and places itself."""
        tree = self.drafter.draft(self.root)
        if not (isinstance(tree, DraftTree) and tree.grown):
            name = type(self.drafter).__name__
            refuse_malformed(tree, self.root, self.context.active, self.target.vocab_size, name)
        return tree

    def _closed(self, pieces: list[Piece]) -> list[Piece]:
        """The same pieces, once the time until now is booked."""
        self.clock.lap("other")
        self.transcript.stats.seconds = dict(self.clock.seconds)
        return pieces
