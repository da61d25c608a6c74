"""Drafts and scores where states are vectors: what is proposed, and what the target says of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class StateDraft:
    """The states that a drafter expects next, one behind the other.

    Args:
        states: `[batch, nodes, *shape]`, the newest state of every row first; drafted states follow.
        means: `[batch, nodes - 1, *shape]`, of the normal distributions that the drafted states were drawn from; their
            standard deviations are the target's.
        usable: per row, how many of the drafted states can be used: what lies behind the end of a chain cannot.
    """

    states: Tensor
    means: Tensor
    usable: list[int]

    @property
    def max_depth(self) -> int:
        """The number of drafted states."""
        return self.means.shape[1]


@dataclass
class StateScores:
    """The target's law of the next state after every node of a draft; zeros behind the end of a row.

    Args:
        mean: `[batch, nodes, *shape]`.
        std: `[batch, nodes]`.
        prediction: `[batch, nodes, ...]` what the means were made of, see `GaussianChain.predict`.
    """

    mean: Tensor
    std: Tensor
    prediction: Tensor
