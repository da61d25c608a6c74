"""Chains of Gaussian transitions, such as samplers of diffusion models, through the same loop as tokens.

A drafter proposes the next states of a chain, the target says in one call what it thinks of all of them, and
`Reflection` keeps what it can: the result has exactly the law of the target's own sampler.
"""

from __future__ import annotations

from .drafters import ChainDrafter, FrozenDrafter, StateDrafter
from .gaussian import AncestralChain, GaussianChain
from .reflection import Reflection
from .sampling import Samples, sample

__all__ = [
    "AncestralChain",
    "ChainDrafter",
    "FrozenDrafter",
    "GaussianChain",
    "Reflection",
    "Samples",
    "StateDrafter",
    "sample",
]
