"""Load a sub-network of an elastic drafter: DREAM-S's choice of heads and of visual tokens, as settings to sweep."""

from __future__ import annotations

from typing import Any

from .drafters import DreamDrafter
from .loading import load_drafter_as
from .target import Target


def load_sub_network(
    name: str, target: Target, head_share: float = 1.0, keep: float | None = None, **kwargs: Any
) -> DreamDrafter:
    """Load a drafter and choose a sub-network of it (DREAM-S, arXiv 2606.00535).

    Args:
        name: a drafter with DREAM's layers, as for `mmspec.load_drafter`: an embedded one, a folder, or a checkpoint
            that the authors published.
        target: the model to draft for.
        head_share: share of the last layer's heads that run, above 0 and at most 1. The release trains 0.25, 0.5, 0.75
            and 1.
        keep: share of a picture's tokens that it reads, above 0 and at most 1, trained from 0.3 on; None for what it
            reads as it is.
        kwargs: further arguments of `mmspec.load_drafter`.

    Raises:
        MMSpecError: see `load_drafter` and `DreamDrafter.sub_network`; for a drafter of another kind.
    """
    lacking = "has no sub-networks: name a DREAM or DREAM-S checkpoint, or tiny/dream"
    return load_drafter_as(DreamDrafter, name, target, lacking, **kwargs).sub_network(head_share, keep)
