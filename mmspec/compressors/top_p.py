"""TopPUniform: a compressor that keeps what is attended to most, and a sample of all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MMSpecError, shown
from ..models.attention import layers_of_attention, received_attention
from ..settings.arguments import number, whole_number
from .guided import MostAttended
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target


class TopPUniform(MostAttended):
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

    Raises:
        MMSpecError: for values out of range; in use, for layers that the target does not have, and with a drafter that
            does not hand on what the target knows.
    """

    settings = ("keep", "mass", "layers")

    def __init__(self, keep: float = 0.1, mass: float = 0.4, layers: Sequence[int] | None = None):
        super().__init__(keep)
        self.mass = number(self, mass=mass, lowest=0, highest=1)
        if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence) or not layers):
            raise MMSpecError(f"TopPUniform: layers={shown(layers)} must be a list of layers, or None for all")
        self.layers = None if layers is None else [whole_number(self, lowest=0, layers=layer) for layer in layers]

    def meet(self, target: Target) -> None:
        """Refuse layers that there are not."""
        total = len(target.family.layers)
        if beyond := [layer for layer in self.layers or [] if layer >= total]:
            raise MMSpecError(
                f"TopPUniform: layers has {beyond[0]}, which is none of the {total} of {type(target.model).__name__}"
            )

    def _asked(self, target: Target) -> list[int]:
        """Return the layers whose attention counts."""
        return [*range(len(target.family.layers))] if self.layers is None else self.layers

    def layers_seen(self, target: Target) -> list[int]:
        """Return the layers that their attention needs."""
        return [
            *dict.fromkeys(needed for layer in self._asked(target) for needed in layers_of_attention(target, layer))
        ]

    def attention(self, target: Target, view: TargetView, words: Tensor) -> Tensor:
        """Return the attention that every token receives, `[batch, length]`, the mean over the layers."""
        inputs = view.request.inputs
        layers = [received_attention(target, one, view.features, inputs, words) for one in self._asked(target)]
        return torch.stack(layers).mean(0)

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
        steps = torch.arange(more, device=attention.device)
        spread = others[(2 * steps + 1) * len(others) // (2 * max(more, 1))]
        return torch.cat([first, spread]).sort().values
