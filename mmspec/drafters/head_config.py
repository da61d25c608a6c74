"""The sizes of a draft head: those of its target with some changes, and its first weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import LlamaConfig

from ..errors import MMSpecError

if TYPE_CHECKING:
    from ..target import Target

HEAD_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "attention_bias",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
)

MROPE_SETTINGS = ("mrope_section", "mrope_interleaved")
"""Of `rope_parameters`, for heads whose positions have several axes, see `mmspec.drafters.rope`."""


def head_config(target: Target, changes: dict[str, Any]) -> LlamaConfig:
    """The layer's configuration: that of the target's language model with some changes.

    Raises:
        MMSpecError: for a setting that does not exist.
    """
    if unknown := sorted(set(changes) - set(HEAD_SETTINGS)):
        raise MMSpecError(f"head settings {', '.join(unknown)} are unknown; there are {', '.join(HEAD_SETTINGS)}")
    text = target.family.text_config
    settings = {name: getattr(text, name) for name in HEAD_SETTINGS if getattr(text, name, None) is not None}
    # Positions are one-dimensional and unscaled, so of the target's only the base is taken over.
    rope = getattr(text, "rope_parameters", None) or {}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    settings.setdefault("hidden_act", getattr(text, "hidden_activation", None) or "silu")
    settings.setdefault("head_dim", text.hidden_size // text.num_attention_heads)
    settings |= changes
    rope = dict(settings["rope_parameters"])
    # transformers warns of what its Llama has no use for.
    axes = {name: rope.pop(name) for name in MROPE_SETTINGS if name in rope}
    config = LlamaConfig(**settings | {"rope_parameters": rope})
    config.rope_parameters |= axes
    return config


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of all linear maps anew, and clear their biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
