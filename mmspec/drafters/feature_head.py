"""FeatureHead: how a small head reads a text with the target's hidden states, and what stands in its slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, VisualCompressor, whole_prompt
from ..errors import MMSpecError, shown
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
        return prompt.positions[..., :-1]

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
        ids, family = view.request.inputs["input_ids"], self.target.family
        embeds, visual = view.embeds.to(self._dtype), family.is_visual(ids)
        if self.corrector is not None:  # it sees all of a picture, whatever a compressor leaves
            seen = view.embeds if self.corrector.settings.reads == "embeds" else view.features[LAST]
            self._looked = self.corrector.look_at(seen, visual)
        if not self.settings.visual:  # bare placeholders
            embeds = self.token_embeds(ids)
        elif self.embed_tokens is not None:
            embeds = torch.where(visual[..., None], embeds, self.token_embeds(ids))
        whole = whole_prompt(embeds, self.fuse_features(view.features), visual)
        if self.axes is not None:
            whole.positions, whole.position_offset = family.positions_until(view.prompt.inputs, ids.shape[1])
        return compress(self.compressor, self.target, whole, view)

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
