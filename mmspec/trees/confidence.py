"""Confidence trees: one guess where the drafter is sure, several where it hesitates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings.arguments import number
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth

ROUNDING = 1e-3
"""Taken from exp(H), so that two equally likely tokens are two and not 2.0000002, of which three would be made."""


@dataclass(eq=False)
class ConfidenceTree(TreeBuilder):
    """A tree that branches where the drafter is uncertain, and keeps what is likeliest overall (Spec-LLaVA, arXiv
    2509.11961).

    The paper gives a node one child where the distribution q after it is peaked, and several where it is not, and cuts
    the tree to the n tokens of largest path probability; which numbers, and how many are several, it does not say.
    Ours is: one child if `max q >= certainty`, else `min(branches, ceil(exp(H(q))))`, since exp(H) is the number of
    equally likely tokens that would be as uncertain; impossible tokens are left out, and all guesses from logits that
    are no distribution. Level by level the `beam` nodes of largest path probability are expanded. Path probabilities
    fall from parent to child, so what the cut leaves is connected. q is the drafter's own distribution, over its own
    vocabulary if that is reduced, whatever the temperature of the request. Needs no training besides the drafter's.

    Lossless with point proposals. It picks nodes by their probability, so children cannot be drawn from q.

    Args:
        certainty: the probability of the likeliest child from which on it is the only one (tau_c).
        branches: children per node at most (b_max).
        beam: nodes expanded per level at most.
        depth: levels of drafted nodes, which is the number of drafter passes.
        total: nodes in the tree, the root included (n + 1).
        graded: False gives every uncertain node all its `branches`, the paper's text taken literally.

    Raises:
        MMSpecError: for a size that is not a positive integer, or a certainty that is no probability.
    """

    value_independent = False

    certainty: float = 0.8
    branches: int = 4
    beam: int = 8
    depth: int = 5
    total: int = 33
    graded: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, lowest=0, highest=1, certainty=self.certainty)

    @property
    def max_nodes(self) -> int:
        """Drafted nodes at most: `total - 1`."""
        return self.total - 1

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree level by level, and cut it to the likeliest nodes."""
        newest, wanted = growth.root, torch.ones_like(growth.root, dtype=torch.bool)
        for _ in range(growth.limit_depth(self.depth)):
            scores = growth.path_log_probs.masked_fill(~wanted, float("-inf")).gather(1, newest)
            # As many as the widest row wants; a narrower one expands nodes too that it will not keep.
            count = min(self.beam, int(wanted.gather(1, newest).sum(-1).max()))
            if not count:  # no guess of any row is possible
                break
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
            frontier = newest.gather(1, best.sort(-1).values)
            newest = growth.expand(frontier, self.branches)
            rank = torch.arange(newest.shape[1] // count, device=newest.device)
            children = (rank < self._branching(growth.logits)[..., None]) & wanted.gather(1, frontier)[..., None]
            possible = growth.path_log_probs.gather(1, newest).isfinite()
            wanted = torch.cat([wanted, children.flatten(1) & possible], dim=1)
        return growth.keep_likeliest(self.total - 1, wanted)

    def _branching(self, logits: Tensor) -> Tensor:
        """Return `[batch, nodes]` children that each node is worth, from `[batch, nodes, vocab]` logits."""
        q = logits.float().softmax(-1)
        most = torch.full_like(q[..., 0], self.branches)
        if self.graded:
            most = (torch.special.entr(q).sum(-1).exp() - ROUNDING).ceil().clamp(min=1, max=self.branches)
        return torch.where(q.amax(-1) >= self.certainty, 1, most)
