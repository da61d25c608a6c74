"""Writing: text, or the tokens of pictures, and how guidance works on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..decoding.token_space import TEXT, TokenSpace
from ..errors import MMSpecError
from .view import ModelView


class Writing(ModelView):
    """The part of a family that is about what is written, with the answers for text."""

    writes = "text"
    """Its tokens make `"text"` or an `"image"`. A model that can write both has a family for each."""
    template_options: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of its processor, besides the texts."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens that can be written: the logits are about so many."""
        return self.text_config.vocab_size

    @property
    def known_ids(self) -> int:
        """The number of ids that can be read, from 0; placeholders of media may lie beyond them."""
        return len(self.model.get_input_embeddings().weight)

    def ids_of_text(self, ids: Tensor) -> Tensor:
        """Return the ids under which the tokens of a text are read: the tokenizer's own, where text is written."""
        return ids

    @property
    def token_space(self) -> TokenSpace:
        """The meaning of the ids; nothing special for text."""
        return TEXT

    def own_guidance(self, scale: float | None) -> float | None:
        """Return the scale with which the model's own `generate` is guided, given that of its configuration."""
        return scale

    def unguided(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the prompts that guidance leads away from where no others are given, from those of a request: the last
        token alone, as in transformers."""
        lengths = inputs["attention_mask"].long().sum(-1, keepdim=True)
        last = inputs["input_ids"].gather(1, lengths - 1)
        other = {"input_ids": last, "attention_mask": torch.ones_like(last)}
        self.add_missing_inputs(other)
        return other

    def guided_logits(self, logits: Tensor) -> Tensor:
        """Return what guidance combines, made from logits: for text, log-probabilities."""
        return logits.log_softmax(-1)

    def pixels(self, codes: Tensor) -> Tensor:
        """Decode `[batch, tokens]` tokens to pictures, `[batch, height, width, channels]`.

        Raises:
            MMSpecError: if its tokens are text.
        """
        raise MMSpecError(
            f"{type(self.model).__name__} writes {self.writes} here, and no picture; a model that can write pictures "
            "does so as Target(model, processor, writes='image')"
        )
