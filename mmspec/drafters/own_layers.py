"""OwnLayersDrafter: the common base of drafters that draft with layers of the target itself, on its own cache."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..models.read_ahead import ReadAhead
from ..models.session import ModelSession
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees.growth import Block
from .head import HeadDrafter
from .step import Trunk


class OwnLayersDrafter(HeadDrafter):
    """A drafter that reads with some of the target's layers. What it has read lasts until the round ends, and the pass
    that scores goes on behind the first layers that are the target's own.

    A subclass sets `session` before anything is drafted: a branch of the target's session
    (`context.branch(layers=...)`, or `skipped=`).
    """

    session: ModelSession
    drafts_unread = True

    in_targets_cache: ClassVar[bool] = True
    """True if what it reads stands in the target's own cache until the round ends."""

    def draft(self, root: Tensor) -> DraftTree:
        """Let the builder grow a tree, and say what of it the first layers have read."""
        self._trunk: Trunk | None = None
        tree = super().draft(root)
        if self.session.rest is not None and self.target.compiled is None:
            tree.ahead = self._ahead(tree)
        return tree

    def entries_of(self, tree: DraftTree) -> Tensor:
        """Return `[batch, nodes]` the number that the entry of each node has in the session; -1 for nodes that were not
        read."""
        assert self._trunk is not None and tree.expansion is not None, "the tree is one of Growth, and was drafted"
        expansion, before = tree.expansion, self._trunk.tokens.shape[1] - 1
        if before == 0:
            return expansion
        entries = torch.where(expansion > 0, expansion + before, expansion)
        entries[:, 0] = before if self._trunk.kept is None else (self._trunk.kept - 1).clamp(min=0)
        return entries

    def _ahead(self, tree: DraftTree) -> ReadAhead | None:
        """Return what was read of a tree: the tokens before it, the root among them, and its expanded nodes."""
        if self._trunk is None:  # nothing was drafted: only entries of the network's own have to be read
            nothing = torch.full_like(tree.tokens, -1)
            whole = ReadAhead(self.session, nothing, trunk=False, missing=tree.num_nodes, ordered=True)
            return whole if self.reads_every_round else None
        in_order = tree.is_chain and self._trunk.tokens.shape[1] == 1
        return ReadAhead(
            self.session,
            self.entries_of(tree),
            missing=1 if tree.is_chain else None,  # its last node, in every row
            ordered=in_order and self.session.cache.speculative == tree.num_nodes - 1,
        )

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what the target has not read yet, the root last. Nothing of it is kept: the target will do that."""
        self._trunk = trunk = self.newest(root, self.session.pending)
        return trunk.last_of(self.read(trunk.tokens, trunk.visible, trunk.depth))

    def expand(self, block: Block) -> Tensor:
        """Read drafted nodes, which also see what was read above the root."""
        assert self._trunk is not None, "the root is expanded first"
        width, device = self._trunk.tokens.shape[1], block.tokens.device
        counts: int | Tensor = width
        if min(self._trunk.counts) == width:
            real = torch.ones(len(block.tokens), width, dtype=torch.bool, device=device)
        else:
            assert self._trunk.kept is not None, "rows differ"
            counts = self._trunk.kept[:, None]
            real = torch.arange(width, device=device) < counts
        visible = torch.cat([real[:, None].expand(-1, block.tokens.shape[1], -1), block.visible], dim=2)
        extends_chain = block.extends_chain and min(self._trunk.counts) == width
        return self.read(block.tokens, visible, block.depth + counts, extends_chain)

    def read(self, tokens: Tensor, visible: Tensor, depth: Tensor, extends_chain: bool = False) -> Tensor:
        """Return `[batch, new, vocab]` logits after the nodes of a block, see `ModelSession.read`."""
        return self.session.read(tokens, visible, depth, extends_chain).logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Forget the nodes of the round: the target has read them."""
        super().observe(tree, scores, verdict)
        self.session.drop()
        tree.ahead = None  # whoever keeps the tree need not keep what is behind it
