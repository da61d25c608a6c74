"""The sizes of a draft head: those of its target with some changes, and its first weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN

from ..errors import MMSpecError, did_you_mean, first_line, listed, shown
from ..settings.arguments import as_int, is_number

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
"""Names in `rope_parameters`, for heads whose positions have several axes, see `mmspec.drafters.rope`."""

MOST_AT_ONCE = 1024
"""Tokens at most that a pass may be told to guess: the square of their number is kept in memory."""

STATIC_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not change with the length of the text."""


def head_config(target: Target, changes: dict[str, Any]) -> LlamaConfig:
    """Return the layer's configuration: that of the target's language model with some changes.

    Raises:
        MMSpecError: for a setting that does not exist, or that no layer can have.
    """
    if not isinstance(changes, dict):
        raise MMSpecError(f"head={shown(changes)} must be settings by name; there are {', '.join(HEAD_SETTINGS)}")
    if unknown := set(changes) - set(HEAD_SETTINGS):
        raise MMSpecError(f"head settings {listed(unknown)} are unknown; there are {', '.join(HEAD_SETTINGS)}")
    text = target.family.layer_config
    settings = {name: getattr(text, name) for name in HEAD_SETTINGS if getattr(text, name, None) is not None}
    # Positions are one-dimensional and unscaled, so of the target's only the base is taken over.
    rope = getattr(text, "rope_parameters", None) or {}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    settings.setdefault("hidden_act", getattr(text, "hidden_activation", None) or "silu")
    settings.setdefault("head_dim", text.hidden_size // text.num_attention_heads)
    settings |= changes
    _check(settings)
    rope = dict(settings["rope_parameters"])
    # transformers warns of what its Llama has no use for.
    axes = {name: rope.pop(name) for name in MROPE_SETTINGS if name in rope}
    try:
        config = LlamaConfig(**settings | {"rope_parameters": rope})
    except Exception as error:  # what transformers' own checks say comes in types of several libraries
        raise MMSpecError(f"transformers has no layer with these head settings: {first_line(error)}") from error
    config.rope_parameters = dict(config.rope_parameters or {}) | axes
    return config


def _check(settings: dict[str, Any]) -> None:
    """Refuse settings that no layer can have: of another type, out of range, or contradicting each other."""
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    for name in (*sizes, "max_position_embeddings"):
        value = settings.get(name, 1)
        if as_int(value) is None or value < 1:
            raise MMSpecError(f"head setting {name}={shown(value)} must be a positive integer")
    heads, shared = settings["num_attention_heads"], settings.get("num_key_value_heads", 1)
    if heads % shared:
        raise MMSpecError(
            f"head settings num_attention_heads={shown(heads)} and num_key_value_heads={shown(shared)} do not fit: "
            "every key must be shared by equally many queries"
        )
    if settings["head_dim"] % 2:
        raise MMSpecError(f"head setting head_dim={shown(settings['head_dim'])} must be even, as positions turn pairs")
    if not is_number(eps := settings.get("rms_norm_eps", 0)) or eps < 0:
        raise MMSpecError(f"head setting rms_norm_eps={shown(eps)} must be a number from 0 on")
    if not isinstance(bias := settings.get("attention_bias", False), bool):
        raise MMSpecError(f"head setting attention_bias={shown(bias)} must be true or false")
    act = settings["hidden_act"]
    if not isinstance(act, str) or act not in ACT2FN:
        raise MMSpecError(f"head setting hidden_act={shown(act)} is unknown.{did_you_mean(str(act), ACT2FN)}")
    rope = settings["rope_parameters"]
    if not isinstance(rope, dict):
        raise MMSpecError(f"head setting rope_parameters={shown(rope)} must be settings by name")
    for name, value in rope.items():
        if not (isinstance(value, bool) or is_number(value)) and name not in ("rope_type", *MROPE_SETTINGS):
            raise MMSpecError(f"head setting rope_parameters.{name}={shown(value)} must be a number")
    if (kind := rope.get("rope_type", "default")) not in STATIC_ROPES:
        raise MMSpecError(
            f"head setting rope_parameters.rope_type={shown(kind)} is not supported in a drafter, only "
            f"{', '.join(STATIC_ROPES)}"
        )
    if not is_number(base := rope.get("rope_theta", 1.0)) or base <= 0:
        raise MMSpecError(f"head setting rope_parameters.rope_theta={shown(base)} must be a number above 0")


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of all linear maps anew, and clear their biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
