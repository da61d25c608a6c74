"""Rotary positions as a target has them: their scaling, and several axes for heads that count pictures as it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..errors import MMSpecError, first_line, shown
from ..settings.arguments import as_int
from .head_config import MROPE_SETTINGS, STATIC_ROPES
from .layer import Rope

if TYPE_CHECKING:
    from ..target import Target


def axes_of(rope_parameters: dict, head_dim: int) -> Tensor:
    """Return `[head_dim / 2]` the axis by whose position each frequency is turned.

    In the order of Qwen2-VL the frequencies of an axis stand together; with `mrope_interleaved`, as in Qwen3-VL, the
    three axes take turns for as long as height and width have frequencies left, and the rest is time's.

    Raises:
        MMSpecError: if the sections are not three that fill half a head.
    """
    sections = rope_parameters.get("mrope_section") or []
    found = [as_int(count) for count in sections] if isinstance(sections, list | tuple) else []
    counts = [count for count in found if count is not None]
    if len(counts) != len(found) or len(counts) != 3 or min(counts) < 0 or sum(counts) != head_dim // 2:
        raise MMSpecError(
            "rope='mrope' needs rope_parameters with three mrope_section numbers whose sum is "
            f"{head_dim // 2}, half of head_dim={head_dim}; they are {shown(sections)}"
        )
    if not rope_parameters.get("mrope_interleaved"):
        axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
    else:
        axes = [0] * (head_dim // 2)
        for axis in (1, 2):
            for place in range(axis, min(3 * sections[axis], head_dim // 2), 3):
                axes[place] = axis
    return torch.tensor(axes, device="cpu")  # also where the weights are made on the meta device


def rotary_of(head: LlamaConfig) -> LlamaRotaryEmbedding:
    """Return the rotary embedding of a layer, with `head_dim / 2` frequencies.

    Raises:
        MMSpecError: if transformers cannot make it of the settings.
    """
    try:
        return LlamaRotaryEmbedding(head)
    except Exception as error:  # every kind of positions fails in its own way where a setting is missing or wrong
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise MMSpecError(
            f"transformers cannot make rotary positions of rope_parameters={shown(head.rope_parameters)} ({reason})"
        ) from error


def rope_of(target: Target, layer: int, head_dim: int) -> dict[str, Any]:
    """Return the parameters of the rotary positions of a layer of the target, as far as a head can have them.

    Their scaling is taken over where it does not change with the length of the text, and their axes where they fill the
    heads, `head_dim` numbers.
    """
    text = target.family.text_config
    rope = dict(getattr(text, "rope_parameters", None) or {})
    kinds = getattr(text, "layer_types", None)
    if kinds and kinds[layer] in rope:  # there is a set for every kind of layer
        rope = dict(rope[kinds[layer]])
    axes = {name: rope[name] for name in MROPE_SETTINGS if name in rope}
    if 2 * sum(axes.get("mrope_section") or []) != head_dim:
        axes = {}
    if rope.get("rope_type", "default") not in STATIC_ROPES:
        rope = {name: rope[name] for name in ("rope_theta",) if name in rope}
    left_out = ("partial_rotary_factor", *MROPE_SETTINGS)
    scaled = {name: value for name, value in rope.items() if name not in left_out and value is not None}
    return {"rope_type": "default", "rope_theta": 10000.0} | scaled | axes


class Turning:
    """Rotary positions in the form that `mmspec.drafters.layer.rotate` reads, on the device of the frequencies.

    Args:
        rotary: transformers' rotary embedding, whose frequencies are taken.
        axes: axis of each frequency, see `axes_of`; None for positions of one axis.
    """

    def __init__(self, rotary: LlamaRotaryEmbedding, axes: Tensor | None = None):
        # The two halves of a head turn against each other, so the sines of the first one are negative.
        self._frequencies = torch.cat([-rotary.inv_freq, rotary.inv_freq]).float()
        self._scaling = rotary.attention_scaling
        self._axes = None if axes is None else axes.repeat(2).to(self._frequencies.device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rope:
        """Return cosines and signed sines, `[batch, length, head_dim]`, computed in float32.

        Args:
            positions: `[batch, length]`, or `[3, batch, length]` with axes.
            dtype: dtype of the result.
        """
        if positions.ndim == 3:
            positions = positions[self._axes].permute(1, 2, 0)
        else:
            positions = positions[..., None]
        angles = positions * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        if self._scaling != 1:
            cos, sin = cos * self._scaling, sin * self._scaling
        return cos.to(dtype), sin.to(dtype)
