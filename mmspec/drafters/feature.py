"""FeatureDrafter: the frame of small heads that draft from the target's own hidden states (EAGLE and its kin)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compressors import DraftPrompt
from ..lesson import Guess, Lesson
from ..models.cache import TreeCache
from ..models.cache_layer import shape_of
from ..models.masks import MaskForm
from ..models.session import Session
from ..models.slots import pick, pick_numbers
from ..models.transfer import to_device
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import DynamicTree, TreeBuilder
from ..trees.growth import Block
from .feature_head import FeatureHead
from .layer import DraftLayer, Rope, attend, attend_unrolled
from .layer_pass import LayerPass
from .reading import view_of
from .router import Router, Shown, router_of, shown_at

if TYPE_CHECKING:
    from ..context import Context

LEVELS = 16
"""Levels of a chain whose rotary positions are made at once."""


class FeatureDrafter(FeatureHead):
    """A drafter that extrapolates the target's features, one draft token at a time, usually with a single transformer
    layer.

    Slot t of the drafter pairs the feature after token t with the embedding of token t + 1, and speaks of token t + 2.
    Slots of the true sequence hold true features and stay in the drafter's cache; the slots of a draft hold its own
    output instead, and are thrown away and computed anew from true features once the target has spoken (EAGLE, arXiv
    2401.15077, section 4). Positions are those of the slots, in one dimension, whatever the target's are.

    A subclass makes its layers in `build`, and says which is the `layer`, how features become states
    (`fuse_features`) and what the layer reads (`layer_input`, and `prompt_input` if pictures are read differently). It
    may also say what goes on to the next step (`next_state`) and what the vocabulary head reads (`head_input`,
    `logits`). A compressor makes the prompt shorter before its embeddings and states are paired. A corrector looks at
    the whole picture once more, between the layer's output and what the vocabulary head reads.

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`; the native one is EAGLE-2's dynamic tree.
        compressor: the compressor through which it reads pictures; none by default.
        settings: fields of `Settings`, see `FeatureSettings`.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target, such as another hidden size than its own.
    """

    drafts_unread = True

    _router: Router | None = None  # of a request whose compressor routes

    def native_tree(self) -> TreeBuilder:
        """Return EAGLE-2's dynamic tree."""
        return DynamicTree()

    # Drafting.

    def start(self, context: Context) -> None:
        """Read the prompt with the target's states, into a session of the layer's own."""
        super().start(context)
        request = context.request
        self._prepare()
        self._passes = self.passes()
        prompt = self.read(view_of(context))
        last = torch.tensor(request.lengths, device=prompt.removed.device) - 1 - prompt.removed
        # Nothing is asked of the prompt's slots but what later ones see of them: keys and values.
        remembered, slot = self.prefill_kv(prompt), self.layer.self_attn.slot
        size = request.max_length + context.spare_capacity
        shapes = [(shape_of(keys), shape_of(values)) for keys, values in remembered]
        cache = TreeCache(shapes, context.batch_size, size)
        self.session = Session(cache, {"full_attention": None}, MaskForm.BOOLEAN, slot.dtype)
        self.session.enter(remembered, (last + self.first_slot).tolist())
        self.session.position_offset = prompt.position_offset
        # A feature is known before the token behind it, with which it is entered: the true features of what is pending,
        # `[batch, pending, hidden]`.
        self.session.follow(context.history, context.active)
        self._states = pick(prompt.states, last[:, None])
        self._router = router_of(self.compressor, context)
        self._steps: int | Tensor = 0  # of these states, see `layer_input`
        self._guessed = [0] * context.batch_size  # the last slots of the cache, whose states are its own

    def passes(self) -> tuple[LayerPass, ...]:
        """Return the layers as a request runs them."""
        return (LayerPass(self.layer),)

    def prefill_kv(self, prompt: DraftPrompt) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of all slots of a prompt, `[batch, key_value_heads, slots, head_dim]`, for every
        layer."""
        mixed, _ = self.prompt_input(prompt)
        return [self.layer.self_attn.keys_values(mixed, self._rope(mixed, self.slot_positions(prompt)))]

    @property
    def asks_anew(self) -> bool:  # type: ignore[override]
        """True where slots are those of a single layer, each of which pairs a token's state with the next token."""
        parts = ("start", "prefill_kv", "expand_root", "_layers")
        return all(getattr(type(self), part) is getattr(FeatureDrafter, part) for part in parts)

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, with true features; the last of it is the root."""
        if self._router is not None and (hidden := self._router.choose()) is not None:
            self.session.hide(hidden[:, 1:])  # slot t pairs the state of token t with the embedding of token t + 1
        trunk, steps = self.newest(root, self.session.pending), self._steps
        width = trunk.tokens.shape[1]
        step = steps[:, :width] if isinstance(steps, Tensor) else steps
        output = self._run(trunk, self.layer_input(self.token_embeds(trunk.tokens), self._states[:, :width], step))
        self.session.keep(trunk.counts, kept=trunk.kept)
        if isinstance(steps, Tensor):
            self._guessed = [before + count for before, count in zip(self._guessed, trunk.counts, strict=True)]
        output = trunk.last_of(output)[:, None]
        self._ropes: list[Rope] = []
        self._drafted = [self.next_state(output)]
        return self.logits(self.head_input(self.corrected(output, 0)))[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes, whose parents' outputs are their states."""
        states = self._drafted[-1] if block.extends_chain else pick(torch.cat(self._drafted, dim=1), block.parents)
        output = self._run(block, self.layer_input(self.token_embeds(block.tokens), states, block.step))
        self._drafted.append(self.next_state(output))
        return self.logits(self.head_input(self.corrected(output, block.step)))

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Take the true states of the accepted path in place of the draft's own."""
        super().observe(tree, scores, verdict)
        self.refuse_tail(verdict)
        if self._router is not None:
            self._router.observe(scores, verdict)
        self.session.drop()
        path = verdict.path[:, : max(self.session.pending)]
        if scores is None:
            assert tree.expansion is not None, "the tree is one of Growth"
            self._go_on(tree.expansion.gather(1, path.clamp(min=0)).clamp(min=0))
            return
        if any(self._guessed):
            self._take_back()
        states = self.fuse_features(scores.features_along(path, first=tree.is_chain))
        self._states, self._steps = self._behind_skipped(states, scores, verdict), 0

    def _behind_skipped(self, states: Tensor, scores: Scores, verdict: Verdict) -> Tensor:
        """Return the states of all pending tokens, from those of the tokens that the last pass has made certain: behind
        rounds that drafted nothing there are older ones, whose states are kept."""
        unread = scores.unread or [0] * len(states)
        new = [before + length for before, length in zip(unread, verdict.lengths, strict=True)]
        older = [max(pending - count, 0) for pending, count in zip(self.session.pending, new, strict=True)]
        if not any(older):
            return states
        kept, width = self._states.shape[1], max(map(sum, zip(older, new, strict=True)))
        places = [[n if n < count else kept + n - count for n in range(width)] for count in older]
        both = torch.cat([self._states, states], dim=1)
        return pick(both, to_device(places, both.device).clamp(max=both.shape[1] - 1))

    def _go_on(self, expanded: Tensor) -> None:
        """Let the states that the draft went on with, `[batch, new]` of its expansions, stand for those of tokens that
        are emitted but unread by the target [OUR]."""
        self._states = pick(torch.cat(self._drafted, dim=1), expanded)
        self._steps = torch.arange(1, expanded.shape[1] + 1, device=expanded.device)[None, :, None]

    def _take_back(self) -> None:
        """Forget the slots with such states: the target has read their tokens, and they are entered anew."""
        self.session.take_back(self._guessed)
        self._guessed = [0] * len(self._guessed)

    def _run(self, block: Block, entering: tuple[Tensor, Tensor]) -> Tensor:
        """Run the layers once: from what enters at the nodes of a block, see `layer_input`, to `[batch, new, hidden]`
        outputs."""
        session = self.session
        with session.block(block.visible, block.depth, block.extends_chain) as mask:
            mixed, residual = (session.present(part) for part in entering)
            assert mask is None or isinstance(mask, Tensor)  # as the session was made
            output = self._layers(mixed, residual, mask, self._rope_of(block, mixed))
        return session.whole(output)

    def _layers(self, mixed: Tensor, residual: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """Run the layers inside an open block: from what enters, see `layer_input`, to `[rows, new, hidden]`
        outputs."""
        return self._passes[0].finish(residual, self._attended(0, mixed, mask, rope))

    def _attended(self, number: int, mixed: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """Enter the keys and values of `[rows, new, width]` states into the cache, and return what they attend to,
        `[rows, heads, new, head_dim]`. The number is that of the layer, among `passes` as well as in the cache."""
        queries, own_keys, own_values = self._passes[number].project(mixed, rope)
        keys, values = self.session.cache.tree_layers[number].update(own_keys, own_values)
        return attend(queries, keys, values, mask)

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`. Step i continues every draft of step i - 1 by one
        token, feeding its own states back (training-time test; HASS, arXiv 2408.15766, with `detach`).

        All queries that matter stand in the answers, so the layer's queries and its MLP run on those slots only; the
        prompt contributes keys and values.
        """
        self._prepare()
        view = view_of(lesson)
        prompt = self.read(view)
        entered, positions = self.prompt_input(prompt), self.slot_positions(prompt)
        shown = shown_at(self.compressor, self.target, view, lesson.root_slots)
        yield from self._chains(self.layer, lesson, prompt, entered, positions, range(steps), detach, shown)

    def _chains(
        self,
        layer: DraftLayer,
        lesson: Lesson,
        prompt: DraftPrompt,
        entered: tuple[Tensor, Tensor],
        positions: Tensor,
        steps: range,
        detach: bool,
        shown: Shown | None = None,
    ) -> Iterator[Guess]:
        """Yield the guesses of steps that one layer makes, which feeds itself.

        Args:
            layer: the layer.
            lesson: the answers.
            prompt: prompts and answers as they were read.
            entered: what `layer_input` makes of all true slots, of which that of a root has the root's place in
                `lesson.root_slots`.
            positions: positions of these slots.
            steps: numbers of the steps, of which the first is about true slots.
            detach: whether to stop gradients from a step into earlier ones.
            shown: the tokens that are seen from each root, if not all are.
        """
        attention, slots = layer.self_attn, lesson.root_slots - prompt.removed[:, None]
        mixed, residual = entered
        columns = torch.arange(mixed.shape[1], device=mixed.device)
        prefix = attention.keys_values(mixed, self._rope(mixed, positions))
        # Of a layer that begins behind the first one, the last slots may lie beyond what was read.
        within = slots.clamp(max=max(mixed.shape[1] - 1, 0))
        positions = pick_numbers(positions, within)
        visible, gain = columns <= slots[:, None, :, None], None
        if shown is not None:  # slot t has the embedding of token t + 1
            visible = visible & ~shown.hidden[:, None, :, 1:]
            gain = None if shown.gain is None else shown.gain[:, None, :, 1:]
        mixed, residual = pick(mixed, within), pick(residual, within)
        own: list[tuple[Tensor, Tensor]] = []
        for step in steps:
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            rope = self._rope(mixed, positions + (step - steps.start))
            if step > steps.start:
                own.append(attention.keys_values(mixed, rope))
            attended = attend_unrolled(attention.queries(mixed, rope), prefix, own, visible, gain)
            output = layer.finish(residual, attended)
            chosen = self.corrected(output, step)[valid]
            features = chosen if self.guesses_features else None
            yield Guess(self.logits(self.head_input(chosen)), features, places, valid.flatten().nonzero()[:, 0])
            state = self.next_state(output)
            # The token that a right guess would have been; beyond the end of an answer anything will do.
            following = pick(prompt.embeds, (slots + step + 2).clamp(max=prompt.embeds.shape[1] - 1))
            mixed, residual = self.layer_input(following, state.detach() if detach else state, step + 1)

    # Small parts.

    def _rope_of(self, block: Block, like: Tensor) -> Rope:
        """Return cosines and sines for a block, in the dtype of a tensor. Those of a chain are made for many levels at
        once."""
        session = self.session
        if block.level is None or not block.extends_chain:
            return self._rope(like, session.positions(session.present(block.depth)))
        part, place = divmod(block.level, LEVELS)
        if part == len(self._ropes):
            depth = torch.arange(part * LEVELS, (part + 1) * LEVELS, device=like.device)
            self._ropes.append(self._rope(like, session.positions(depth)))
        cos, sin = self._ropes[part]
        return cos[:, place : place + 1], sin[:, place : place + 1]
