"""StepDrafter: the common base of drafters that grow a tree level by level with a model of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import Chain, Growth, TreeBuilder
from ..trees.growth import Block
from .base import Drafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class StepDrafter(Drafter):
    """Lets its `TreeBuilder` ask for expansions.

    A subclass implements `expand_root` and `expand`, and in `observe` commits or drops what its own cache holds; the
    builder decides which nodes are expanded and kept. `tree.expansion` then tells which of the kept nodes were
    expanded, and as which entry of the drafter's cache.
    """

    def __init__(self, target: Target, tree: TreeBuilder | None = None):
        super().__init__(target, tree or Chain())

    def check(self, proposal: str) -> None:
        self.tree.check(proposal)

    def start(self, context: Context) -> None:
        self.context = context

    def draft(self, root: Tensor) -> DraftTree:
        growth = Growth(
            root,
            lambda: self.expand_root(root),
            self.expand,
            self.context.proposals,
            self.draft_vocabulary,
            self.target.vocab_size,
            self,
        )
        return self.tree.build(growth)

    def observe(self, tree: DraftTree, scores: Scores, verdict: Verdict) -> None:
        self.tree.observe(tree, scores, verdict)

    def newest(self, root: Tensor, counts: list[int]) -> Block:
        """The last tokens of every row as a chain, for drafters that read some only after the verdict.

        Args:
            root: `[batch]`, the last token of all.
            counts: tokens per row, the root included; 0 for a row that has ended. Shorter rows are right-padded.
        """
        width, device = max(counts), root.device
        tokens = root[:, None]
        if width > 1:
            rows = [history[len(history) - n :] for history, n in zip(self.context.history, counts, strict=True)]
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        depth = torch.arange(width, device=device).expand_as(tokens)
        visible = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(root), -1, -1)
        return Block(tokens, depth, visible, depth)

    def expand_root(self, root: Tensor) -> Tensor:
        """Bring the drafter's state up to the root, `[batch]`; return `[batch, vocab]` logits after it."""
        raise NotImplementedError

    def expand(self, block: Block) -> Tensor:
        """`[batch, new, vocab]` logits after the nodes of a block."""
        raise NotImplementedError


def last_of(states: Tensor, counts: list[int]) -> Tensor:
    """The last entry of every row, `[batch, size]`, of `[batch, width, size]` with so many entries per row."""
    if states.shape[1] == 1:
        return states[:, 0]
    last = (torch.tensor(counts, device=states.device) - 1).clamp(min=0)
    return states[torch.arange(len(counts), device=states.device), last]
