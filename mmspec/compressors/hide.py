"""Hide: the drafter does not see pictures at all."""

from __future__ import annotations

import torch

from .base import Compressed, VisualCompressor, VisualSpan
from .source import Sources


class Hide(VisualCompressor):
    """Leaves every visual token out; what the target saw reaches the drafter through the states at the text (HiViS,
    arXiv 2509.23928, section 3).

    Args:
        packed: whether the text closes up (as released for LLaVA) or keeps its places (as released for Qwen2.5-VL).
    """

    settings = ("packed",)

    def __init__(self, packed: bool = False):
        super().__init__()
        self.packed = packed
        self.positions = "packed" if packed else "original"

    def forward(self, span: VisualSpan) -> Compressed:
        nothing = torch.zeros(0, dtype=torch.long, device=span.embeds.device)
        return Compressed(span.embeds[:0], Sources.some(nothing, len(span)))
