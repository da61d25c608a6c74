"""The native tree: the shape that the drafter's authors drafted with."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MMSpecError
from ..tree import DraftTree
from .base import Grower, TreeBuilder
from .growth import Growth


@dataclass(eq=False)
class NativeTree(TreeBuilder):
    """Stands for the tree of the drafter itself (`Drafter.native_tree`): EAGLE-2's dynamic tree for heads on hidden
    states, a chain for draft models, Medusa's static tree.

    Raises:
        MMSpecError: with a drafter that grows no trees.
    """

    def for_drafter(self, drafter: Grower) -> TreeBuilder:
        """Return the drafter's own builder."""
        native = drafter.native_tree()
        if native is None:
            raise MMSpecError(f"{type(drafter).__name__} proposes whole trees of its own, so tree=native is none")
        native = native.fork()
        native.called = type(self).__name__
        return native

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree of the drafter that asks."""
        return self.for_drafter(growth.drafter).build(growth)  # type: ignore[arg-type]
