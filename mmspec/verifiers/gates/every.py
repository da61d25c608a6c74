"""Every: a gate that settles rounds at a fixed interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...settings.arguments import whole_number
from ...tree import DraftTree
from ..rules.base import reached
from .base import Gate

if TYPE_CHECKING:
    from ...context import Context


class Every(Gate):
    """Settles every n-th round without the target: the uniform scheduler of VVS (CVPR 2026, arXiv 2511.13587).

    The path of first children is emitted, which the drafter finds likeliest; the original takes a random path of the
    tree [OUR]. The gate never settles the first round, nor two in a row.

    Args:
        rounds: interval n, at least 2; 0 never settles a round.
        depth: largest number of drafted tokens to emit in such a round; None for the whole path.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, rounds: int = 5, depth: int | None = None):
        self.rounds = whole_number(self, rounds=rounds, lowest=0 if not rounds else 2)
        self.depth = None if depth is None else whole_number(self, depth=depth, lowest=1)
        self.count = 0

    @property
    def lossless(self) -> bool:
        """True at `rounds=0`."""
        return self.rounds == 0

    def settle(self, tree: DraftTree, context: Context) -> Tensor | None:
        """Choose the path of first children in every n-th round."""
        self.count += 1
        if self.count % self.rounds:
            return None
        return first_path(tree, self.depth)


def first_path(tree: DraftTree, depth: int | None = None) -> Tensor:
    """Return the last node of the path of first children, `[batch]`, at most `depth` levels down."""
    on_path = reached(tree, tree.first_children)
    if depth is not None:
        on_path = on_path & (tree.depth <= depth)
    return torch.where(on_path, tree.depth, -1).argmax(-1)
