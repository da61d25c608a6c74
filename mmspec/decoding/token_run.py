"""A request for tokens in the loop: the prompt is read, and the first token drawn; the rounds are `mmspec.loop`'s."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..drafters import Drafter, NoDrafter
from ..inputs import Request
from ..loop import Run
from ..models.caches import caches_in
from ..models.guidance import Guidance
from ..models.tensor_parallel import is_divided
from ..seeds import random_stream
from ..target import Target
from ..trees import Proposals
from ..verifiers import Verifier
from ..visualization.trace import Trace
from .sampling import LogitsPipeline
from .stopping import Stopping
from .transcript import Piece, Transcript


class TokenRun(Run):
    """One call of `generate` on its way through the loop.

    Args:
        target: the model whose output is preserved.
        drafter: a fork for this request, or None for `NoDrafter`.
        verifier: what is forked for this request.
        pipeline: what stands between logits and tokens.
        request: the prompt.
        stopping: what ends a row.
        seed: what all draws follow from.
        trace: whether to keep the trees.
        guidance: what the text is led away from, or None.
        node_by_node: whether trees are scored one node at a time, see `mmspec.node_by_node`.
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
        guidance: Guidance | None = None,
        node_by_node: bool = False,
    ):
        super().__init__(target.device)
        self.target, self.drafter, self.verifier = target, drafter or NoDrafter(target), verifier
        self.pipeline, self.request, self.stopping, self.seed = pipeline, request, stopping, seed
        self.guidance, self.node_by_node = guidance, node_by_node
        self.trace = Trace(target.speller) if trace else None

    @torch.inference_mode()
    def begin(self) -> list[Piece]:
        """Read the prompt; emit the first token of every row."""
        clock, drafter, request = self.clock, self.drafter, self.request
        clock.resume()
        vision = self.target.encode(request)
        clock.lap("vision")
        capacity = self.target.first_capacity(request.max_length, self.stopping.max_new_tokens)
        states = dict.fromkeys([*drafter.states_read, *self.verifier.feature_layers(self.target)])
        sampled = self.verifier.proposal_under(self.pipeline) == "sampled"
        generator = random_stream(self.target.device, self.seed, "drafter") if sampled else None
        barred = torch.tensor(ids, device=self.target.device) if (ids := self.pipeline.barred) else None
        proposals = Proposals(sampled, self.pipeline, None, generator, barred)
        if drafter.anticipates and self.guidance is None:
            self.other_side.in_turn, spare = drafter.in_turn, capacity - request.max_length
            self.other_side.begin(lambda: drafter.anticipate_prompt(request, vision, spare, proposals))
        try:
            context = self.target.prefill(request, vision, capacity, states, self.guidance, self.node_by_node)
            clock.lap("prefill")
            self.other_side.take_turn()
        finally:
            prompt_anticipated = self.other_side.join()
        clock.lap("draft_prefill")
        self.context = context
        context.clock = None if is_divided(self.target) else clock
        self.verifier = self.verifier.fork_for(context, self.pipeline, self.seed)
        self.transcript = Transcript(context, self.stopping, self.pipeline, self.verifier.lossless, self.trace)
        self.transcript.stats.prompt_anticipated = prompt_anticipated
        self.root = self.verifier.first_token(context)
        emitted = self.root[:, None].tolist()
        context.admit(emitted)
        context.proposals = replace(proposals, history=context.history)
        clock.lap("prefill")
        drafter.start(context)
        clock.lap("draft_prefill")
        self.transcript.stats.cache_bytes = self._cache_bytes()
        return self.closed(self.transcript.begin(emitted))

    def _cache_bytes(self) -> dict[str, int]:
        """Return the bytes of the keys and values of the prompt, those of the target and those of the drafter's own."""
        cache = self.context.cache
        own = sum(other.bytes_in_use for other in caches_in(self.drafter) if other is not cache)
        return {"target": cache.bytes_in_use, "drafter": own}
