"""TopPUniform: a compressor that keeps what is attended to most, and a sample of all else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..settings.arguments import number
from .asked_layers import InLayers
from .budgets import evenly_spaced


class TopPUniform(InLayers):
    """Keeps the visual tokens that carry most of the attention of the prompt's text, and evenly spaced ones of the rest
    (SpecVLM for videos, arXiv 2508.16201).

    The first stage takes the tokens of most attention until they carry a share of `mass` of it, the second one fills up
    the budget with tokens at equal distances among those left, in the order of time and rows.

    Faithful: both stages, the mean of attention over layers and heads and over the text behind the picture, the budget
    for both, 0.4 and a tenth. Ours: attention is computed anew from the states that enter each layer, for the text's
    tokens alone; each picture or video has its own budget; entries keep their positions where a drafter has any to
    keep.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        mass: share of the attention that the first stage carries, from 0 to 1; 0 is evenly spaced tokens alone, 1
            those of most attention alone.
        layers: numbers of the target's layers whose attention counts; None for all. Their entering states are kept
            while the prompt is read.
        budget, bounds, frames: how the places are divided among the frames of a video, see `MostAttended`; both stages
            then choose within a frame.

    Raises:
        MMSpecError: for values out of range; in use, for layers that the target does not have, and with a drafter that
            does not hand on what the target knows.
    """

    settings: tuple[str, ...] = ("keep", "mass", "layers", "budget", "bounds", "frames")

    def __init__(
        self,
        keep: float = 0.1,
        mass: float = 0.4,
        layers: Sequence[int] | None = None,
        budget: str = "all",
        bounds: Sequence[float] = (0.5, 2.0),
        frames: float = 1.0,
    ):
        super().__init__(layers, keep=keep, budget=budget, bounds=bounds, frames=frames)
        self.mass = number(self, mass=mass, lowest=0, highest=1)

    def choose(self, attention: Tensor, count: int) -> Tensor:
        """Return the numbers of the tokens that stay, `[count]` in reading order."""
        order = attention.sort(descending=True, stable=True).indices
        carried = attention[order].cumsum(0)
        # The smallest set that carries the share: all tokens before it was reached, and the one that reached it.
        wanted = int((carried < self.mass * carried[-1]).sum()) + 1 if self.mass else 0
        first = order[: min(wanted, count)]
        rest = torch.ones_like(attention, dtype=torch.bool)
        rest[first] = False
        others, more = rest.nonzero()[:, 0], count - len(first)
        spread = others[evenly_spaced(more, len(others), attention.device)]
        return torch.cat([first, spread]).sort().values
