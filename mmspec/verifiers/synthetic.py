"""Forced acceptance: measure what a method costs, apart from how good its drafts are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .base import Verifier

if TYPE_CHECKING:
    from ..target import Context


class Synthetic(Verifier):
    """Accepts each drafted token of the first-child path with a given probability, whatever the target says.

    NOT lossless: the text is the drafter's. The work done per round is that of a real verifier.

    Args:
        acceptance_rate: probability that a drafted token is kept, given that its parent was; from 0 to 1.
    """

    def __init__(self, acceptance_rate: float = 0.8):
        if not 0 <= acceptance_rate <= 1:
            raise MMSpecError(f"acceptance_rate={acceptance_rate!r} is out of range: it must be from 0 to 1")
        self.acceptance_rate = acceptance_rate

    @property
    def lossless(self) -> bool:
        return False

    def start(self, seed: int) -> None:
        self.generator = torch.Generator(self.context.logits.device).manual_seed(seed)

    def first_token(self, context: Context) -> Tensor:
        return self.processed_first(context).argmax(-1)

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        choices = self.processed(tree, scores).argmax(-1)
        rows = torch.arange(tree.batch_size, device=choices.device)
        nodes = torch.arange(tree.num_nodes, device=choices.device)
        current, walking = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
        for _ in range(tree.max_depth):
            is_child = tree.parents == current[:, None]
            if tree.valid is not None:
                is_child &= tree.valid
            child = torch.where(is_child, nodes, tree.num_nodes).amin(-1)
            draw = torch.rand(len(rows), generator=self.generator, device=rows.device)
            walking &= (draw < self.acceptance_rate) & (child < tree.num_nodes)
            current = torch.where(walking, child, current)
        path, length = tree.path_to(current)
        return Verdict(path, length, choices[rows, current])
