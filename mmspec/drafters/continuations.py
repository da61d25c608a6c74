"""Trees of continuations that were looked up: merged where they share a beginning, and padded to one shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..tree import DraftTree


class Branches:
    """The tree of one row, to which continuations are added.

    Attributes:
        tokens: token of each node, the root first.
        parents: number of each node's parent, -1 for the root.

    Args:
        root: the newest token.
        limit: nodes at most below the root; None for any number.
    """

    def __init__(self, root: int, limit: int | None = None):
        self.tokens, self.parents = [root], [-1]
        self._room = None if limit is None else limit + 1
        self._children: dict[tuple[int, int], int] = {}

    def add(self, continuation: Iterable[int]) -> None:
        """Add tokens that may follow the root, one below the other, as far as there is room."""
        node = 0
        for token in continuation:
            child = self._children.get((node, token))
            if child is None:
                if len(self.tokens) == self._room:
                    return
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = child

    def append(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Add nodes of one's own below others, which are not merged with what is there."""
        self.tokens += tokens
        self.parents += parents

    @property
    def is_chain(self) -> bool:
        """True if no two nodes have one parent."""
        return self.parents == list(range(-1, len(self.parents) - 1))


def padded(rows: Sequence[Branches], device: torch.device, max_depth: int) -> DraftTree:
    """Return the trees of all rows as one, those with fewer nodes padded.

    Args:
        rows: one tree per row of the batch.
        device: where the tree is to be.
        max_depth: no node is deeper.
    """
    nodes = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [0] * (nodes - len(row.tokens)) for row in rows], device=device)
    if nodes == 1:
        return DraftTree.chain(tokens, grown=True)  # there is nothing to look at
    valid = None
    if any(len(row.tokens) < nodes for row in rows):
        valid = torch.tensor([[place < len(row.tokens) for place in range(nodes)] for row in rows], device=device)
    if all(row.is_chain for row in rows):
        return DraftTree.chain(tokens, valid)
    parents = torch.tensor([row.parents + [0] * (nodes - len(row.parents)) for row in rows], device=device)
    return DraftTree(tokens, parents, max_depth=min(max_depth, nodes - 1), valid=valid)
