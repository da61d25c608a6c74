"""Rounds: what is decided anew before each of them, from what is committed: whether it is drafted, and how."""

from ..bandits import Bandit, Unimodal, UpperConfidence
from .arm import Arm
from .arms import ArmSelector, arms_of
from .gates import GatedTree, RoundGate
from .viskip import VisualAttention

__all__ = [
    "Arm",
    "ArmSelector",
    "Bandit",
    "GatedTree",
    "RoundGate",
    "Unimodal",
    "UpperConfidence",
    "VisualAttention",
    "arms_of",
]
