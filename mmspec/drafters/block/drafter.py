"""BlockDrafter: the frame of drafters that guess a whole block of tokens in one pass (DFlash and its kin)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...lesson import Guess, Lesson
from ...models.cache import TreeCache
from ...models.masks import MaskForm
from ...models.session import Session
from ...models.slots import pick, pick_numbers
from ...outcome import Scores, Verdict
from ...tree import DraftTree
from ...trees import Chain, TreeBuilder
from ...trees.growth import Block
from ..layer import attend
from ..reading import view_of
from ..step import guesses_below
from .correction import Correction, LookAhead
from .head import BlockHead
from .layer import Entries, keys_values_of
from .sight import attend_blocks, masks_of
from .unread import Unread

if TYPE_CHECKING:
    from ...context import Context


class BlockDrafter(BlockHead):
    """A drafter that reads the target's states as keys and values, and guesses a block of tokens in one pass.

    The block begins with the anchor, the newest token, which is all that it embeds; the other slots hold a mask. The
    target's states of all earlier tokens, fused once per token, are turned by every layer into keys and values, which
    stay in its cache; those of a block are thrown away. So nothing is ever computed anew, and pictures are seen through
    the target's states alone.

    All nodes of a depth have one distribution, unless a subclass corrects that for the tokens above them
    (`correction`). Tokens that a gate has let out unread stand in the block as they are, see `Unread`.

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of all that a pass guesses.
        compressor: the compressor through which it reads pictures; none by default.
        settings: fields of `Settings`, see `BlockSettings`.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target, such as another hidden size than its own.
    """

    cheap_levels = True
    drafts_unread = True

    first_slot = 0
    """Entries of its cache before the first token's."""

    def native_tree(self) -> TreeBuilder:
        """Return a chain of all tokens that a pass guesses."""
        return Chain(self.settings.drafts)

    @property
    def independent(self) -> bool:  # type: ignore[override]  # of most drafters a constant
        """True if the marginals of one pass are all there is: if nothing corrects them."""
        return self.correction is None

    # Drafting.

    def start(self, context: Context) -> None:
        """Take the target's states of the prompt as keys and values."""
        super().start(context)
        request = context.request
        self._prepare()
        prompt = self.read(view_of(context))
        counts = (torch.tensor(request.lengths, device=prompt.removed.device) - prompt.removed).tolist()
        slot = self._blocks[0].self_attn.slot
        size = request.max_length + context.spare_capacity + self.settings.block_size
        cache = TreeCache([(slot, slot)] * len(self.layers), context.batch_size, size)
        self.session = Session(cache, {"full_attention": None}, MaskForm.BOOLEAN, slot.dtype)
        self._newest_known = prompt.states.new_zeros(context.batch_size, self.head.hidden_size, dtype=self._dtype)
        keys, values = self._entries(prompt.states, prompt.positions, request.max_length, counts)
        self.session.enter(list(zip(keys, values, strict=True)), counts)
        self.session.position_offset = prompt.position_offset
        self.session.follow(context.history, context.active)
        self._waiting: list[tuple[Tensor, list[int]]] = []  # states that no keys and values are made of yet

    def _entries(self, states: Tensor, positions: Tensor, most: int, counts: list[int]) -> Entries:
        """Return keys and values of the states of the target's layers, `[layers, batch, heads, length, head_dim]`; by
        row, the first `counts` of them are new tokens."""
        known = self._fused(states)
        if isinstance(self.correction, LookAhead):  # nothing else asks
            rows = [(place, row) for place, row in enumerate(self.session.cache.rows_present) if counts[row]]
            if rows:
                places, numbers = (list(part) for part in zip(*rows, strict=True))
                self._newest_known[numbers] = known[-1, places, [counts[row] - 1 for row in numbers]]
        return keys_values_of(self._blocks, known, self._rope(positions, most))

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Keep the target's states of the accepted path for the next pass."""
        super().observe(tree, scores, verdict)
        self.refuse_tail(verdict)
        lengths = verdict.lengths
        if scores is None or not any(lengths):
            return
        features = scores.features_along(verdict.path[:, : max(lengths)], first=tree.is_chain)
        unread = scores.unread or [0] * len(lengths)
        counts = [length + before if length else 0 for length, before in zip(lengths, unread, strict=True)]
        self._waiting.append((self._taps_of(features), counts))

    def _absorb(self) -> None:
        """Turn the states of all tokens that are certain into keys and values."""
        session = self.session
        session.leave()
        for states, lengths in self._waiting:
            counts = [length if active else 0 for length, active in zip(lengths, session.active, strict=True)]
            numbers = torch.arange(states.shape[1], device=states.device)
            most = self._longest + len(numbers)
            keys, values = self._entries(session.present(states), session.positions(numbers), most, counts)
            session.enter(list(zip(keys, values, strict=True)), counts)
        self._waiting = []

    @property
    def _longest(self) -> int:
        """The number of tokens of the longest row."""
        return max(map(len, self.context.history))

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what the target has confirmed, and guess the whole block; return the logits of its first token."""
        self._absorb()
        session, settings, unread = self.session, self.settings, self._unread(root)
        if unread is None:
            states = self.block_inputs(session.present(root)[:, None])
        else:
            states = unread.inputs(self.token_embeds(unread.tokens), self._mask, settings.block_size)
        slots = hidden = self._pass(states, unread)[:, settings.first_slot :]
        if unread is not None:
            hidden = unread.guesses(slots, settings.drafts)
        self._marginals = session.whole(self.logits(hidden))
        if self.correction is None:
            return self._marginals[:, 0]
        self._hidden = session.whole(hidden)
        walk = self._walk_of(self._marginals[:, None], self._hidden[:, None], self._newest_known[:, None])
        assert walk is not None  # as there is a correction
        self._walk = walk
        if unread is None or not isinstance(walk, Correction):
            state = walk.begin(root[:, None], self.token_embeds)
        else:
            state = session.whole(unread.read(walk, slots, self.token_embeds))
        self._states = [state]
        return self._corrected(self._marginals[:, :1], self._hidden[:, :1], state)[:, 0]

    def _unread(self, root: Tensor) -> Unread | None:
        """Return the tokens that the target has no states of; None if these are the roots, as they are but behind a
        gate."""
        counts = self.session.pending
        if max(counts) <= 1:
            return None
        trunk = self.newest(root, counts)
        assert trunk.kept is not None, "there is more than the root"
        return Unread(self.session.present(trunk.tokens), self.session.present(trunk.kept) - 1)

    def expand(self, block: Block) -> Tensor:
        """Return the logits after the nodes of a block."""
        base = guesses_below(self._marginals, block)
        if self.correction is None:
            return base
        parents = self._states[-1]
        if not block.extends_chain:
            parents = pick(torch.cat(self._states, dim=1), block.parents)
        before = guesses_below(self._hidden, block, ahead=0)
        state = self._walk.advance(parents, block.tokens, before, self.token_embeds)
        self._states.append(state)
        return self._corrected(base, guesses_below(self._hidden, block), state)

    def _corrected(self, base: Tensor, hidden: Tensor, state: Tensor) -> Tensor:
        """Return corrected logits, and remember what they were made of."""
        self._newest = hidden, state
        return self._walk.logits(base, hidden, state, self.logits)

    def confidence(self) -> Tensor | None:
        """Return the estimates for the nodes of the newest pass, see `StepDrafter.confidence`."""
        if self.correction is None:
            return None
        logits = self.sureness(*self._newest)
        return None if logits is None else logits.float().sigmoid()

    def marginals(self, depth: int) -> Tensor:
        """Return the logits of the first `depth` tokens of the block."""
        return self._marginals[:, :depth]

    def _pass(self, states: Tensor, unread: Unread | None) -> Tensor:
        """Run the layers over a block, `[rows, slots, hidden]`, and forget its keys and values."""
        session, cache, size = self.session, self.session.cache, states.shape[1]
        rope = self._rope(session.positions(torch.arange(size, device=states.device)), self._longest + size)
        lengths = cache.present(cache.lengths)
        cache.begin(size)
        sizes = None if unread is None else unread.sizes(self.settings.block_size)
        masks = masks_of(self._sights, lengths, cache.slots_in_use, size, cache.uniform, sizes)
        for layer, entries, mask in zip(self._blocks, cache.tree_layers, masks, strict=True):
            mixed, after = layer.enter(states, size)
            queries, own_keys, own_values = layer.self_attn.project(mixed, rope)
            keys, values = entries.update(own_keys, own_values)
            states = layer.finish(states, attend(queries, keys, values, mask), after)
        cache.end()
        session.drop()
        return self.norm(states)

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: one pass over the blocks of all anchors. Step i is the
        i-th guess of every block, corrected for the answer's own tokens above it; there are no more steps than a block
        guesses, and no state is handed on that could be detached."""
        self._prepare()
        anchors, real = lesson.anchors
        hidden, newest = self._unrolled(lesson, anchors)
        every = self.logits(hidden) if isinstance(self.correction, LookAhead) else None
        ids, tokens = lesson.request.inputs["input_ids"], lesson.root_slots.gather(1, anchors) + 1
        walk = self._walk_of(every, hidden, newest)
        state = None if walk is None else walk.begin(ids.gather(1, tokens), self.token_embeds)
        for step in range(min(steps, self.settings.drafts)):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            here, roots, slots = valid.gather(1, anchors) & real, valid.flatten().nonzero()[:, 0], hidden[:, :, step]
            chosen = slots[here]
            base = self.logits(chosen) if every is None else every[:, :, step][here]
            if walk is None or state is None:
                yield Guess(base, None, places, roots)
                continue
            own = state[here]
            logits, sure = walk.logits(base, chosen, own, self.logits), self.sureness(chosen, own)
            yield Guess(logits, None, places, roots, confidence=sure, base=base)
            tokens = (tokens + 1).clamp(max=ids.shape[1] - 1)  # beyond the end of an answer anything will do
            state = walk.advance(state, ids.gather(1, tokens), slots, self.token_embeds)

    def _unrolled(self, lesson: Lesson, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed states of all guessing slots, `[batch, anchors, drafts, hidden]`, from `[batch, anchors]`
        numbers of roots, and the fused states of the tokens before them, `[batch, anchors, hidden]`."""
        prompt, size = self.read(view_of(lesson)), self.settings.block_size
        tokens = lesson.root_slots.gather(1, anchors) + 1
        entries = tokens - prompt.removed[:, None]
        ids = lesson.request.inputs["input_ids"].gather(1, tokens)
        first, most = pick_numbers(prompt.positions, entries), lesson.embeds.shape[1] + size
        numbers = torch.arange(size, device=tokens.device)
        rope = self._rope((first[..., None] + numbers).flatten(-2), most)
        before = self._rope(prompt.positions, most)
        known, states = self._fused(prompt.states), self.block_inputs(ids)
        for number, (layer, sight) in enumerate(zip(self._blocks, self._sights, strict=True)):
            (mixed, after), attention = layer.enter(states, size), layer.self_attn
            context = attention.context(known[min(number, len(known) - 1)], before)
            own, queries = attention.keys_values(mixed, rope), attention.queries(mixed, rope)
            states = layer.finish(states, attend_blocks(queries, context, own, entries, size, sight), after)
        guesses = self.norm(states).unflatten(1, (-1, size))[:, :, self.settings.first_slot :]
        return guesses, pick(known[-1], entries - 1)
