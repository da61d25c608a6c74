"""Rounds: what is decided anew before each of them, from what is committed: whether it is drafted, and how."""

from .gates import GatedTree, RoundGate
from .viskip import VisualAttention

__all__ = ["GatedTree", "RoundGate", "VisualAttention"]
