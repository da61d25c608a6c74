"""Sources: which tokens of a picture each of its entries stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sources(NamedTuple):
    """A weighted list of (entry, token) pairs: as long as there are tokens, however many entries there are.

    Args:
        entries: `[pairs]` numbers of the entries.
        tokens: `[pairs]` numbers of the tokens that they stand for.
        weights: `[pairs]`; those of one entry sum to one.
        shape: how many entries and how many tokens there are. An entry without tokens is not allowed.
    """

    entries: Tensor
    tokens: Tensor
    weights: Tensor
    shape: tuple[int, int]

    @classmethod
    def some(cls, index: Tensor, tokens: int) -> Sources:
        """Entries that are tokens themselves.

        Args:
            index: `[kept]` numbers of the tokens that stay.
            tokens: of the picture.
        """
        count = len(index)
        entries = torch.arange(count, device=index.device)
        return cls(entries, index, torch.ones(count, device=index.device), (count, tokens))

    @classmethod
    def groups(cls, group: Tensor, count: int) -> Sources:
        """Entries that are means of groups.

        Args:
            group: `[tokens]` the number of each token's group, below `count`; no group is empty.
            count: of groups.
        """
        size = torch.bincount(group, minlength=count)
        tokens = torch.arange(len(group), device=group.device)
        return cls(group, tokens, size[group].reciprocal(), (count, len(group)))

    @classmethod
    def joined(cls, parts: Sequence[Sources]) -> Sources:
        """The entries of several lists over the same tokens, one list behind the other."""
        starts = [sum(part.shape[0] for part in parts[:number]) for number in range(len(parts) + 1)]
        entries = torch.cat([part.entries + start for part, start in zip(parts, starts, strict=False)])
        tokens, weights = (torch.cat([part[field] for part in parts]) for field in (1, 2))
        return cls(entries, tokens, weights, (starts[-1], parts[0].shape[1]))

    @classmethod
    def blended(cls, parts: Sequence[Sources], shares: Tensor) -> Sources:
        """Lists of equally many entries, each weighted by its share, `[parts]`, which sum to one."""
        entries, tokens = (torch.cat([part[field] for part in parts]) for field in (0, 1))
        weights = torch.cat([part.weights * share for part, share in zip(parts, shares, strict=True)])
        return cls(entries, tokens, weights, parts[0].shape)

    def mean(self, values: Tensor) -> Tensor:
        """`[tokens, width]` values of the tokens to `[entries, width]` of the entries."""
        picked = values[self.tokens] * self.weights.to(values.dtype)[:, None]
        return values.new_zeros(self.shape[0], values.shape[1]).index_add(0, self.entries, picked)

    def dense(self) -> Tensor:
        """`[entries, tokens]` the weights as a matrix, to look at."""
        matrix = self.weights.new_zeros(self.shape)
        return matrix.index_put((self.entries, self.tokens), self.weights, accumulate=True)
