"""Plain causal language models: Llama, Qwen3, Mistral and their like."""

from __future__ import annotations

from transformers import PreTrainedModel

from .base import Family


class CausalLM(Family):
    """A model that takes no pictures. Those that the test suite compares with `generate` are listed; another checks
    itself when a target is made of it."""

    model_types = (
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "mixtral",
        "gemma2",
        "gemma3_text",
        "olmo3",
        "phi3",
        "gpt_oss",
        "deepseek_v3",
    )

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.verified = model.config.model_type in self.model_types

    def encoders_of(self, model: PreTrainedModel) -> tuple[()]:
        """Return none."""
        return ()
