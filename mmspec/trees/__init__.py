"""Tree builders decide the shape of the candidates: how many children, how deep, what to keep."""

from .base import TreeBuilder
from .best_first import BestFirstTree
from .chain import Chain
from .confidence import ConfidenceTree
from .confidence_chain import ConfidenceChain
from .dynamic import DynamicTree
from .growth import Growth
from .native import NativeTree
from .proposals import Proposals
from .sage import SageTree
from .static import StaticTree

__all__ = [
    "BestFirstTree",
    "Chain",
    "ConfidenceChain",
    "ConfidenceTree",
    "DynamicTree",
    "Growth",
    "NativeTree",
    "Proposals",
    "SageTree",
    "StaticTree",
    "TreeBuilder",
]
