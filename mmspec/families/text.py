"""Plain causal language models: Llama, Qwen3, Mistral and their like."""

from __future__ import annotations

from .base import Family


class CausalLM(Family):
    """A model that takes no pictures."""

    vision_inputs = ()

    @property
    def image_token_id(self) -> None:
        return None
