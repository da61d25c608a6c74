"""The chain: one guess after the other."""

from __future__ import annotations

from dataclasses import dataclass

from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth


@dataclass(eq=False)
class Chain(TreeBuilder):
    """A tree of width one (Leviathan et al., arXiv 2211.17192).

    Args:
        length: tokens to draft per round (gamma in the literature); as many drafter passes.
    """

    length: int = 5

    @property
    def max_nodes(self) -> int:
        """The number of drafted nodes."""
        return self.length

    def build(self, growth: Growth) -> DraftTree:
        """Draft one token after the other."""
        return growth.chain(self.length)
