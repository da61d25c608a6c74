"""LLaVA-1.5: a CLIP tower and a two-layer projector before a Llama; a fixed number of tokens per picture."""

from __future__ import annotations

from transformers import PreTrainedModel

from .base import Family
from .encoders import Encoder


class Llava(Family):
    """`LlavaForConditionalGeneration`, exactly the shape that the base class describes. With a Pixtral tower (which
    takes pictures of any size) the rows of a picture are separated by tokens of their own."""

    model_types = ("llava",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [Encoder(model, "image", "pixel_values", "image_sizes")]
