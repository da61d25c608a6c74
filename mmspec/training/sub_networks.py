"""SubNetworks: which part of an elastic drafter guesses in a pass of its training (DREAM-S)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..drafters import Drafter, DreamDrafter
from ..errors import MMSpecError, shown
from ..settings.arguments import number


class SubNetworks:
    """Draws a sub-network of a drafter with DREAM's layers, so that training reaches all of them (DREAM-S, arXiv
    2606.00535).

    Faithful: a share of the last layer's heads and a share of a picture's tokens, drawn apart and evenly from these
    values at every pass, once the whole drafter has been trained for a while (the release: an epoch of twenty). Ours:
    the shares of tokens, whole tenths.

    Args:
        head_shares: shares of the heads, each above 0 and at most 1.
        keeps: shares of the tokens, likewise.
        after: share of the training that is over before anything is drawn.

    Raises:
        MMSpecError: for a share out of range, or none at all.
    """

    def __init__(
        self,
        head_shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        keeps: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        after: float = 0.0,
    ):
        self.head_shares, self.keeps = _shares(self, "head_shares", head_shares), _shares(self, "keeps", keeps)
        number(self, lowest=0, highest=1, after=after)
        self.after = after

    def __call__(self, drafter: Drafter, progress: float) -> Drafter:
        """Return what is to guess: a sub-network on the drafter's weights, or the drafter itself, as long as nothing is
        drawn. The draw is torch's.

        Args:
            drafter: the drafter in training.
            progress: share of the training that is done.

        Raises:
            MMSpecError: if the drafter has no sub-networks.
        """
        if not isinstance(drafter, DreamDrafter):
            raise MMSpecError(
                f"{type(drafter).__name__} has no sub-networks: train a DreamDrafter, or leave "
                "recipe.objective.part out"
            )
        if progress < self.after:
            return drafter
        return drafter.sub_network(_drawn(self.head_shares), _drawn(self.keeps))


def _shares(owner: object, name: str, given: Any) -> list[float]:
    """Return some shares as a list; refuse what is none."""
    shares = [] if isinstance(given, str | float | int) else list(given)
    if not shares:
        raise MMSpecError(f"{type(owner).__name__}: {name}={shown(given)} must be a list of shares")
    for place, share in enumerate(shares):
        number(owner, above=0, highest=1, **{f"{name}.{place}": share})
    return shares


def _drawn(values: list[float]) -> float:
    return values[int(torch.randint(len(values), ()))]
