"""StepDrafter: the common base of drafters that grow a tree level by level with a model of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import Chain, Growth, TreeBuilder
from ..trees.growth import Block
from .base import Drafter

if TYPE_CHECKING:
    from ..target import Context, Target


class StepDrafter(Drafter):
    """Lets its `TreeBuilder` ask for expansions.

    A subclass implements `expand_root` and `expand`, and in `observe` commits or drops what its own cache holds; the
    builder decides which nodes are expanded and kept. `tree.expansion` then tells which of the kept nodes were
    expanded, and as which entry of the drafter's cache.
    """

    draft_vocabulary: Tensor | None = None
    """`[draft_vocab]` target tokens that this drafter's logits are about; None for all of them, in their order."""

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
        )
        return self.tree.build(growth)

    def observe(self, tree: DraftTree, scores: Scores, verdict: Verdict) -> None:
        self.tree.observe(tree, scores, verdict)

    def expand_root(self, root: Tensor) -> Tensor:
        """Bring the drafter's state up to the root, `[batch]`; return `[batch, vocab]` logits after it."""
        raise NotImplementedError

    def expand(self, block: Block) -> Tensor:
        """`[batch, new, vocab]` logits after the nodes of a block."""
        raise NotImplementedError
