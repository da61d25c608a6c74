"""Masks and positions of blocks: their slots see the target's states before the anchor, or a window of them, and the
block or its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..layer import Rope
from ..rope import Turning
from .layer import Entries


@dataclass(frozen=True)
class Sight:
    """The rule by which the slots of a layer see.

    Args:
        causal: True if a slot sees nothing of the slots behind it.
        window: tokens that it sees back to, itself included; None for all.
    """

    causal: bool = False
    window: int | None = None

    def of_block(self, behind: Tensor, size: int, own: Tensor | None = None) -> Tensor:
        """Return `[..., size, entries]`, True where a slot sees an entry.

        Args:
            behind: `[..., 1, entries]` number of the entry in the block: 0 for the anchor, below 0 before the block.
            size: number of slots.
            own: `[..., 1, 1]` how many of them belong to a row's block; None for all.
        """
        slots = torch.arange(size, device=behind.device)[:, None]
        seen = behind <= slots if self.causal else behind < (size if own is None else own)
        return seen if self.window is None else seen & (slots - behind < self.window)


def masks_of(
    sights: Sequence[Sight], lengths: Tensor, entries: int, size: int, uniform: bool, sizes: Tensor | None = None
) -> list[Tensor | None]:
    """Return the mask of every layer, `[rows, 1, size or 1, entries]`, True where a slot sees an entry; None for one
    that sees everything.

    Args:
        sights: one for each layer.
        lengths: `[rows]` number of entries before the block.
        entries: number of entries that the longest row has, those of the block included.
        size: number of slots.
        uniform: True if all rows are known to have as many entries.
        sizes: `[rows]` how many of the slots belong to each row's block; None for all.
    """
    own = None if sizes is None else sizes[:, None, None, None]
    masks: dict[Sight, Tensor | None] = {}
    behind: Tensor | None = None
    for sight in sights:
        if sight in masks:
            continue
        everything = uniform and own is None and not sight.causal and (sight.window is None or sight.window >= entries)
        if not everything and behind is None:
            behind = (torch.arange(entries, device=lengths.device) - lengths[:, None])[:, None, None]
        masks[sight] = None if everything or behind is None else sight.of_block(behind, size, own)
    return [masks[sight] for sight in sights]


def attend_blocks(queries: Tensor, before: Entries, own: Entries, anchors: Tensor, size: int, sight: Sight) -> Tensor:
    """Attend from many blocks at once, each of which sees what stands before its anchor, and itself.

    Args:
        queries: `[batch, heads, blocks * size, head_dim]`.
        before: keys and values of the target's states, `[batch, key_value_heads, length, head_dim]`.
        own: keys and values of the blocks, `[batch, key_value_heads, blocks * size, head_dim]`.
        anchors: `[batch, blocks]` the entry at which each block begins; it sees the entries before.
        size: slots of a block.
        sight: what the slots see.

    Returns:
        `[batch, heads, blocks * size, head_dim]`.
    """
    heads, width = queries.shape[1], queries.shape[3]
    groups, blocks, length = heads // before[0].shape[1], anchors.shape[1], before[0].shape[2]
    keys, values, own_keys, own_values = (part.repeat_interleave(groups, dim=1) for part in (*before, *own))
    queries = (queries * width**-0.5).unflatten(2, (blocks, size))
    own_keys, own_values = (part.unflatten(2, (blocks, size)) for part in (own_keys, own_values))
    columns = torch.arange(length, device=anchors.device)
    behind = (columns - anchors[..., None])[:, :, None]  # [batch, blocks, 1, length]
    seen = sight.of_block(behind, size) & (behind < 0)
    inside = sight.of_block(torch.arange(size, device=anchors.device)[None], size)
    scores = torch.cat(
        [
            (queries.flatten(2, 3) @ keys.mT).unflatten(2, (blocks, size)).masked_fill(~seen[:, None], float("-inf")),
            (queries @ own_keys.mT).masked_fill(~inside, float("-inf")),
        ],
        dim=-1,
    )
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    mixed = weights[..., :length].flatten(2, 3) @ values
    return mixed + (weights[..., length:] @ own_values).flatten(2, 3)


class Places:
    """Rotary positions, looked up in a table that grows with the text.

    Args:
        turning: computes what is not in the table: positions of several axes.
    """

    def __init__(self, turning: Turning):
        self._turning = turning
        self._table = torch.zeros(0, 0)

    def at(self, positions: Tensor, dtype: torch.dtype, most: int) -> Rope:
        """Return cosines and signed sines, see `Turning.at`.

        Args:
            positions: `[batch, length]`, or `[3, batch, length]` with axes.
            dtype: dtype of the result.
            most: a number that no position exceeds.
        """
        if positions.ndim == 3:
            return self._turning.at(positions, dtype)
        if len(self._table) <= most or self._table.dtype != dtype:
            numbers = torch.arange(max(most + 1, 2 * len(self._table)), device=positions.device)
            self._table = torch.cat(self._turning.at(numbers[None], dtype), dim=-1)[0]
        cos, sin = functional.embedding(positions, self._table).chunk(2, dim=-1)
        return cos, sin
