"""Dynamic trees: expand where the drafter is confident, verify what is likeliest overall."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth


@dataclass(eq=False)
class DynamicTree(TreeBuilder):
    """The context-aware tree of EAGLE-2 (arXiv 2406.16858, sections 4.1 and 4.2).

    Level by level the `top_k` nodes of largest path probability get `top_k` children each, the likeliest node first; of
    all candidates the `total - 1` of largest path probability are kept. Path probabilities fall from parent to child,
    so that set is connected.

    Args:
        depth: levels of drafted nodes, which is the number of drafter passes (EAGLE's own `depth` is one less).
        top_k: children per node, and nodes expanded per level.
        total: nodes in the tree, the root included (EAGLE's `total_token`).
    """

    value_independent = False

    depth: int = 5
    top_k: int = 4
    total: int = 24

    @property
    def max_nodes(self) -> int:
        """Drafted nodes at most: `total - 1`."""
        return self.total - 1

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree level by level, and keep the likeliest nodes."""
        children = growth.expand(growth.root, self.top_k)
        places = children - 1  # all of them go on; deeper down, the likeliest
        for _ in range(growth.limit_depth(self.depth) - 1):
            children = growth.expand(children.gather(1, places), self.top_k, places)
            # The order is that of the release: a drafter may see what is expanded before (`DreamDrafter`).
            order = growth.newest_path_log_probs.sort(dim=1, descending=True, stable=True).indices
            places = order[:, : self.top_k]
        scores = growth.path_log_probs[:, 1:]
        # A stable sort puts a parent before a child of equal probability (one that the drafter is certain of).
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.total - 1]
        nodes = order.sort(-1).values + 1
        return growth.keep(torch.cat([growth.root, nodes], dim=1))
