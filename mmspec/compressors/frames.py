"""Frames: a compressor that keeps some of the frames of a video, each frame whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..settings.arguments import number, one_of
from .base import Compressed, VisualCompressor, VisualSpan, grid_of
from .budgets import evenly_spaced
from .token_assignment import Sources

WAYS = ("uniform", "change")


class Frames(VisualCompressor):
    """Keeps a share of the frames of a video at their positions and drops the rest; pictures and sounds stay whole.

    A frame is one time step of the video's tokens; for Qwen-VL it holds two frames of the file. This is our own
    formulation, and nothing in it is trained.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one frame stays.
        by: `uniform` takes evenly spaced frames; `change` takes the first frame and those that differ most from the
            frame before them: smallest mean cosine of the embeddings at the same place.

    Raises:
        MMSpecError: for a share out of range or an unknown way; in use, for a video whose tokens are not arranged in
            frames.
    """

    settings = ("keep", "by")

    def __init__(self, keep: float = 0.5, by: str = "uniform"):
        super().__init__()
        number(self, above=0, highest=1, keep=keep)
        one_of(self, WAYS, by=by)
        self.keep, self.by = keep, by

    def forward(self, span: VisualSpan) -> Compressed:
        """Keep the chosen frames of a video; leave anything else whole."""
        tokens = torch.arange(len(span), device=span.embeds.device)
        if span.kind == "video":
            frames = tokens.view(grid_of(span, "Frames")[0], -1)
            count = max(1, round(self.keep * len(frames)))
            tokens = frames[self.choose(span.embeds[frames], count)].flatten()
        return Compressed(span.embeds[tokens], Sources.some(tokens, len(span)))

    def choose(self, frames: Tensor, count: int) -> Tensor:
        """Return the numbers of the frames that stay, `[count]` in order, for `[frames, tokens, hidden]` embeddings."""
        if self.by == "uniform":
            return evenly_spaced(count, len(frames), frames.device)
        alike = functional.cosine_similarity(frames[1:].float(), frames[:-1].float(), dim=-1).mean(-1)
        unlike = torch.cat([alike.new_full((1,), torch.inf), 1 - alike])
        return torch.sort(unlike, descending=True, stable=True).indices[:count].sort().values
