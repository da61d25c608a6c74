"""Compressors that keep the tokens to which the target itself pays attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..settings.arguments import number
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class MostAttended(VisualCompressor):
    """Keeps a share of a picture's tokens at their positions, those that receive the most attention; which attention is
    meant says a subclass, see `VisualCompressor.attention`.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.

    Raises:
        MMSpecError: for a share out of range; in use, with a drafter that does not hand on what the target knows.
    """

    settings: tuple[str, ...] = ("keep",)
    needs_attention = True

    def __init__(self, keep: float):
        super().__init__()
        number(self, above=0, highest=1, keep=keep)
        self.keep = keep

    def forward(self, span: VisualSpan) -> Compressed:
        """Keep the tokens with the most attention."""
        if span.attention is None:
            raise MMSpecError(
                f"{type(self).__name__} needs the target's attention, which this drafter does not read; use Prune, or "
                "a drafter on the target's states such as DreamDrafter"
            )
        index = self.choose(span.attention, max(1, round(self.keep * len(span))))
        return Compressed(span.embeds[index], Sources.some(index, len(span)))

    def choose(self, attention: Tensor, count: int) -> Tensor:
        """Return the numbers of the tokens with the most attention, `[count]` in reading order; among equals the
        first."""
        return torch.sort(attention, descending=True, stable=True).indices[:count].sort().values


class FeatureGuided(MostAttended):
    """Keeps the visual tokens that receive the most attention in the target's last layer, at their positions (DREAM,
    arXiv 2505.19201).

    Faithful: the layer, the mean, the share. Ours: the paper does not say which tokens pay the attention; here it is
    the text of the prompt behind the picture, averaged over heads and tokens, so that training and decoding choose
    alike.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.

    Raises:
        MMSpecError: for a share out of range; in use, with a drafter that does not hand on what the target knows.
    """

    def __init__(self, keep: float = 0.75):
        super().__init__(keep)
