"""Rotary positions with several axes (M-RoPE): pictures advance the position of text by less than their length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..media import KINDS
from .base import Family


class MultiAxisRope(Family):
    """A family whose inner model has `get_rope_index`.

    A picture of h x w tokens advances the text position by max(h, w) only, and a video by the same however many steps
    it has, so text that follows it stands at its index plus a negative delta. The model keeps such a delta in a mutable
    attribute that concurrent requests would overwrite; here it is computed once per request and positions are always
    passed explicitly.

    The model's delta is one for all axes and counts from the largest position, which may be that of a video's last
    step. Its `generate` does not go by it but from the last position of each axis, and so does this.
    """

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return positions on every axis, as the inner model counts them, and the offset of what follows."""
        given = inputs.get("position_ids")
        if given is not None and given.ndim == 3:  # from inside `generate`, which has consumed the grid
            return given[-3:], self.offset_behind(given[-3:], inputs)
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        if given is not None or all(grid is None for grid in grids.values()):
            return super().positions(inputs)
        clock = [name for encoder in self.encoders.values() for name in encoder.further]
        further = {name: inputs[name] for name in clock if inputs.get(name) is not None}
        position_ids, _ = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            attention_mask=inputs["attention_mask"],
            **grids,
            **further,
        )
        return position_ids, self.offset_behind(position_ids, inputs)

    def add_missing_inputs(self, inputs: dict[str, Any]) -> None:
        """Add the kinds of tokens, by which the inner model finds pictures and videos."""
        if "mm_token_type_ids" not in inputs:
            ids = inputs["input_ids"]
            inputs["mm_token_type_ids"] = types = torch.zeros_like(ids, dtype=torch.int)
            for token, kind in self.placeholders.items():
                types[ids == token] = 1 + KINDS.index(kind)
