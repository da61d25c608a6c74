"""Losses: how far a guess is from what the target says, per predicted token. Recipes add them up with their own
weights.

Each is a small class: `loss(guess, truth)` returns `[n]` values, one per predicted token. `truth` is restricted to the
tokens that the drafter can propose. If the target's own choice is none of them, `truth.inside` is False and losses on
probabilities are zero, as in EAGLE-3 (arXiv 2503.01840). A `ChainLoss` sees all steps of the chains at once:
`loss(chains)` returns `[roots, steps]`.
"""

from .acceptance import Confidence, HybridAcceptance, NegativeLogAcceptance, TotalVariation
from .base import Loss, OnBase, Term, Truth, log_q_of, truth_at
from .candidates import CandidateMargin, CandidatePenalty, ForcedPrefix
from .chains import AcceptedLength, ChainLoss, Chains, Decayed, DPace, EndToEndVariation
from .distributions import (
    CrossEntropy,
    KullbackLeibler,
    ListMLE,
    ProbabilityDistance,
    SoftCrossEntropy,
    TopKCrossEntropy,
)
from .margins import TopKMargin
from .paths import ReverseKullbackLeibler, SampledPaths
from .states import CosineToLast, SmoothL1Features, SmoothL1Intermediate
from .weights import Ramp, Weight, weight_at

__all__ = [
    "AcceptedLength",
    "CandidateMargin",
    "CandidatePenalty",
    "ChainLoss",
    "Chains",
    "Confidence",
    "CosineToLast",
    "CrossEntropy",
    "DPace",
    "Decayed",
    "EndToEndVariation",
    "ForcedPrefix",
    "HybridAcceptance",
    "KullbackLeibler",
    "ListMLE",
    "Loss",
    "NegativeLogAcceptance",
    "OnBase",
    "ProbabilityDistance",
    "Ramp",
    "ReverseKullbackLeibler",
    "SampledPaths",
    "SmoothL1Features",
    "SmoothL1Intermediate",
    "SoftCrossEntropy",
    "Term",
    "TopKCrossEntropy",
    "TopKMargin",
    "TotalVariation",
    "Truth",
    "Weight",
    "log_q_of",
    "truth_at",
    "weight_at",
]
