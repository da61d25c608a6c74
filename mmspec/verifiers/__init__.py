"""Verifiers: they decide which drafted path is kept and which token the target adds."""

from .base import Verifier
from .gates import Gated
from .greedy import Greedy
from .point_mass import PointMassSampling
from .rejection import RejectionSampling
from .rules.base import reached
from .synthetic import Synthetic
from .walk import TreeWalk, follow, longest

__all__ = [
    "Gated",
    "Greedy",
    "PointMassSampling",
    "RejectionSampling",
    "Synthetic",
    "TreeWalk",
    "Verifier",
    "follow",
    "longest",
    "reached",
]
