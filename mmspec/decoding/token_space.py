"""The meaning of the ids of a target's tokens, where they are more than pieces of text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenSpace:
    """The meaning of the tokens that a target writes, for acceptance rules and drafters; `Target.space` holds it.

    Families of models that write pictures fill it in. It may be set on a target, too: that of a robot's policy knows
    its bins by `target.space = TokenSpace(bins=(31744, 31999))`.

    Args:
        bins: the first and the last id of tokens that stand for equal bins of a number, in order, so that the distance
            of two ids is that of two numbers; None where there are none.
        codes: the first and the last id of tokens that are codes of a vector quantiser; None where there are none.
        codebook: `[codes, dim]` the vector of each of them.
        grid: rows and columns of the picture that the tokens of an answer are, row by row; None for no picture.
    """

    bins: tuple[int, int] | None = None
    codes: tuple[int, int] | None = None
    codebook: Tensor | None = None
    grid: tuple[int, int] | None = None

    @property
    def length(self) -> int | None:
        """The number of tokens of an answer, where it has always as many."""
        return None if self.grid is None else self.grid[0] * self.grid[1]


TEXT = TokenSpace()
"""Ids that are pieces of text."""
