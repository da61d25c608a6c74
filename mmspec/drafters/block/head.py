"""BlockHead: what a block drafter is made of, what it reads of the target, and what its slots say."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...compressors import DraftPrompt, whole_prompt
from ...models.states import before_joining
from ...trees.proposals import IMPOSSIBLE
from ..head_config import initialise
from ..layer import Rope
from ..layer_head import LayerDrafter
from ..reading import TargetView, compress
from ..rope import Turning, axes_of
from ..vocabulary import place_of
from .correction import Correction, LookAhead, Walk
from .fusion import fused, weights_at_first
from .layer import BlockConv, BlockLayer
from .settings import BlockSettings
from .sight import Places, Sight


class BlockHead(LayerDrafter):
    """The layers and maps of a block drafter, without the way in which it drafts and learns, which is `BlockDrafter`'s.

    The arguments are those of `BlockDrafter`.
    """

    Settings = BlockSettings
    settings: BlockSettings

    # What a method is.

    @property
    def correction(self) -> Correction | LookAhead | None:
        """The model of how a guess depends on the tokens above it; None if it does not."""
        return None

    def _walk_of(self, base: Tensor | None, hidden: Tensor, newest: Tensor) -> Walk | None:
        """Return the way down from anchors, see `LookAhead.walk`, which alone needs any of this; None where nothing is
        corrected."""
        correction = self.correction
        if not isinstance(correction, LookAhead):
            return correction
        assert base is not None, "the callers have asked"
        return correction.walk(base, hidden, newest, self.token_embeds, self.draft_vocabulary)

    def sureness(self, hidden: Tensor, state: Tensor) -> Tensor | None:
        """Return `[...]` logits of the chance that a token below some nodes is accepted; None without an estimate.

        Args:
            hidden: `[..., hidden]` normed states of the slots that guess these tokens.
            state: `[..., size]` the correction's states of the nodes.
        """
        return None

    def build(self) -> None:
        """Make the fusion, the layers and, if it has one, the vocabulary head."""
        settings, hidden, eps = self.settings, self.head.hidden_size, self.head.rms_norm_eps
        self.max_depth = settings.drafts
        if settings.rope == "mrope":
            assert self.head.head_dim is not None  # LlamaConfig fills it in
            self.axes = axes_of(dict(self.head.rope_parameters or {}), self.head.head_dim)
        self.taps = tuple(settings.feature_layers or ())
        if settings.before_deepstack:
            self.taps = before_joining(self.taps, self.target.family.joined_layers)
        self.feature_layers = tuple(dict.fromkeys(self.taps + self.feature_layers))  # and what the compressor wants
        self.fc = self.layer_fusion_weights = None
        if settings.fusion != "mix":
            self.fc = nn.Linear(len(self.taps) * self.target.hidden_size, hidden, bias=False)
        if settings.fusion != "linear":
            self.layer_fusion_weights = nn.Parameter(weights_at_first(settings.layers, len(self.taps)))
        self.hidden_norm = nn.RMSNorm(hidden, eps=eps)
        self.layers = nn.ModuleList([BlockLayer(self.head, settings) for _ in range(settings.layers)])
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.lm_head = self.mask_embedding = None
        if settings.own_head:
            self.lm_head = nn.Linear(hidden, self.draft_vocab_size or self.target.vocab_size, bias=False)
        initialise(self)
        for part in self.modules():
            if isinstance(part, BlockConv):
                part.reset()
        if settings.mask_token_id is None:
            self.mask_embedding = nn.Parameter(torch.empty(hidden).normal_(std=0.02))
        windows = settings.windows or [None] * settings.layers
        self._sights = [
            Sight(settings.causal or (settings.causal_windows and window is not None), window) for window in windows
        ]

    @property
    def _blocks(self) -> list[BlockLayer]:
        """The layers."""
        return cast(list[BlockLayer], list(self.layers))

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.norm.weight.dtype

    # Reading.

    def read(self, view: TargetView) -> DraftPrompt:
        """Return a text as this drafter reads it: the states of the target's layers side by side, as many entries as
        tokens where nothing is compressed.

        Raises:
            MMSpecError: for a prompt without text, or a picture that does not have what the compressor needs.
        """
        ids, family = view.request.inputs["input_ids"], self.target.family
        whole = whole_prompt(view.embeds.to(self._dtype), self._taps_of(view.features), family.is_visual(ids))
        if self.axes is not None:
            whole.positions, whole.position_offset = family.positions_until(view.prompt.inputs, ids.shape[1])
        return compress(self.compressor, self.target, whole, view)

    def _taps_of(self, features: dict[int, Tensor]) -> Tensor:
        """Return the states that are fused, side by side."""
        return torch.cat([features[layer] for layer in self.taps], dim=-1).to(self._dtype)

    def _fused(self, states: Tensor) -> Tensor:
        """Return `[layers or 1, batch, length, hidden]` fused states, see `fused`."""
        return fused(states, self.fc, self.layer_fusion_weights, self.hidden_norm)

    def _embedder(self) -> Callable[[Tensor], Tensor]:
        """Return the function from tokens to embeddings; with a factor of its own, from the rows of the table."""
        scale = self.settings.embedding_scale
        if scale is None:
            return super()._embedder()
        table = self.target.model.get_input_embeddings() if self.embed_tokens is None else self.embed_tokens
        weight = table.weight
        return lambda tokens: functional.embedding(tokens, weight) * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., draft_vocab]` of `[..., hidden]` normed states: none for the mask token."""
        settings, family = self.settings, self.target.family
        if settings.logit_scale is None and settings.logit_cap is None and self.lm_head is None:
            logits = family.head(hidden, self._head_rows)
        else:
            logits = self._own_logits(hidden)
        return logits if self._barred is None else logits.index_fill(-1, self._barred, IMPOSSIBLE)

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """Return logits that are scaled and capped as the settings say."""
        settings, family = self.settings, self.target.family
        scale, cap = settings.logit_scale, settings.logit_cap
        if self.lm_head is not None:
            logits = self.lm_head(hidden)
        else:
            assert self._head_rows is not None, "looked up where there is no head of its own"
            weight, bias = (None if part is None else part.to(hidden.dtype) for part in self._head_rows)
            assert weight is not None
            logits = functional.linear(hidden, weight, bias)
            scale, cap = family.logit_scale if scale is None else scale, family.logit_cap if cap is None else cap
        logits = logits if scale is None else logits * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    # The block.

    def block_inputs(self, anchors: Tensor) -> Tensor:
        """Return the inputs of blocks, `[batch, anchors * block_size, hidden]`, from `[batch, anchors]` tokens."""
        masks = self.settings.block_size - 1
        embeds = self.token_embeds(anchors)[:, :, None]
        mask = self._mask.expand(*embeds.shape[:2], masks, -1)
        return torch.cat([embeds, mask], dim=2).flatten(1, 2)

    @property
    def _mask(self) -> Tensor:
        """`[hidden]` what stands in slots without a token."""
        row = self.mask_embedding if self._mask_row is None else self._mask_row
        assert row is not None, "one of the two is there"
        return row

    def _rope(self, positions: Tensor, most: int) -> Rope:
        """Return cosines and sines at positions, none of which exceeds `most`."""
        return self._places.at(positions, self._dtype, most)

    def _prepare(self) -> None:
        """Look up what stays the same for a request, or for a batch of lessons."""
        settings = self.settings
        self._head_rows, self._embed = None if settings.own_head else self._rows(), self._embedder()
        self._places = Places(Turning(self.rotary, self.axes))
        self._barred: Tensor | None = None
        self._mask_row: Tensor | None = None
        if settings.mask_token_id is not None:
            token = torch.tensor([[settings.mask_token_id]], device=self.norm.weight.device)
            self._mask_row = self.token_embeds(token)[0, 0]
            self._barred = place_of(token[0], self.draft_vocabulary, self.target.vocab_size)
