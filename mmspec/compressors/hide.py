"""Hide: the drafter does not see pictures at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import MMSpecError
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class Hide(VisualCompressor):
    """Leaves every visual token out; what the target saw reaches the drafter through the states at the text (HiViS,
    arXiv 2509.23928, section 3).

    Args:
        packed: whether the text closes up (as released for LLaVA) or keeps its places (as released for Qwen2.5-VL).
        margin: how many tokens of text before and after a picture are hidden with it. The release for Qwen2.5-VL hides
            the delimiters and one token more, (1, 2).

    Raises:
        MMSpecError: if the margin is no pair of numbers from 0 on.
    """

    settings = ("packed", "margin")

    def __init__(self, packed: bool = False, margin: Sequence[int] = (0, 0)):
        super().__init__()
        if len(margin) != 2 or min(margin) < 0:
            raise MMSpecError(f"Hide: margin={margin} must be two numbers of tokens, before and after a picture")
        self.packed, self.margin = packed, tuple(margin)
        self.positions = "packed" if packed else "original"

    def forward(self, span: VisualSpan) -> Compressed:
        nothing = torch.zeros(0, dtype=torch.long, device=span.embeds.device)
        return Compressed(span.embeds[:0], Sources.some(nothing, len(span)))
