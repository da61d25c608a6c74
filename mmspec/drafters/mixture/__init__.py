"""A mixture of drafters: one file for what it is, one for its weights, one for members that share a model."""

from .drafter import MixtureDrafter
from .weights import FixedWeights, GridWeights, InverseWeights, MixtureWeights

__all__ = [
    "FixedWeights",
    "GridWeights",
    "InverseWeights",
    "MixtureDrafter",
    "MixtureWeights",
]
