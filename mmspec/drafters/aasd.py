"""AASD: a draft layer that attends to the target's own last keys and values, and to its own of what it has drafted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self, cast

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, VisualCompressor, whole_prompt
from ..lesson import Guess, Lesson
from ..models.cache import TreeCache
from ..models.cache_layer import SlotShape
from ..models.keys_values import Entries, deepest_cached, keys_values_of
from ..models.masks import MaskForm
from ..models.session import Session
from ..models.slots import pick, pick_numbers
from ..models.states import LAST
from ..models.transfer import to_device
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .aasd_training import Roots, chains, rounds
from .feature import FeatureDrafter
from .head_config import initialise
from .layer import DraftLayer
from .layer_head import LayerSettings
from .reading import TargetView, compress, layers_for, view_of
from .rope import axes_of, rope_of
from .step import StepDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class AasdSettings(LayerSettings):
    """The settings of an `AasdDrafter`, beside those of `LayerSettings`.

    Args:
        bias: whether the fusion of token and state has a bias.
        teaching: how it is trained, which changes nothing about how it drafts: `rounds`, one pass over true states in
            which every token stands at a drawn place of a round; or `chains`, every draft step by step, with its own
            states.
    """

    bias: bool = True
    teaching: Literal["chains", "rounds"] = "chains"

    def fit(self, target: Target) -> Self:
        """Turn as the layer does whose keys are read, unless `head` says otherwise."""
        fitted = super().fit(target)
        if "rope_parameters" in self.head:
            return fitted
        rope = rope_of(target, deepest_cached(target), fitted.head["head_dim"])
        return replace(fitted, head=fitted.head | {"rope_parameters": rope})


class AasdDrafter(FeatureDrafter):
    """The speculating module of AASD (DAC 2025, OpenReview M4EySXQdo4): one layer that reads the target's cache instead
    of the prompt.

    A slot belongs to a token x_t and holds `u_t = W [E(x_t); h_{t-1}] + b`, h the target's state after its final norm;
    the layer's queries attend to two kinds of keys and values side by side ("target-draft attention"): those that the
    target holds in its last layer for all tokens before the root, `P_K K_t` and `P_V V_t` with a learnt linear map
    each, and the layer's own of the root and of what is drafted below it. The normed output goes into the target's own
    vocabulary head, and stands for h at the next level. Nothing of the prompt has to be read, and nothing is cached but
    what the maps make of the target's cache; slots of a round are dropped when it ends.

    Faithful, as far as the abstract tells: the last layer's keys and values, their projector, target-draft attention,
    training that keeps apart what the target holds and what is drafted. Shapes, losses and lengths are unpublished, so
    that all else is our own: the linear maps, which begin as the identity where the heads agree; queries turned as the
    target's last layer turns its own, on all of its axes, so that they ask for keys where these stand; the norms;
    trees, ragged batches, several pictures. The projector's compression of pictures is a compressor's, as for other
    heads: what it leaves of a picture are means of the target's keys and values. Keys stay turned by the places of
    their tokens.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe `aasd`:
    cross-entropy and KL divergence in equal parts). A chain of n steps trains with the mask of rounds of n tokens;
    chains of one step are a training without it. A lesson computes the keys and values anew from the state that enters
    the layer, see `mmspec.models.keys_values`.

    The arguments are those of `FeatureDrafter`, and its settings those of `AasdSettings`.
    """

    Settings = AasdSettings  # type: ignore[assignment]  # there are no embeddings of pictures to choose
    settings: AasdSettings  # type: ignore[assignment]
    feature_layers: tuple[int, ...] = (LAST,)
    guesses_features = False

    def build(self) -> None:
        """Make the fusion, the layer, the norm and the projectors."""
        hidden, eps, head = self.head.hidden_size, self.head.rms_norm_eps, self.head
        rope = dict(head.rope_parameters or {})
        if rope.get("mrope_section"):
            self.axes = axes_of(rope, head.head_dim or 0)
        self.fc = nn.Linear(2 * hidden, hidden, bias=self.settings.bias)
        self.layers = nn.ModuleList([DraftLayer(head, hidden)])
        self.layer.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.norm = nn.RMSNorm(hidden, eps=eps)
        own = self.layer.self_attn.slot
        (keys, values), width = self._shapes, own.heads * own.dim
        self.key_projector = nn.Linear(keys.heads * keys.dim, width, bias=False)
        self.value_projector = nn.Linear(values.heads * values.dim, width, bias=False)
        initialise(self)
        for shape, projector in ((keys, self.key_projector), (values, self.value_projector)):
            if (shape.heads, shape.dim) == (own.heads, own.dim):
                nn.init.eye_(projector.weight)

    @property
    def layer(self) -> DraftLayer:
        """The only layer."""
        return cast(DraftLayer, self.layers[0])

    @property
    def lesson_layers(self) -> tuple[int, ...]:
        """States that drafting reads, and the one that enters the layer whose keys and values are read."""
        return tuple(dict.fromkeys([*self.feature_layers, self._deepest]))

    @property
    def _deepest(self) -> int:
        """The layer of the target whose keys and values are read."""
        return deepest_cached(self.target)

    @property
    def _shapes(self) -> tuple[SlotShape, SlotShape]:
        """The shapes of the keys and the values that it holds of a token."""
        return self.target.cache_shapes[self._deepest]

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Let a compressor say what is left of the keys and values of pictures: it reads keys in place of embeddings.

        Raises:
            MMSpecError: if it does not fit their width, or chooses anew before every round.
        """
        keys, _ = self._shapes
        self.refuse_routing(compressor)
        compressor.meet(self.target)
        compressor.attach(keys.heads * keys.dim, self.target.hidden_size)
        self.compressor = compressor
        self.feature_layers = tuple(dict.fromkeys([*self.feature_layers, *layers_for(compressor, self.target)]))

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of tokens and states, normed, and as it is."""
        fused = self.fc(torch.cat([embeds, states], dim=-1))
        return self.layer.input_layernorm(fused), fused

    def next_state(self, output: Tensor) -> Tensor:
        """Return the normed output, which stands for a state of the target."""
        return self.norm(output)

    def head_input(self, output: Tensor) -> Tensor:
        """Return the normed output."""
        return self.norm(output)

    # What the target holds.

    def read(self, view: TargetView, held: Entries | None = None) -> DraftPrompt:
        """Return the keys, as `embeds`, and the values, as `states`, of a text, heads side by side: `[batch, entries,
        width]`, not yet projected.

        Args:
            view: the text.
            held: keys and values as the target holds them; by default they are computed from a state.
        """
        ids, family = view.request.inputs["input_ids"], self.target.family
        positions, offset = family.positions_until(view.prompt.inputs, ids.shape[1])
        if held is None:
            held = keys_values_of(self.target, self._deepest, view.features[self._deepest], positions)
        keys, values = (part[:, :, : ids.shape[1]].transpose(1, 2).flatten(2).to(self._dtype) for part in held)
        whole = whole_prompt(keys, values, family.is_visual(ids))
        whole.positions, whole.position_offset = positions, offset
        return compress(self.compressor, self.target, whole, view)

    def projected(self, keys: Tensor, values: Tensor) -> Entries:
        """Return keys and values for the layer to attend to, `[batch, key_value_heads, entries, head_dim]`, from those
        of the target, `[batch, entries, width]`."""
        dim = self.layer.self_attn.head_dim
        maps = ((self.key_projector, keys), (self.value_projector, values))
        first, second = (map(part).unflatten(-1, (-1, dim)).transpose(1, 2) for map, part in maps)
        return first, second

    def _held(self, context: Context) -> Entries:
        """Return the keys and values that the target holds of a request, of its own rows only under guidance."""
        keys, values = context.keys_values(self._deepest)
        device = context.lengths.device
        return keys[: context.batch_size].to(device), values[: context.batch_size].to(device)

    # Drafting.

    def start(self, context: Context) -> None:
        """Take what the target holds of the prompt, and its newest state."""
        self.context = context
        self._prepare()
        self._passes = self.passes()
        prompt = self.read(view_of(context), self._held(context))
        slot, size = self.layer.self_attn.slot, context.request.max_length + context.spare_capacity
        cache = TreeCache([(slot, slot)], context.batch_size, size)
        self.session = Session(cache, {"full_attention": None}, MaskForm.BOOLEAN, slot.dtype)
        lengths = torch.tensor(context.request.lengths, device=prompt.removed.device)
        self.session.enter([self.projected(prompt.embeds, prompt.states)], (lengths - prompt.removed).tolist())
        # The keys stand where the target has put them, wherever a compressor would have text move.
        offset = context.position_offset[..., : context.batch_size] + prompt.removed
        self.session.position_offset = offset if self.axes is not None or offset.ndim == 1 else offset[0]
        self.session.follow(context.history, context.active)
        self._seen = list(context.request.lengths)  # tokens that are projected
        self._states, self._steps = pick(context.features[LAST], lengths[:, None] - 1), 0
        self._guessed = [0] * context.batch_size

    def expand_root(self, root: Tensor) -> Tensor:
        """Project what the target has read since the last round, and read the root. Its slot, and those of tokens that
        the target has not read, are the layer's own until it has."""
        self._catch_up()
        own = self.session.pending
        before = self._guessed
        logits = super().expand_root(root)
        self._guessed = [count + new for count, new in zip(before, own, strict=True)]
        return logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Forget the slots of the round, and take the target's state of the last accepted token; go on from its own
        where the target was not asked."""
        if scores is None:
            super().observe(tree, scores, verdict)
            return
        StepDrafter.observe(self, tree, scores, verdict)
        self.refuse_tail(verdict)
        self.session.drop()
        if any(self._guessed):
            self._take_back()
        self._states, self._steps = pick(scores.features[LAST], verdict.last), 0

    def _catch_up(self) -> None:
        """Enter the projected keys and values of what the target has committed since this was called last."""
        context, session = self.context, self.session
        now = context.entries
        counts = [new - seen if on else 0 for new, seen, on in zip(now, self._seen, context.active, strict=True)]
        if not any(counts):
            return
        session.leave()
        device = context.lengths.device
        width, first = max(counts), to_device(self._seen, device)[:, None]
        keys, values = self._held(context)
        places = (first + torch.arange(width, device=device)).clamp(max=keys.shape[2] - 1)
        parts = (part.transpose(1, 2).flatten(2).to(self._dtype) for part in (keys, values))
        new = self.projected(*(session.present(pick(part, places)) for part in parts))
        session.cache.begin(width)
        session.cache.tree_layers[0].update(*new)
        session.cache.end()
        session.keep(counts)
        self._seen = [seen + count for seen, count in zip(self._seen, counts, strict=True)]

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`. A step sees what the target holds of the tokens before
        its root, and the layer's own slots from the root on: the target-draft mask. In training, `teaching` says
        whether further slots hold the draft's own states or those of the target."""
        at = self._roots(lesson)
        if self.training and torch.is_grad_enabled() and self.settings.teaching == "rounds":
            yield from rounds(self, lesson, at, steps)
        else:
            yield from chains(self, lesson, at, steps, detach)

    def _roots(self, lesson: Lesson) -> Roots:
        """Return the roots of a lesson, and what the target holds of its text."""
        self._prepare()
        prompt = self.read(view_of(lesson))
        held = self.projected(prompt.embeds, prompt.states)
        ids, slots = lesson.request.inputs["input_ids"], lesson.root_slots
        positions, _ = self.target.family.positions_until(lesson.prompt.inputs, ids.shape[1])
        positions = positions if self.axes is not None or positions.ndim == 2 else positions[0]
        return Roots(
            ids,
            slots,
            pick_numbers(positions, slots + 1),
            pick(lesson.features[LAST].to(self._dtype), slots),
            torch.arange(held[0].shape[2], device=ids.device) <= (slots - prompt.removed[:, None])[:, None, :, None],
            held,
        )
