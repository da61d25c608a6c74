"""Context: one request on a target, and the target's half of a round.

It owns everything that a request changes (cache, positions, history); the model is only ever read, so any number of
requests may be interleaved on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .decoding.clock import PhaseClock
from .decoding.wellformed import refuse_malformed
from .families import Family, Vision, visual_spans
from .families.frequencies import ceilings
from .inputs import Request
from .models.model import Model
from .models.session import ModelSession
from .models.transfer import to_device
from .outcome import Scores, Verdict, after_unread
from .tree import DraftTree
from .trees import Proposals


class Context(ModelSession):
    """One request on a target: what drafters and verifiers may look at, and the target's half of a round.

    It is the only writer of `history` and `active`.

    Attributes:
        request: the prompt; `request.inputs["input_ids"]` is `[batch, length]`, right-padded.
        history: per row, all token ids so far, prompt included, the newest (the root) last.
        active: per row, False once it has finished.
        proposals: how a drafter is to choose children.
        clock: the clock of the run, for those who learn from how long rounds take; None outside a run, and where
            the target is divided among processes, each of which has another time.
        logits: `[batch, vocab]` after the prompt.
        vision: the encoded pictures, or None.
        embeds: `[batch, length, hidden]` what the language model read as its prompt.
        features: layer to `[batch, length, hidden]`, states of the prompt asked for by the drafter.

    Args:
        target: the model.
        request: right-padded inputs, see `mmspec.inputs.prepare`.
        vision: what `encode` returned for it.
        capacity: tokens per row to reserve in the cache, the prompt included.
        feature_layers: hidden states to keep for the drafter, see `mmspec.models.states`.
    """

    history: list[list[int]]  # never None, as it may be in a session
    clock: PhaseClock | None = None

    def __init__(
        self,
        target: Model,
        request: Request,
        vision: Vision | None = None,
        capacity: int = 0,
        feature_layers: Iterable[int] = (),
    ):
        read = self.rows_of(request, target.family)
        super().__init__(target, read.batch_size, max(capacity, read.max_length), feature_layers)
        self.target, self.request, self.vision = target, request, vision
        inputs, family = read.inputs, target.family
        embeds = family.embed(inputs["input_ids"], vision)
        self.embeds = embeds[: request.batch_size, : request.max_length]
        once, extra = family.prefill_inputs(inputs, vision), family.lasting_inputs(vision)
        position_ids, position_offset = family.positions(inputs)
        self._ceilings = ceilings(family.switches, position_ids, position_offset)
        self.logits, features = self.prefill(embeds, position_ids, position_offset, read.lengths, once, extra)
        self.features = {layer: states[:, : request.max_length] for layer, states in features.items()}
        self.follow(request.token_ids(), [True] * request.batch_size, pending=0)
        self.proposals = Proposals()

    def rows_of(self, request: Request, family: Family) -> Request:
        """Return the batch that is read for a request, by a model of this family."""
        return request

    @property
    def batch_size(self) -> int:
        """The rows of the request."""
        return self.request.batch_size

    @property
    def spare_capacity(self) -> int:
        """Tokens per row that fit into the cache behind the longest prompt before it must grow."""
        return self.cache.capacity - self.request.max_length

    @property
    def lengths(self) -> Tensor:
        """`[batch]` committed tokens in the cache: all of the history but what is `pending`, the root at least."""
        return self.cache.lengths

    def admit(self, tokens: Sequence[Sequence[int]]) -> None:
        """Append tokens to the rows of the history: from now on they are certain, and the last one is the root."""
        for history, new in zip(self.history, tokens, strict=True):
            history.extend(new)

    def finish(self, row: int) -> None:
        """Say that a row has ended: nothing is read, kept or emitted for it from now on."""
        self.active[row] = False

    def check(self, tree: DraftTree, root: Tensor, by: object) -> None:
        """Look at a tree, unless mmspec chose its tokens and places itself, see `mmspec.decoding.wellformed`.

        Args:
            tree: as drafted.
            root: `[batch]`, the newest tokens.
            by: the drafter.

        Raises:
            MMSpecError: if it is none that the target can be asked about.
        """
        if not (isinstance(tree, DraftTree) and tree.grown):
            refuse_malformed(tree, root, self.active, self.target.vocab_size, type(by).__name__)

    @torch.inference_mode()
    def score(self, tree: DraftTree) -> Scores:
        """Return the target's logits (and features) at every node of the tree, in one pass.

        Tokens that were emitted unread (see `Verdict`) are read by the same pass, before the tree. What the drafter has
        computed of the pass already (`DraftTree.ahead`) is not computed again.
        """
        unread = self._unread()
        behind = max(unread)
        block = self._with_unread(tree, unread) if behind else (tree.tokens, tree.ancestors, tree.depth)
        logits, features = self.read(*block) if tree.ahead is None else self.go_on(tree.ahead.behind(unread), *block)
        if not behind:
            return Scores(logits, features)
        of_nodes = {layer: states[:, behind:] for layer, states in features.items()}
        return Scores(logits[:, behind:], of_nodes, unread=unread, read=features)

    def _unread(self) -> list[int]:
        """Per row, how many tokens were emitted unread, before the root, which is node 0 of the next tree."""
        return [max(count - 1, 0) for count in self.pending]

    def _with_unread(self, tree: DraftTree, unread: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a block of the unread tokens, right-aligned, with the tree below: tokens, visible nodes, depths."""
        behind, device = max(unread), tree.tokens.device
        rows = [
            [count, *[0] * (behind - count), *(history[-1 - count : -1] if count else [])]
            for history, count in zip(self.history, unread, strict=True)
        ]
        count, prefix = to_device(rows, device).split([1, behind], dim=1)
        self._count = count
        column = torch.arange(behind, device=device)
        real = column >= behind - count
        trunk = torch.ones(behind, behind, dtype=torch.bool, device=device).tril() & real[:, None]
        trunk |= torch.eye(behind, dtype=torch.bool, device=device)  # a node of padding sees itself: nothing gives NaN
        above = real[:, None].expand(-1, tree.num_nodes, -1)
        none = trunk.new_zeros(tree.batch_size, behind, tree.num_nodes)
        visible = torch.cat([torch.cat([trunk, none], 2), torch.cat([above, tree.ancestors], 2)], 1)
        depth = torch.cat([(column - (behind - count)).clamp(min=0), tree.depth + count], 1)
        return torch.cat([prefix, tree.tokens], 1), visible, depth

    @torch.inference_mode()
    def commit(self, tree: DraftTree, verdict: Verdict) -> list[list[int]]:
        """Keep what the target has read of the accepted path, append what the round emits to the history, and return
        that per row."""
        verdict = verdict.only(self.active)
        counts, emitted = verdict.host(tree)
        if not verdict.settled:
            unread = self._unread()
            path, kept = None if tree.is_chain else verdict.path, verdict.length
            if any(unread):
                path = after_unread(verdict.path, unread)
                counts = [count + more if count else 0 for count, more in zip(counts, unread, strict=True)]
                kept = kept + self._count[:, 0] * (kept > 0)
            self.keep(counts, path, kept)
        self.admit(emitted)
        return emitted

    def visual_spans(self) -> list[list[tuple[int, int]]]:
        """Per row, the `(start, end)` index ranges of its pictures in the prompt, in order."""
        sizes = [] if self.vision is None else self.vision.sizes
        return visual_spans(self.request.token_ids(), self.target.family.placeholders, sizes)
