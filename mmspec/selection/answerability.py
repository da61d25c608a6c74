"""Answerability: whether a small model's answer can be kept, told by how clearly it preferred its tokens."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..settings.arguments import number, one_of

SLOPE = 0.6
"""Slope of the sigmoid that makes a probability of a score."""

RIVALS = 64
"""Largest logits of a token that its score is about."""


def token_scores(logits: Tensor) -> Tensor:
    """Return how clearly each token was preferred, `[tokens]`, from `[tokens, vocab]` logits.

    `(z_1 - mean(z_2 .. z_64)) / (std(z_2 .. z_64) + 1e-6)` over the largest logits in order, with the deviation of the
    population (SpecEyes, arXiv 2603.23483, its released code).
    """
    best = logits.float().topk(min(RIVALS, logits.shape[-1])).values
    rivals = best[:, 1:]
    return (best[:, 0] - rivals.mean(-1)) / (rivals.std(-1, correction=0) + 1e-6)


class Answerability:
    """The gate of SpecEyes: an answer is kept if `sigmoid(0.6 S)` reaches a threshold.

    S is made of the scores of the answer's tokens. As these are positive, the default asks for S of 6.5 and more.

    Args:
        threshold: from 0 (all answers are kept) to 1 (none is).
        of: `"min"`, `"mean"`, or `"lowest"`: the mean of the lowest fifth.

    Raises:
        MMSpecError: for a threshold out of range, or another way.
    """

    def __init__(self, threshold: float = 0.98, of: Literal["min", "mean", "lowest"] = "min"):
        self.threshold = number(self, lowest=0, highest=1, threshold=threshold)
        self.of = one_of(self, ("min", "mean", "lowest"), of=of)

    def probability(self, logits: Tensor) -> float:
        """Return `sigmoid(0.6 S)` of an answer, from the `[tokens, vocab]` logits before its tokens."""
        scores = token_scores(logits).sort().values
        if self.of == "lowest":
            scores = scores[: max(1, math.ceil(len(scores) / 5))]
        found = scores[0] if self.of == "min" else scores.mean()
        return torch.sigmoid(SLOPE * found).item()

    def keeps(self, probability: float) -> bool:
        """Return True if an answer of this probability is kept."""
        return self.threshold < 1 and probability >= self.threshold
