"""The target's first layers as drafter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import TreeBuilder
from ..trees.growth import Block
from .step import StepDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class EarlyExitDrafter(StepDrafter):
    """A drafter that is the first layers of the target, its final norm and its head (LayerSkip, arXiv 2404.16710,
    without the training that makes early layers good at it).

    It shares the target's cache: what is committed was read by all layers, the first ones among them, so nothing is
    read twice but the draft itself, which the target reads again with all its layers.

    Lossless with every lossless verifier. Needs no training, and guesses little without any.

    Args:
        target: the model to draft for, and with.
        layers: number of its first layers to use; None for half of them.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of five.

    Raises:
        MMSpecError: for layers that the target does not have, or whose layers are spread over devices.
    """

    def __init__(self, target: Target, layers: int | None = None, tree: TreeBuilder | None = None):
        super().__init__(target, tree)
        self.layers = max(len(target.family.layers) // 2, 1) if layers is None else layers
        target.first_layers(self.layers)  # refuses what cannot be

    def start(self, context: Context) -> None:
        """Open a branch of the target's session."""
        super().start(context)
        self.session = context.branch(layers=self.layers)

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what the target has not read yet, the root last. Nothing of it is kept: the target will do that."""
        self._trunk = trunk = self.newest(root, self.session.pending)
        return trunk.last_of(self.session.read(trunk.tokens, trunk.visible, trunk.depth).logits)

    def expand(self, block: Block) -> Tensor:
        """Read drafted nodes, which also see what was read above the root."""
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
        return self.session.read(block.tokens, visible, block.depth + counts, extends_chain).logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Forget the nodes of the round: the target has read them."""
        super().observe(tree, scores, verdict)
        self.session.drop()
