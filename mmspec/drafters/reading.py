"""How drafters on hidden states read a prompt: embeddings and states of its tokens, with the pictures compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention import received_attention
from ..compressors import DraftPrompt, VisualCompressor, compressed_prompt, is_visual, layout_of, whole_prompt
from ..families import Vision
from ..inputs import Request
from ..runner import LAST

if TYPE_CHECKING:
    from .feature import FeatureDrafter


class PromptReader:
    """The part of a `FeatureDrafter` that knows about pictures."""

    def take_compressor(self: FeatureDrafter, compressor: VisualCompressor) -> None:
        """See the pictures through a compressor, and ask the target for the states that it looks at.

        Raises:
            MMSpecError: if it does not fit the target's hidden size.
        """
        compressor.attach(self.target.hidden_size, self.target.hidden_size)
        self.compressor = compressor
        layers = [LAST, self._deepest] if compressor.needs_attention else [LAST]
        self.feature_layers = tuple(dict.fromkeys([*self.feature_layers, *layers]))

    def read(
        self: FeatureDrafter,
        request: Request,
        prompt: Request,
        embeds: Tensor,
        features: dict[int, Tensor],
        vision: Vision | None,
    ) -> DraftPrompt:
        """A request as this drafter reads it: states and embeddings not yet paired.

        Args:
            request: the prompt, or the prompt and an answer.
            prompt: the prompt alone.
            embeds: `[batch, length, hidden]` what the target read.
            features: layer to `[batch, length, hidden]`, of all `feature_layers`.
            vision: the encoded pictures, or None.

        Returns:
            `[batch, entries, hidden]` embeddings and states, as many entries as tokens where nothing is compressed.

        Raises:
            MMSpecError: for a prompt without text, or a picture that does not have what the compressor needs.
        """
        ids, family = request.inputs["input_ids"], self.target.family
        whole = whole_prompt(self._prompt_embeds(ids, embeds), self.absorb(features), is_visual(ids, family))
        if self.compressor is None or vision is None:
            return whole
        layout, attention = layout_of(family, request, prompt, vision), None
        if self.compressor.needs_attention:
            states = features[self._deepest]
            attention = received_attention(self.target, self._deepest, states, request.inputs, layout.words)
        return compressed_prompt(self.compressor, whole, layout, features[LAST], attention)

    @property
    def _deepest(self: FeatureDrafter) -> int:
        """The number of the target's last layer, and so of the feature that enters it."""
        return len(self.target.family.layers) - 1

    @property
    def _dtype(self: FeatureDrafter) -> torch.dtype:
        return self.layer.self_attn.q_proj.weight.dtype

    def _token_embeds(self: FeatureDrafter, tokens: Tensor) -> Tensor:
        """`[batch, length, hidden]` embeddings of `[batch, length]` tokens, in this drafter's dtype."""
        return self.target.family.embed(tokens, None).to(self._dtype)

    def _prompt_embeds(self: FeatureDrafter, ids: Tensor, merged: Tensor) -> Tensor:
        """`[batch, length, hidden]` embeddings of a prompt: as the target read it, or with bare placeholders."""
        if self.visual:
            return merged.to(self._dtype)
        image, size = self.target.family.image_token_id, self.target.model.get_input_embeddings().num_embeddings
        if image is not None and image >= size:  # the placeholder has no row of its own in the table
            ids = ids.masked_fill(ids == image, 0)
        return self._token_embeds(ids)
