"""The sizes of a published layer, from the shapes of its weights; its configuration tells only what has no shape."""

from __future__ import annotations

import logging
from typing import Any

from ..drafters.head_config import STATIC_ROPES
from ..errors import MMSpecError, shown
from ..settings.arguments import is_number
from ..target import Target
from .checkpoint import Checkpoint

LAYER = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "post_attention_layernorm.weight",
)
"""Names of the weights that every layer has."""

FUSED_NORMS = ("hidden_norm.weight", "context_norm.weight", "encoder.output_norm_enc.weight")
"""Keys of the norm of fused states, one of which every block drafter has."""

OLD_BASE = 10000.0
"""Base of the rotary positions in the original code where a configuration says none."""

logger = logging.getLogger(__name__)


def head_settings(
    checkpoint: Checkpoint, target: Target, layer: str, head_dim: int | None = None, queries: int | None = None
) -> dict[str, Any]:
    """Return the arguments of `mmspec.drafters.head_config`, as far as the checkpoint tells them.

    Sizes and biases come from the tensors. `rms_norm_eps`, `hidden_act` and `max_position_embeddings`, which no tensor
    tells, come from `config.json`, and the target's are used where it is silent.

    Args:
        checkpoint: the checkpoint that holds the layer.
        target: the model to draft for.
        layer: the prefix of its keys, such as `layers.0`.
        head_dim: width of a head, if another tensor tells it.
        queries: width of all queries, if their projection makes more than them.

    Raises:
        MMSpecError: if the layer is incomplete, or cannot be divided into heads.
    """
    checkpoint.require(*(f"{layer}.{name}" for name in LAYER))
    shapes = checkpoint.shapes
    inner, shared = (checkpoint.sizes(f"{layer}.self_attn.{name}_proj.weight", "out", "in")[0] for name in "qk")
    inner = queries or inner
    size = head_dim or head_dim_of(checkpoint.config, target, inner, shared)
    if not divides(size, inner, shared):
        raise MMSpecError(
            f"{checkpoint}: queries of width {inner} and keys of width {shared} cannot be divided by "
            f"head_dim={size}; set head_dim in its config.json"
        )
    intermediate, hidden = checkpoint.sizes(f"{layer}.mlp.gate_proj.weight", "intermediate", "hidden")
    settings = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": inner // size,
        "num_key_value_heads": shared // size,
        "head_dim": size,
        "attention_bias": f"{layer}.self_attn.q_proj.bias" in shapes,
        "rope_parameters": rope_parameters(checkpoint, target),
    }
    told = {"hidden_act": str, "rms_norm_eps": float, "max_position_embeddings": int}
    return settings | {name: said for name, kind in told.items() if (said := checkpoint.said(name, kind)) is not None}


def head_dim_of(config: dict[str, Any], target: Target, inner: int, shared: int) -> int:
    """Return the width of a head: the configuration's if it agrees with the tensors, and the target's otherwise.

    A configuration with `head_dim` agrees if that divides the queries and the keys. One with only the numbers of heads
    must have both right: some configurations are copies of the target's, whose heads are grouped differently.

    Args:
        config: configuration of the checkpoint.
        target: the model to draft for.
        inner: number of rows of the projection to queries.
        shared: number of rows of the projection to keys.
    """
    said, heads = config.get("head_dim"), config.get("num_attention_heads")
    if isinstance(said, int) and divides(said, inner, shared):
        return said
    if isinstance(heads, int) and heads > 0 and inner % heads == 0:
        implied = inner // heads
        if divides(implied, inner, shared) and shared // implied == (config.get("num_key_value_heads") or heads):
            return implied
    text = target.family.layer_config
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def divides(head_dim: int, inner: int, shared: int) -> bool:
    """Return True if queries and keys can have heads of this width, with every key shared by equally many queries."""
    if head_dim < 1 or inner % head_dim or shared % head_dim or not shared:
        return False
    return (inner // head_dim) % (shared // head_dim) == 0


def rope_parameters(checkpoint: Checkpoint, target: Target) -> dict[str, Any]:
    """Return the rotary positions in transformers' present form, with `mrope_section` where the checkpoint has one.

    The base is read from `rope_theta`, or from `rope_parameters` or `rope_scaling` where it is nested there. Without
    one it is 10000, as in the original code, whatever the target's is; a warning says so if that differs.

    Raises:
        MMSpecError: if two bases are given, or the kind of positions is not in `STATIC_ROPES`.
    """
    config = checkpoint.config
    parts = [part for name in ("rope_scaling", "rope_parameters") if isinstance(part := config.get(name), dict)]
    nested = {name: value for part in parts for name, value in part.items()}
    said = [part["rope_theta"] for part in (config, *parts) if part.get("rope_theta") is not None]
    if not all(is_number(base) and base > 0 for base in said):
        raise MMSpecError(
            f"{checkpoint}: config.json says rope_theta={shown(said[0])}, which should be a number above 0"
        )
    bases = {float(base) for base in said}
    if len(bases) > 1:
        raise MMSpecError(f"{checkpoint}: config.json says rope_theta {sorted(bases)} in several places; leave one")
    theirs = (getattr(target.family.text_config, "rope_parameters", None) or {}).get("rope_theta", OLD_BASE)
    if not bases and theirs != OLD_BASE:
        logger.warning(
            "%s: config.json says no rope_theta, so it is %.0f as in the original code, though the target's is %.0f",
            checkpoint,
            OLD_BASE,
            theirs,
        )
    kind = nested.pop("rope_type", None) or nested.get("type") or "default"
    nested.pop("type", None)
    kind = "default" if kind == "mrope" else kind
    if kind not in STATIC_ROPES:
        raise MMSpecError(
            f"{checkpoint}: rotary positions of type {shown(kind)} are not supported in a drafter, only "
            f"{', '.join(STATIC_ROPES)}"
        )
    return nested | {"rope_type": kind, "rope_theta": bases.pop() if bases else OLD_BASE}
