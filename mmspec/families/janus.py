"""Janus: a vision-language model that answers in text, and in a second way in the codes of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ..compat import CACHE
from ..decoding.token_space import TokenSpace
from ..errors import MMSpecError
from .base import Family
from .encoders import Encoder
from .vision import Vision


class JanusPictures(Encoder):
    """Pictures that are read, not written."""

    @property
    def projector(self) -> nn.Module:
        """The module behind the vision tower."""
        return self.model.model.aligner


class Janus(Family):
    """`JanusForConditionalGeneration` that reads pictures and writes text."""

    model_types = ("janus",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [JanusPictures(model, "image", "pixel_values")]

    def own_guidance(self, scale: float | None) -> None:
        """Return None: the configuration's guidance is for pictures; the model's own `generate` writes text without."""


class JanusImages(Family):
    """A second view of the model: it writes a picture, one code of its quantiser after another, row by row, as many as
    the vision tower has tokens, and no end token.

    The codes have an embedding and a head of their own. Here they are the ids from 0, and the text of a prompt stands
    behind them: a text token's id is `codes + id`. So every id means one thing, and drafters and training need not know
    where the prompt ends.
    """

    model_types = ("janus",)
    writes = "image"
    shapes_logits = False
    template_options = {"generation_mode": "image"}

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return none: no picture can be shown to a model that draws."""
        return []

    @property
    def vocab_size(self) -> int:
        """The codes: all that is ever written."""
        return self.model.model.generation_embeddings.num_embeddings

    @property
    def known_ids(self) -> int:
        """The codes, and the text behind them."""
        return self.vocab_size + super().known_ids

    @property
    def token_space(self) -> TokenSpace:
        """The codes with their vectors, in a square."""
        side = math.isqrt(self.model.model.vision_model.config.num_image_tokens)
        codebook = self.model.model.vqmodel.quantize.embedding.weight
        return TokenSpace(codes=(0, self.vocab_size - 1), codebook=codebook, grid=(side, side))

    def ids_of_text(self, ids: Tensor) -> Tensor:
        """Return the ids of a text, which stand behind the codes."""
        return ids + self.vocab_size

    def embed(self, input_ids: Tensor, vision: Vision | None) -> Tensor:
        """Return the embeddings of codes and of text, each by its own table."""
        codes = input_ids < self.vocab_size
        text = super().embed((input_ids - self.vocab_size).clamp(min=0), vision)
        return torch.where(codes[..., None], self._embed_codes(input_ids.masked_fill(~codes, 0)), text)

    def embedder(self) -> Callable[[Tensor], Tensor]:
        """Return `embed` without anything encoded."""
        return lambda tokens: self.embed(tokens, None)

    def _embed_codes(self, codes: Tensor) -> Tensor:
        """Return the embeddings of codes."""
        with self.passing():
            return self.model.prepare_embeddings_for_image_generation(codes)

    def forward(self, **arguments: Any) -> Tensor:
        """Run the language model on embeddings or codes; the logits are those of the head of codes."""
        if (codes := arguments.pop("input_ids", None)) is not None:
            arguments["inputs_embeds"] = self._embed_codes(codes)
        return self.forward_decoder(**arguments)

    def probe(self, token: Tensor, cache: Cache) -> Tensor:
        """Return the logits of a single code, `[1, 1, vocab]`; see `Family.probe`."""
        return self.forward(input_ids=token, position_ids=token, use_cache=True, **{CACHE: cache})

    def head_rows(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the last layer of the head of codes."""
        last = self.model.model.generation_head.vision_head
        weight, bias = last.weight, last.bias
        return (weight, bias) if tokens is None else (weight[tokens], None if bias is None else bias[tokens])

    def head(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Return the logits of codes for states after the final norm."""
        own = self.model.model.generation_head
        return nn.functional.linear(own.activation_fn(own.proj_out(hidden)), *(rows or self.head_rows()))

    def compare_head(self, hidden: Tensor, logits: Tensor) -> None:
        """Compare nothing: `head` is what makes the logits here."""

    def own_guidance(self, scale: float | None) -> float:
        """Return the configuration's scale, and 5 without one, as in the model's own loop."""
        return 5.0 if scale is None else scale

    def unguided(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the prompts with padding in place of all but the start token and the one that begins the picture."""
        config = self.model.generation_config
        begin = (getattr(config, "generation_kwargs", None) or {}).get("boi_token_id")
        kept = {"bos_token_id": config.bos_token_id, "generation_kwargs['boi_token_id']": begin}
        needed = kept | {"pad_token_id": config.pad_token_id}
        if missing := [name for name, token in needed.items() if token is None]:
            raise MMSpecError(
                f"guidance_scale: the prompts without a text need {missing[0]} in model.generation_config of "
                f"{type(self.model).__name__}: set it, or pass guidance_scale=1 or negative_prompt="
            )
        ids = inputs["input_ids"]
        stays = torch.zeros_like(ids, dtype=torch.bool)
        for token in kept.values():
            stays |= ids == token + self.vocab_size
        return {
            "input_ids": ids.masked_fill(~stays, config.pad_token_id + self.vocab_size),
            "attention_mask": inputs["attention_mask"],
        }

    def guided_logits(self, logits: Tensor) -> Tensor:
        """Return the logits as they are."""
        return logits

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> Tensor:
        """Decode the codes of pictures."""
        with self.passing():
            return self.model.decode_image_tokens(codes)
