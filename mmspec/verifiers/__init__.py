"""Verifiers decide which drafted path is kept and which token the target adds."""

from .base import Verifier
from .greedy import Greedy
from .point_mass import PointMassSampling
from .rejection import RejectionSampling
from .synthetic import Synthetic

__all__ = ["Greedy", "PointMassSampling", "RejectionSampling", "Synthetic", "Verifier"]
