"""FeatureDrafter: the frame of small heads that draft from the target's own hidden states (EAGLE and its kin)."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, VisualCompressor
from ..compressors.base import compressor_of
from ..errors import MMSpecError
from ..files.folders import stored
from ..lesson import Guess, Lesson
from ..models.cache import SlotShape, TreeCache
from ..models.masks import MaskForm
from ..models.session import Session
from ..models.slots import pick, pick_numbers
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import DynamicTree, TreeBuilder
from ..trees.growth import Block
from .head_config import HEAD_SETTINGS, head_config
from .layer import Rope, attend, attend_unrolled
from .reading import PromptReader
from .rope import Turning, rotary_of
from .vocabulary import ReducedVocabulary

if TYPE_CHECKING:
    from ..context import Context
    from ..files.folders import Header
    from ..target import Target


class FeatureDrafter(ReducedVocabulary, PromptReader):
    """A drafter that extrapolates the target's features, one draft token at a time, with a single transformer layer.

    Slot t of the drafter pairs the feature after token t with the embedding of token t + 1, and speaks of token t + 2.
    Slots of the true sequence hold true features and stay in the drafter's cache; the slots of a draft hold its own
    output instead, and are thrown away and computed anew from true features once the target has spoken (EAGLE, arXiv
    2401.15077, section 4). Positions are those of the slots, in one dimension, whatever the target's are.

    A subclass says how features become states (`fuse_features`), what the layer reads (`layer_input`, and
    `prompt_input` if pictures are read differently), what goes on to the next step (`next_state`) and what the
    vocabulary head reads (`head_input`, `logits`). A compressor makes the prompt shorter before
    its embeddings and states are paired.

    Args:
        target: the model to draft for.
        head: sizes and switches of the layer that differ from the target's, see `HEAD_SETTINGS`.
        visual: True if the embedding of an image token is the target's visual embedding, False if it is that of the
            placeholder token.
        draft_vocab_size: number of tokens that the drafter can propose, see `choose_vocabulary`; None for all.
        tree: the builder of its trees; EAGLE-2's dynamic tree by default.
        compressor: the compressor through which it reads pictures; none by default.
        own_embedding: rows of a frozen token embedding of the drafter's own, as some published checkpoints have; None
            to read the target's. Pictures are read from the target in either case.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target, such as another hidden size than its own.
    """

    switches: tuple[str, ...] = ()
    """Names of further constructor arguments, which `config` gives too."""

    late_switches: tuple[str, ...] = ("own_embedding",)
    """Others, which folders written before there were any lack."""

    any_width = False
    """True if the hidden size may differ from the target's, given an embedding of its own."""

    rope = "1d"
    """The kind of positions, see `mmspec.drafters.rope`."""

    axes: Tensor | None = None
    """The axis of each frequency, for positions that have several, see `mmspec.drafters.rope.axes_of`."""

    guesses_features = True
    """True if the layer's output stands for a state of the target, with which a loss can compare it."""

    drafts_unread = True

    first_slot = 0
    """Slots before the first one that has a state: 1 where the first token has a slot of its own."""

    def __init__(
        self,
        target: Target,
        head: dict[str, Any] | None = None,
        visual: bool = True,
        draft_vocab_size: int | None = None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
        own_embedding: int | None = None,
    ):
        super().__init__(target, tree or DynamicTree())
        self.head = head_config(target, head or {})
        if self.head.hidden_size != target.hidden_size and not (self.any_width and own_embedding):
            raise MMSpecError(
                f"the hidden size of this {type(self).__name__} is {self.head.hidden_size} but the target's is "
                f"{target.hidden_size}: it works on the target's own embeddings and states; train one for this target"
            )
        self.visual = visual
        self.rotary = rotary_of(self.head)
        self.reduce_vocabulary(draft_vocab_size)
        self.take_embedding(own_embedding)
        if compressor is not None:
            self.take_compressor(compressor)

    # What a method is.

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return what the layer's attention reads, and its residual stream, from token embeddings and states.

        Args:
            embeds: `[batch, length, hidden]` embeddings.
            states: `[batch, length, hidden]` states.
            step: 0 for true states, n for those of the n-th level of a draft: a number for all, or
                `[batch or 1, length, 1]`.
        """
        raise NotImplementedError

    def prompt_input(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor]:
        """Return the input of the layer for all slots of a prompt: every state with the embedding of the next entry."""
        return self.layer_input(prompt.embeds[:, 1:], prompt.states[:, :-1])

    def slot_positions(self, prompt: DraftPrompt) -> Tensor:
        """Return positions `[batch, slots]`, or `[axes, batch, slots]`: a slot stands where its state does."""
        return prompt.positions[..., :-1]

    def next_state(self, output: Tensor) -> Tensor:
        """Return the state of the next draft step, from the layer's output."""
        return output

    def head_input(self, output: Tensor) -> Tensor:
        """Return what the vocabulary head reads, from the layer's output."""
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., draft_vocab]` from `head_input`. By default the head is the target's own, on the draft
        vocabulary."""
        return self.target.family.head(hidden, self._head_rows)

    # Drafting.

    def start(self, context: Context) -> None:
        """Read the prompt with the target's states, into a session of the layer's own."""
        super().start(context)
        lengths = context.request.lengths
        parameter = self.layer.self_attn.k_proj.weight
        heads, head_dim = self.head.num_key_value_heads, self.head.head_dim
        assert heads is not None and head_dim is not None  # LlamaConfig fills them in
        slot = SlotShape(heads, head_dim, parameter.dtype, parameter.device)
        self._prepare()
        prompt = self.read(context.request, context.request, context.embeds, context.features, context.vision)
        last = torch.tensor(lengths, device=prompt.removed.device) - 1 - prompt.removed
        # Nothing is asked of the prompt's slots but what later ones see of them: keys and values.
        remembered = self.prefill_kv(prompt)
        cache = TreeCache(
            [(slot, slot)] * len(remembered), context.batch_size, context.request.max_length + context.spare_capacity
        )
        self.session = Session(cache, {"full_attention": None}, MaskForm.BOOLEAN, parameter.dtype)
        self.session.enter(remembered, (last + self.first_slot).tolist())
        self.session.position_offset = prompt.position_offset
        # A feature is known before the token behind it, with which it is entered: the true features of what is pending,
        # `[batch, pending, hidden]`.
        self.session.follow(context.history, context.active)
        self._states = pick(prompt.states, last[:, None])
        self._steps: int | Tensor = 0  # of these states, see `layer_input`
        self._guessed = [0] * context.batch_size  # the last slots of the cache, whose states are its own

    def prefill_kv(self, prompt: DraftPrompt) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of all slots of a prompt, `[batch, key_value_heads, slots, head_dim]`, for every
        layer."""
        mixed, _ = self.prompt_input(prompt)
        return [self.layer.self_attn.keys_values(mixed, self._rope(mixed, self.slot_positions(prompt)))]

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, with true features; the last of it is the root."""
        trunk, steps = self.newest(root, self.session.pending), self._steps
        width = trunk.tokens.shape[1]
        output = self._run(trunk, self._states[:, :width], steps[:, :width] if isinstance(steps, Tensor) else steps)
        self.session.keep(trunk.counts, kept=trunk.kept)
        if isinstance(steps, Tensor):
            self._guessed = [before + count for before, count in zip(self._guessed, trunk.counts, strict=True)]
        output = trunk.last_of(output)[:, None]
        self._drafted = [self.next_state(output)]
        return self.logits(self.head_input(output))[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes, whose parents' outputs are their states."""
        states = self._drafted[-1] if block.extends_chain else pick(torch.cat(self._drafted, dim=1), block.parents)
        output = self._run(block, states, block.step)
        self._drafted.append(self.next_state(output))
        return self.logits(self.head_input(output))

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Take the true states of the accepted path in place of the draft's own."""
        super().observe(tree, scores, verdict)
        if verdict.tail is not None:
            raise MMSpecError(
                f"{type(self).__name__} has no states for tokens that stand in no draft (the tail of a verdict): "
                "choose a drafter that reads tokens only, such as DraftModelDrafter"
            )
        self.session.drop()
        path = verdict.path[:, : max(self.session.pending)]
        if scores is None:
            assert tree.expansion is not None, "the tree is one of Growth"
            self._go_on(tree.expansion.gather(1, path.clamp(min=0)).clamp(min=0))
            return
        if any(self._guessed):
            self._take_back()
        self._states, self._steps = self.fuse_features(scores.features_along(path, first=tree.is_chain)), 0

    def _go_on(self, expanded: Tensor) -> None:
        """Let the states that the draft went on with, `[batch, new]` of its expansions, stand for those of tokens that
        are emitted but unread by the target [OUR]."""
        self._states = pick(torch.cat(self._drafted, dim=1), expanded)
        self._steps = torch.arange(1, expanded.shape[1] + 1, device=expanded.device)[None, :, None]

    def _take_back(self) -> None:
        """Forget the slots with such states: the target has read their tokens, and they are entered anew."""
        self.session.take_back(self._guessed)
        self._guessed = [0] * len(self._guessed)

    def _run(self, block: Block, states: Tensor, step: int | Tensor = 0) -> Tensor:
        """Run the layer once: from nodes with their `[batch, new, hidden]` states to `[batch, new, hidden]` outputs."""
        session, attention = self.session, self.layer.self_attn
        mixed, residual = self.layer_input(self._token_embeds(block.tokens), states, step)
        with session.block(block.visible, block.depth, block.extends_chain) as (mask, positions):
            mixed, residual = session.present(mixed), session.present(residual)
            assert mask is None or isinstance(mask, Tensor)  # as the session was made
            queries, own_keys, own_values = attention.project(mixed, self._rope(mixed, positions))
            keys, values = session.cache.tree_layers[0].update(own_keys, own_values)
        return session.whole(self.layer.finish(residual, attend(queries, keys, values, mask)))

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`. Step i continues every draft of step i - 1 by one
        token, feeding its own states back (training-time test; HASS, arXiv 2408.15766, with `detach`).

        All queries that matter stand in the answers, so the layer's queries and its MLP run on those slots only; the
        prompt contributes keys and values.
        """
        self._prepare()
        prompt = self.read(lesson.request, lesson.prompt, lesson.embeds, lesson.features, lesson.vision)
        attention, slots = self.layer.self_attn, lesson.root_slots - prompt.removed[:, None]
        mixed, residual = self.prompt_input(prompt)
        columns = torch.arange(mixed.shape[1], device=mixed.device)
        positions = self.slot_positions(prompt)
        prefix = attention.keys_values(mixed, self._rope(mixed, positions))
        positions = pick_numbers(positions, slots)
        visible = columns <= slots[:, None, :, None]
        mixed, residual = pick(mixed, slots), pick(residual, slots)
        own: list[tuple[Tensor, Tensor]] = []
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            rope = self._rope(mixed, positions + step)
            if step:
                own.append(attention.keys_values(mixed, rope))
            attended = attend_unrolled(attention.queries(mixed, rope), prefix, own, visible)
            output = self.layer.finish(residual, attended)
            chosen = output[valid]
            features = chosen if self.guesses_features else None
            yield Guess(self.logits(self.head_input(chosen)), features, places, valid.flatten().nonzero()[:, 0])
            state = self.next_state(output)
            # The token that a right guess would have been; beyond the end of an answer anything will do.
            following = pick(prompt.embeds, (slots + step + 2).clamp(max=prompt.embeds.shape[1] - 1))
            mixed, residual = self.layer_input(following, state.detach() if detach else state, step + 1)

    # Small parts.

    def _rope(self, like: Tensor, slots: Tensor) -> Rope:
        """Return cosines and sines for slots, in the dtype of a tensor."""
        return self._turning.at(slots, like.dtype)

    def _prepare(self) -> None:
        """Look up what stays the same for a request, or for a batch of lessons."""
        self._head_rows = self._rows()
        self._turning = Turning(self.rotary, self.axes)

    def _rows(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the rows of the target's head that the logits need."""
        return self.target.family.head_rows(self.draft_vocabulary)

    def config(self) -> dict[str, Any]:
        """Return the settings, see `Drafter.config`."""
        return {
            "head": {name: getattr(self.head, name) for name in HEAD_SETTINGS},
            "visual": self.visual,
            "draft_vocab_size": self.draft_vocab_size,
            "compressor": None if self.compressor is None else self.compressor.config(),
            **{name: getattr(self, name) for name in self.late_switches},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> FeatureDrafter:
        """Rebuild the drafter, on the target's device."""
        return cls._from_config(config, target).to(target.device)

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> FeatureDrafter:
        """Rebuild the drafter for weights that are brought along, see `Drafter.empty`."""
        if getattr_static(cls, "from_config") is not getattr_static(FeatureDrafter, "from_config"):
            return cls.from_config(config, target)
        with torch.device("meta"):
            drafter = cls._from_config(config, target)
        if there is not None:
            there.check_fits(stored(drafter), cls.__name__)
        drafter.rotary = rotary_of(drafter.head).to(target.device)  # computed, not stored
        return cls.from_config(config, target) if has_unstored(drafter) else drafter

    @classmethod
    def _from_config(cls, config: dict[str, Any], target: Target) -> FeatureDrafter:
        """Rebuild the drafter on the current device."""
        names = ("head", "visual", "draft_vocab_size", *cls.switches, *(n for n in cls.late_switches if n in config))
        compressor = compressor_of(config.get("compressor"))
        drafter = cls(target, **{name: config[name] for name in names}, compressor=compressor)
        for parameter in drafter.parameters():  # not the rotary frequencies, which stay in float32
            parameter.data = parameter.data.to(target.dtype)
        return drafter


def has_unstored(drafter: nn.Module) -> bool:
    """Return True if a module on the meta device has tensors there that no checkpoint will bring: computed ones."""
    stored = {id(tensor) for tensor in drafter.state_dict(keep_vars=True).values()}
    holders = [values for module in drafter.modules() for values in (vars(module), module._buffers)]
    tensors = [value for values in holders for value in values.values() if isinstance(value, Tensor)]
    return any(tensor.is_meta and id(tensor) not in stored for tensor in tensors)
