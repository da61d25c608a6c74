"""Confident: a gate by the drafter's own confidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import MMSpecError
from ...settings.arguments import number, whole_number
from ...tree import DraftTree
from ..rules.base import reached
from .base import Gate

if TYPE_CHECKING:
    from ...context import Context


class Confident(Gate):
    """Settles a round without the target where the drafter is sure of its draft, and asks the target otherwise.

    UGSD (arXiv 2603.11397) escalates a block from the edge to the cloud if its most uncertain token has an entropy
    above a threshold. Here the criterion is the probability that the drafter gives to its path of first children: the
    longest beginning of that path whose product of probabilities stays above `threshold` is emitted [OUR].

    Args:
        threshold: bound on the product, above 0 and at most 1; at 1 no round is ever settled.
        unread: largest number of tokens of a row that the target has not read, the root included.

    Raises:
        MMSpecError: for a value out of range, and for a drafter that does not give its probabilities.
    """

    def __init__(self, threshold: float = 0.9, unread: int = 16):
        self.threshold = number(self, threshold=threshold, above=0, highest=1)
        self.unread = whole_number(self, unread=unread, lowest=2)

    @property
    def lossless(self) -> bool:
        """True at `threshold=1`."""
        return self.threshold == 1

    def settle(self, tree: DraftTree, context: Context) -> Tensor | None:
        """Choose the beginning of the path of first children whose probability stays above the threshold."""
        if tree.log_probs is None:
            raise MMSpecError(
                "Confident reads the probabilities of a draft, and this drafter gives none: use the gate Every, or a "
                "drafter with a model, such as TextOnlyDrafter"
            )
        room = self.unread - max(context.pending)
        if room < 1:
            return None
        along = tree.log_probs[:, None].masked_fill(~tree.ancestors, 0).sum(-1)
        sure = reached(tree, tree.first_children) & (along > math.log(self.threshold)) & (tree.depth <= room)
        return torch.where(sure, tree.depth, 0).argmax(-1)
