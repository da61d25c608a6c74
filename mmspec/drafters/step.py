"""StepDrafter: the common base of drafters that grow a tree level by level with a model of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.slots import pick
from ..models.transfer import to_device
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import Chain, Growth, TreeBuilder
from ..trees.growth import Block
from .base import Drafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class StepDrafter(Drafter):
    """A drafter whose `TreeBuilder` asks for expansions.

    A subclass implements `expand_root` and `expand`, and in `observe` commits or drops what its own cache holds; the
    builder decides which nodes are expanded and kept. `tree.expansion` then tells which of the kept nodes were
    expanded, and as which entry of the drafter's cache.
    """

    tree: TreeBuilder  # never None

    def __init__(self, target: Target, tree: TreeBuilder | None = None):
        super().__init__(target, tree)

    def native_tree(self) -> TreeBuilder:
        """Return a chain."""
        return Chain()

    def check(self, proposal: str) -> None:
        """Refuse proposals that the builder's shape would bias."""
        self.tree.check(proposal)

    def join(self, others: Sequence[StepDrafter]) -> None:
        """Become a member of a mixture, whose members all read the same nodes; does nothing by default.

        Args:
            others: the other members.

        Raises:
            MMSpecError: if it cannot draft among them as it does alone.
        """

    def start(self, context: Context) -> None:
        """Take up a request; subclasses read its prompt."""
        self.context = context

    def draft(self, root: Tensor) -> DraftTree:
        """Let the builder grow a tree below the roots."""
        growth = Growth(
            root,
            lambda: self.expand_root(root),
            self.expand,
            self.context.proposals,
            self.draft_vocabulary,
            self.target.vocab_size,
            self,
        )
        tree = self.tree.build(growth)
        growth.close()
        return tree

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Tell the builder of the verdict."""
        self.tree.observe(tree, scores, verdict)

    def newest(self, root: Tensor, counts: list[int]) -> Trunk:
        """Return the last tokens of every row as a chain, for drafters that read some only after the verdict.

        Args:
            root: `[batch]` last token of every row.
            counts: tokens per row, the root included; 0 for a row that has ended. Shorter rows are right-padded.
        """
        return Trunk.of(self.context.history, counts, root.device, root)

    def expand_root(self, root: Tensor) -> Tensor:
        """Bring the drafter's state up to the root, `[batch]`; return `[batch, vocab]` logits after it."""
        raise NotImplementedError

    def expand(self, block: Block) -> Tensor:
        """Return `[batch, new, vocab]` logits after the nodes of a block."""
        raise NotImplementedError

    def marginals(self, depth: int) -> Tensor:
        """Return `[batch, depth, vocab]` logits of the tokens at the depths 1 to `depth`, after `expand_root`.

        Only drafters whose depths do not depend on each other (`independent`) have them; `expand` gives the same ones
        node by node.
        """
        raise NotImplementedError(f"{type(self).__name__} has no marginals: its guesses depend on the tokens above")

    def confidence(self) -> Tensor | None:
        """Return the drafter's own estimates for the nodes of its newest pass (`expand_root`: the root alone; `expand`:
        those of the block).

        An estimate may read the tokens down to its node, but never the child that it is about: shapes that follow it
        are lossless with drawn children too.

        Returns:
            `[batch, new]` the probability, for each of these nodes, that a token drafted below it is accepted if the
            node itself was; None for drafters that make no such estimate.
        """
        return None


def guesses_below(guesses: Tensor, block: Block, ahead: int = 1) -> Tensor:
    """Return what a pass says of some nodes that has guessed all depths at once, `[batch, new, size]`.

    Args:
        guesses: `[batch, depths, size]` what the pass made, such as logits.
        block: the nodes.
        ahead: 1 for the guesses of what stands below the nodes, 0 for those of the nodes' own tokens.
    """
    if block.level is not None:
        return guesses[:, block.level + ahead, None].expand(-1, block.tokens.shape[1], -1)
    return pick(guesses, block.depth + ahead)


@dataclass
class Trunk(Block):
    """Tokens that are certain, and that a drafter has yet to read.

    Args:
        counts: number of these tokens per row.
        kept: `[batch]` the same on the device; None if there is one in every row.
    """

    counts: list[int] = field(default_factory=list)
    kept: Tensor | None = None

    @classmethod
    def of(
        cls, texts: Sequence[list[int]], counts: list[int], device: torch.device, last: Tensor | None = None
    ) -> Trunk:
        """Return the last tokens of some texts.

        Args:
            texts: token ids per row.
            counts: tokens per row; at least one row has some.
            device: the drafter's.
            last: `[batch]` the very last token of every row, if it is on the device already.
        """
        width = max(counts)
        if last is not None and min(counts) == width == 1:
            tokens, kept = last[:, None], None
        else:  # in one copy to the device
            rows = [text[len(text) - n :] for text, n in zip(texts, counts, strict=True)]
            rows = [[n, *row, *[0] * (width - n)] for n, row in zip(counts, rows, strict=True)]
            kept, tokens = to_device(rows, device).split([1, width], dim=1)
        depth = torch.arange(width, device=device).expand_as(tokens)
        visible = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(texts), -1, -1)
        return cls(tokens, depth, visible, depth, counts=counts, kept=None if kept is None else kept[:, 0])

    def last_of(self, states: Tensor) -> Tensor:
        """Return `[batch, size]` of the last token in each row, out of `[batch, width, size]`; of a row without any,
        anything."""
        if min(self.counts) == states.shape[1]:
            return states[:, -1]
        assert self.kept is not None, "rows differ"
        last = (self.kept - 1).clamp(min=0)
        return pick(states, last[:, None])[:, 0]
