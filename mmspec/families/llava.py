"""LLaVA-1.5: a CLIP tower and a two-layer projector before a Llama; a fixed number of tokens per picture."""

from __future__ import annotations

from .base import Family


class Llava(Family):
    """`LlavaForConditionalGeneration`, exactly the shape that the base class describes."""

    model_types = ("llava",)
    vision_inputs = ("pixel_values", "image_sizes")
