"""Which rows of a batch are still there, and where their entries lie."""

from __future__ import annotations

import torch
from torch import Tensor

from .transfer import to_device


class Staying:
    """The rows of a batch that have not left, in the order in which their entries are stored.

    Args:
        batch_size: rows at first.

    Attributes:
        rows: their numbers in the batch.
    """

    def __init__(self, batch_size: int):
        self.rows = list(range(batch_size))
        self._batch_size = batch_size
        self._index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def replace(self, row: int) -> tuple[int, int]:
        """Let a row go; the last one takes its place. Returns both places, which may be the same."""
        place, last = self.rows.index(row), len(self.rows) - 1
        self.rows[place] = self.rows[last]
        self.rows.pop()
        self._index = None
        return place, last

    def of(self, values: Tensor, dim: int = 0) -> Tensor:
        """Select the rows that stay along a dimension of a tensor about the batch."""
        return values if len(self) == self._batch_size else values.index_select(dim, self._places(values.device))

    def among_all(self, values: Tensor) -> Tensor:
        """Return `[rows, ...]` values as `[batch, ...]`, with zeros in rows that have left."""
        if len(self) == self._batch_size:
            return values
        everything = values.new_zeros(self._batch_size, *values.shape[1:])
        return everything.index_copy_(0, self._places(values.device), values)

    def _places(self, device: torch.device) -> Tensor:
        if self._index is None or self._index.device != device:
            self._index = to_device(self.rows, device)
        return self._index
