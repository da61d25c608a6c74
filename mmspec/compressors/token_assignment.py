"""Sources: the tokens of a picture that each of its entries stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sources(NamedTuple):
    """A weighted list of (entry, token) pairs. It grows with the number of tokens, not with entries times tokens.

    Args:
        entries: `[pairs]` numbers of the entries.
        tokens: `[pairs]` numbers of the tokens that they stand for.
        weights: `[pairs]` weights; those of one entry sum to one.
        shape: number of entries and number of tokens. Every entry stands for at least one token.
        matrix: `[entries, tokens]` the same weights, where every entry stands for all tokens; their means are then one
            product of matrices.
    """

    entries: Tensor
    tokens: Tensor
    weights: Tensor
    shape: tuple[int, int]
    matrix: Tensor | None = None

    @classmethod
    def everywhere(cls, matrix: Tensor) -> Sources:
        """Return entries that are means of all tokens, each by weights of its own, `[entries, tokens]`."""
        count, tokens = matrix.shape
        entries = torch.arange(count, device=matrix.device).repeat_interleave(tokens)
        numbers = torch.arange(tokens, device=matrix.device).repeat(count)
        return cls(entries, numbers, matrix.flatten(), (count, tokens), matrix)

    @classmethod
    def some(cls, index: Tensor, tokens: int) -> Sources:
        """Return entries that are tokens themselves.

        Args:
            index: `[kept]` numbers of the tokens that stay.
            tokens: number of tokens in the picture.
        """
        count = len(index)
        entries = torch.arange(count, device=index.device)
        return cls(entries, index, torch.ones(count, device=index.device), (count, tokens))

    @classmethod
    def groups(cls, group: Tensor, count: int) -> Sources:
        """Return entries that are the means of groups of tokens.

        Args:
            group: `[tokens]` number of each token's group, below `count`; no group is empty.
            count: number of groups.
        """
        size = torch.bincount(group, minlength=count)
        tokens = torch.arange(len(group), device=group.device)
        return cls(group, tokens, size[group].reciprocal(), (count, len(group)))

    @classmethod
    def joined(cls, parts: Sequence[Sources]) -> Sources:
        """Return the entries of several lists over the same tokens, one list behind the other."""
        starts = [sum(part.shape[0] for part in parts[:number]) for number in range(len(parts) + 1)]
        entries = torch.cat([part.entries + start for part, start in zip(parts, starts, strict=False)])
        tokens, weights = torch.cat([part.tokens for part in parts]), torch.cat([part.weights for part in parts])
        return cls(entries, tokens, weights, (starts[-1], parts[0].shape[1]))

    @classmethod
    def blended(cls, parts: Sequence[Sources], shares: Tensor) -> Sources:
        """Return the weighted sum of lists with equally many entries; the shares, `[parts]`, sum to one."""
        entries, tokens = torch.cat([part.entries for part in parts]), torch.cat([part.tokens for part in parts])
        weights = torch.cat([part.weights * share for part, share in zip(parts, shares, strict=True)])
        return cls(entries, tokens, weights, parts[0].shape)

    def mean(self, values: Tensor) -> Tensor:
        """Average values of the tokens, `[tokens, width]`, into values of the entries, `[entries, width]`."""
        if self.matrix is not None:
            return self.matrix.to(values.dtype) @ values
        picked = values[self.tokens] * self.weights.to(values.dtype)[:, None]
        return values.new_zeros(self.shape[0], values.shape[1]).index_add(0, self.entries, picked)

    def dense(self) -> Tensor:
        """Return the weights as a matrix, `[entries, tokens]`, for inspection."""
        matrix = self.weights.new_zeros(self.shape)
        return matrix.index_put((self.entries, self.tokens), self.weights, accumulate=True)
