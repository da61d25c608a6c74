"""The way in which drafters on hidden states read a prompt: embeddings and states of its tokens, with the pictures
compressed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from ..compressors import DraftPrompt, VisualCompressor, compressed_prompt, layout_of, whole_prompt
from ..errors import MMSpecError, shown
from ..families import Vision
from ..inputs import Request
from ..models.attention import received_attention
from ..models.states import LAST
from ..settings.arguments import as_int
from .layer import DraftLayer
from .step import StepDrafter
from .vocabulary import is_padding


class PromptReader(StepDrafter):
    """The part of a `FeatureDrafter` that reads prompts, pictures among them.

    Attributes:
        head: configuration of the layer.
        visual: True if the embedding of an image token is the target's visual embedding.
        rope: the kind of positions, see `mmspec.drafters.rope`.
    """

    head: LlamaConfig
    visual: bool
    rope: str

    @property
    def layer(self) -> DraftLayer:
        """The layer."""
        raise NotImplementedError

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the states `[..., hidden]` that stand in the slots, from true features `[..., target hidden]` by
        layer."""
        raise NotImplementedError

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Read the pictures through a compressor, and ask the target for the states that it looks at.

        Raises:
            MMSpecError: if it does not fit the target's hidden size.
        """
        compressor.attach(self.head.hidden_size, self.target.hidden_size)
        self.compressor = compressor
        layers = [LAST, self._deepest] if compressor.needs_attention else [LAST]
        self.feature_layers = tuple(dict.fromkeys([*self.feature_layers, *layers]))

    def take_embedding(self, rows: int | None) -> None:
        """Read tokens from an embedding of one's own, which is not trained; None reads the target's.

        It may lack some of the target's last tokens, which are padding then, and are read as token 0.

        Raises:
            MMSpecError: if it lacks more of them.
        """
        self.own_embedding = rows
        if rows is None:
            return
        vocab = self.target.vocab_size
        if as_int(rows) is None or (rows < vocab and not is_padding(rows, vocab)):
            raise MMSpecError(
                f"own_embedding={shown(rows)} rows are too few for the target's {vocab} tokens: both must share a "
                "tokenizer"
            )
        self.embed_tokens = nn.Embedding(rows, self.head.hidden_size)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return all weights but the embedding's."""
        return (weight for name, weight in self.named_parameters() if not name.startswith("embed_tokens."))

    def read(
        self,
        request: Request,
        prompt: Request,
        embeds: Tensor,
        features: dict[int, Tensor],
        vision: Vision | None,
    ) -> DraftPrompt:
        """Return a request as this drafter reads it: states and embeddings not yet paired.

        Args:
            request: the prompt, or the prompt and an answer.
            prompt: the prompt alone.
            embeds: `[batch, length, hidden]` embeddings that the target read.
            features: layer to `[batch, length, hidden]`, of all `feature_layers`.
            vision: the encoded pictures, or None.

        Returns:
            `[batch, entries, hidden]` embeddings and states, as many entries as tokens where nothing is compressed.

        Raises:
            MMSpecError: for a prompt without text, or a picture that does not have what the compressor needs.
        """
        ids, family = request.inputs["input_ids"], self.target.family
        whole = whole_prompt(self._prompt_embeds(ids, embeds), self.fuse_features(features), family.is_visual(ids))
        if self.rope == "mrope":
            whole.positions, whole.position_offset = family.positions_until(prompt.inputs, ids.shape[1])
        if self.compressor is None or vision is None:
            return whole
        layout, attention = layout_of(family, request, prompt, vision), None
        if self.compressor.needs_attention:
            states = features[self._deepest]
            attention = received_attention(self.target, self._deepest, states, request.inputs, layout.words)
        return compressed_prompt(self.compressor, whole, layout, features[LAST], attention)

    @property
    def _deepest(self) -> int:
        """The number of the target's last layer, and so of the feature that enters it."""
        return len(self.target.family.layers) - 1

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.layer.self_attn.q_proj.weight.dtype

    def _token_embeds(self, tokens: Tensor) -> Tensor:
        """Return `[batch, length, hidden]` embeddings of `[batch, length]` tokens, in this drafter's dtype."""
        if self.own_embedding is not None:
            return self.embed_tokens(tokens.masked_fill(tokens >= self.own_embedding, 0)).to(self._dtype)
        return self.target.family.embed(tokens, None).to(self._dtype)

    def _prompt_embeds(self, ids: Tensor, merged: Tensor) -> Tensor:
        """Return `[batch, length, hidden]` embeddings of a prompt: as the target read it, or with bare placeholders."""
        if not self.visual:
            return self._token_embeds(ids)
        merged = merged.to(self._dtype)
        if self.own_embedding is None:
            return merged
        return torch.where(self.target.family.is_visual(ids)[..., None], merged, self._token_embeds(ids))
