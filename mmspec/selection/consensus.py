"""Consensus: the answers that the other models find as likely as their own."""

from __future__ import annotations

import random

from torch import Tensor


def disagreement(nll: Tensor) -> Tensor:
    """Return how far every answer is from what the others would have said, `[members]`; small is agreement.

    `s_i = sum over j != i of |NLL_j(y_i) - NLL_j(y_j)|` (SV, arXiv 2510.20812): what model j says of answer i beside
    what it says of its own. A constant that is added to one model's numbers changes nothing.

    Args:
        nll: `[members, members]`, in row j and column i the mean negative log-likelihood that model j gives to the
            answer of model i.
    """
    return (nll - nll.diagonal()[:, None]).abs().sum(0)  # the i-th of column i is 0


def closest(scores: list[float], count: int, seed: int = 0) -> list[int]:
    """Return the places of the `count` smallest scores, the best first; among equals the order is drawn.

    Args:
        scores: disagreement of each answer.
        count: how many to keep.
        seed: seed of the draw.
    """
    draws = random.Random(seed)
    return sorted(range(len(scores)), key=lambda place: (round(scores[place], 6), draws.random()))[:count]
