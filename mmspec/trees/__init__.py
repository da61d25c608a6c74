"""Tree builders decide the shape of the candidates: how many children, how deep, what to keep."""

from .base import TreeBuilder
from .chain import Chain
from .dynamic import DynamicTree
from .growth import Growth, Proposals
from .static import StaticTree

__all__ = ["Chain", "DynamicTree", "Growth", "Proposals", "StaticTree", "TreeBuilder"]
