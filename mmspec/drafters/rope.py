"""Rotary positions of several axes, for heads that count pictures as their target does (M-RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from .layer import Rope

ROPES = ("1d", "mrope")
"""One-dimensional positions, whatever the target's are; or those of the target, of time, height and width."""


def axes_of(rope_parameters: dict, head_dim: int) -> Tensor:
    """`[head_dim / 2]` the axis by whose position each frequency is turned.

    In the order of Qwen2-VL the frequencies of an axis stand together; with `mrope_interleaved`, as in Qwen3-VL, the
    three axes take turns for as long as height and width have frequencies left, and the rest is time's.

    Raises:
        MMSpecError: if the sections are not three that fill half a head.
    """
    sections = list(rope_parameters.get("mrope_section") or ())
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise MMSpecError(
            "rope='mrope' needs rope_parameters with three mrope_section numbers whose sum is "
            f"{head_dim // 2}, half of head_dim={head_dim}; they are {sections}"
        )
    if not rope_parameters.get("mrope_interleaved"):
        axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
    else:
        axes = [0] * (head_dim // 2)
        for axis in (1, 2):
            for place in range(axis, min(3 * sections[axis], head_dim // 2), 3):
                axes[place] = axis
    return torch.tensor(axes, device="cpu")  # also where the weights are made on the meta device


def rope_of_axes(rotary: nn.Module, axes: Tensor, positions: Tensor) -> Rope:
    """Cosines and sines `[batch, length, head_dim]`.

    Args:
        rotary: transformers' rotary embedding, whose frequencies are taken.
        axes: see `axes_of`.
        positions: `[3, batch, length]`.
    """
    angles = positions[axes.to(positions.device)].permute(1, 2, 0).float() * rotary.inv_freq.float()
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
