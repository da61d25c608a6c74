"""FeatureHead: how a small head reads a text with the target's hidden states, and what stands in its slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, VisualCompressor, text_alone, whole_prompt
from ..errors import MMSpecError, shown
from ..models.slots import pick
from ..models.states import LAST
from ..trees import TreeBuilder
from .corrector import CorrectorSettings, Looked, VisualCorrector
from .feature_settings import FeatureSettings
from .layer import DraftLayer, Rope
from .layer_head import LayerDrafter
from .reading import TargetView, compress
from .rope import Turning

if TYPE_CHECKING:
    from ..target import Target


class FeatureHead(LayerDrafter):
    """The part of a `FeatureDrafter` that is the same whether it drafts or is trained: how it reads a text, and what a
    method says of its slots.

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`.
        compressor: the compressor through which it reads pictures; none by default.
        settings: fields of `Settings`, see `FeatureSettings`.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target, such as another hidden size than its own.
    """

    Settings = FeatureSettings
    settings: FeatureSettings

    guesses_features = True
    """True if the layer's output stands for a state of the target, with which a loss can compare it."""

    first_slot = 0
    """Slots before the first one that has a state: 1 where the first token has a slot of its own."""

    _looked: Looked | None = None  # what the corrector can look at, of the request or batch of lessons at hand

    def __init__(
        self,
        target: Target,
        *,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
        **settings: Any,
    ):
        super().__init__(target, tree=tree, compressor=compressor, **settings)
        self.corrector: VisualCorrector | None = None
        asked = getattr(self.settings, "corrector", None)  # not all heads have the setting
        if asked is not None:
            if not self.takes_corrector:
                raise MMSpecError(
                    f"{type(self).__name__}: corrector={shown(asked)}: no single state stands before its vocabulary "
                    "head; leave it out, or put it on another head such as Eagle3Drafter"
                )
            told = CorrectorSettings(**asked)
            self.corrector = VisualCorrector(told, self.head.hidden_size, self.target.hidden_size)
            if told.reads == "states":
                self.feature_layers = tuple(dict.fromkeys([*self.feature_layers, LAST]))

    @property
    def takes_corrector(self) -> bool:
        """True if a corrector can stand before its vocabulary head."""
        return True

    # What a method is.

    @property
    def layer(self) -> DraftLayer:
        """The layer whose keys and values are cached; the first one if there are several."""
        raise NotImplementedError

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the states `[..., hidden]` that stand in the slots, from true features `[..., target hidden]` by
        layer."""
        raise NotImplementedError

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
        positions = prompt.positions if prompt.state_positions is None else prompt.state_positions
        return positions[..., :-1]

    def next_state(self, output: Tensor) -> Tensor:
        """Return the state of the next draft step, from the layer's output."""
        return output

    def head_input(self, output: Tensor) -> Tensor:
        """Return what the vocabulary head reads, from the layer's output."""
        return output

    def corrected(self, output: Tensor, level: int | Tensor) -> Tensor:
        """Return `[batch, nodes, hidden]` outputs of the layer as the corrector has them, if there is one and something
        to look at.

        Args:
            output: the outputs.
            level: the level of the nodes, see `VisualCorrector.forward`.
        """
        if self.corrector is None or self._looked is None:
            return output
        return self.corrector(output, self._looked, level)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., draft_vocab]` from `head_input`. By default the head is the target's own, on the draft
        vocabulary."""
        return self.target.family.head(hidden, self._head_rows)

    # Reading.

    def read(self, view: TargetView) -> DraftPrompt:
        """Return a text as this drafter reads it: `[batch, entries, hidden]` embeddings and states, not yet paired, as
        many entries as tokens where nothing is compressed.

        Raises:
            MMSpecError: for a prompt without text, or a picture that does not have what the compressor needs.
        """
        scope = self._scope_of(view)
        ids, family = view.request.inputs["input_ids"], self.target.family
        visual = family.is_visual(ids)
        embeds = self.entering(view, visual, scope).to(self._dtype)
        if self.corrector is not None:  # it sees all of a picture, whatever a compressor leaves
            seen = view.embeds if self.corrector.settings.reads == "embeds" else view.features[LAST]
            self._looked = self.corrector.look_at(seen, visual)
        if not self.settings.visual:  # bare placeholders
            embeds = self.token_embeds(ids)
        elif self.embed_tokens is not None:
            embeds = torch.where(visual[..., None], embeds, self.token_embeds(ids))
        blind = scope == "text" and view.vision is not None
        if blind and self.compressor is None:  # only states that are left are fused: these are their numbers
            states = torch.arange(ids.shape[1], device=ids.device)[:, None].expand(len(ids), -1, -1)
        else:
            states = self.fuse_features(view.features)
        whole = whole_prompt(embeds, states, visual)
        if self.axes is not None:
            whole.positions, whole.position_offset = family.positions_until(view.prompt.inputs, ids.shape[1])
        read = compress(self.compressor, self.target, whole, view)
        return self._text_of(read, view) if blind else read

    def _text_of(self, read: DraftPrompt, view: TargetView) -> DraftPrompt:
        """Return what is left of a text as it was read where text alone is seen; without a compressor its states are
        numbers of tokens until now."""
        ends = torch.tensor(view.prompt.lengths, device=read.removed.device) - read.removed
        columns = torch.arange(read.visual.shape[1], device=ends.device)
        if not (~read.visual & (columns < ends[:, None])).any(1).all():
            name = type(self).__name__
            raise MMSpecError(
                f"{name}: a prompt has no text beside its pictures, so nothing is left to read; ask a question"
            )
        left = text_alone(read, ends, keep_first=not self.first_slot)
        if self.compressor is None:
            numbers = left.states[..., 0]
            features = {layer: pick(view.features[layer], numbers) for layer in self.feature_layers}
            left.states = self.fuse_features(features)
        return left

    def entering(self, view: TargetView, visual: Tensor, scope: str) -> Tensor:
        """Return what enters at all tokens, before a compressor, `[batch, length, hidden]`: the target's embeddings.

        Args:
            view: the text.
            visual: `[batch, length]` True at the tokens of pictures, videos and sounds.
            scope: what will be seen of it, `all` or `text`.
        """
        return view.embeds

    # What is attended to.

    def with_scope(self, scope: Literal["all", "text"]) -> Self:
        """Return this drafter with another `attention_scope`: a copy that shares its weights.

        Raises:
            MMSpecError: for what is no scope, or a drafter that has none.
        """
        name = type(self).__name__
        if not isinstance(self.settings, FeatureSettings):
            raise MMSpecError(
                f"{name} has no attention_scope: it pairs no states with tokens, so compressor=hide leaves text alone"
            )
        drafter = cast(Self, self.fork())
        drafter.take_scope(scope)
        return drafter

    def take_scope(self, scope: Literal["all", "text"]) -> None:
        """Attend to another part of the prompt from now on.

        Raises:
            MMSpecError: for what is no scope; for text alone, where a compressor is to choose among visual tokens.
        """
        self.settings = replace(self.settings, attention_scope=scope)
        if self.compressor is not None:
            self.refuse_routing(self.compressor)

    def refuse_routing(self, compressor: VisualCompressor) -> None:
        """Refuse a compressor that is asked before every round what is seen, see `Drafter.refuse_routing`: also where
        text alone is seen."""
        super().refuse_routing(compressor)
        told = self.settings
        scopes = (told.attention_scope, told.training_scope) if isinstance(told, FeatureSettings) else ()
        if compressor.routes and "text" in scopes:
            raise MMSpecError(
                f"{type(compressor).__name__} chooses what is seen of pictures, and this {type(self).__name__} attends "
                "to text alone: leave the compressor out, or say attention_scope=all"
            )

    def _scope_of(self, view: TargetView) -> Literal["all", "text"]:
        """Return what is seen of a text: in training as the settings say, and else as in drafting."""
        told = self.settings
        return (told.training_scope if view.taught and self.training else None) or told.attention_scope

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.layer.self_attn.q_proj.weight.dtype

    # Small parts.

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return all weights but the embedding's, or those of the corrector, where it learns alone."""
        if self.corrector is not None and self.corrector.settings.alone:
            return self.corrector.parameters()
        return super().trainable_parameters()

    def _rope(self, like: Tensor, slots: Tensor) -> Rope:
        """Return cosines and sines for slots, in the dtype of a tensor."""
        return self._turning.at(slots, like.dtype)

    def _prepare(self) -> None:
        """Look up what stays the same for a request, or for a batch of lessons."""
        self._head_rows = self._rows()
        self._embed = self._embedder()
        self._turning = Turning(self.rotary, self.axes)
