"""Session: the only place that knows how caches, blocks, offsets and unread tokens belong together. Targets, draft
models and draft heads use the same one.

A round reads any number of blocks of speculative nodes, one behind the other, and ends with `keep`, which leaves the
entries of one path in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .cache import TreeCache
from .masks import Mask, MaskForm, TreeMask


class Session:
    """The key-value cache of one request, whoever reads and writes it.

    Attributes:
        cache: the entries of the committed tokens.
        position_offset: `[batch]` or `[axes, batch]` number to add to the index of an entry to get the position of its
            token.

    Args:
        cache: the request's cache.
        windows: attention type to sliding window, see `TreeMask`.
        form: the form of the masks, see `TreeMask`.
        dtype: the dtype of additive masks.
    """

    def __init__(self, cache: TreeCache, windows: dict[str, int | None], form: MaskForm, dtype: torch.dtype):
        self.cache = cache
        self.masks = TreeMask(cache, windows, form, dtype)
        self.position_offset = torch.zeros_like(cache.lengths)
        self.history: list[list[int]] | None = None
        self._windows = any(window is not None for window in windows.values())
        self._depth: Tensor | None = None
        self._begun: tuple | None = None

    def follow(self, history: list[list[int]], active: list[bool], pending: int = 1) -> None:
        """Let `pending` tell from now on how far this session is behind a text that grows.

        Args:
            history: per row, the tokens so far; the list that the owner of the text appends to.
            active: per row, False once it has ended; the owner's list too.
            pending: how many of the last tokens are not in the cache at this moment.
        """
        self.history, self.active = history, active
        self._ahead = [len(tokens) - length - pending for tokens, length in zip(history, self.entries, strict=True)]

    @property
    def entries(self) -> list[int]:
        """Per row of the text, how many of its tokens are in the cache."""
        return self.cache.lengths_list

    @property
    def pending(self) -> list[int]:
        """Per row, how many of the last tokens of the text are certain but not read yet; 0 for a row that has ended."""
        assert self.history is not None, "call follow first"
        rows = zip(self.history, self.entries, self._ahead, self.active, strict=True)
        return [len(tokens) - length - ahead if active else 0 for tokens, length, ahead, active in rows]

    @contextmanager
    def block(
        self, visible: Tensor, depth: Tensor, extends_chain: bool = False
    ) -> Iterator[Mask | dict[str, Mask] | None]:
        """Open the pass that writes a block of speculative nodes into the cache, and close it behind the `with` block.

        Rows that have ended leave before the first block of a round: the pass runs on `present` rows only.

        Args:
            visible: `[batch, new, speculative + new]`, the speculative nodes that each new one sees, itself included.
            depth: `[batch, new]` distance from the last committed token, minus one.
            extends_chain: True for a single node that is known to see all earlier ones.

        Yields:
            The mask of the pass, see `TreeMask`.
        """
        if self.cache.speculative == 0:
            self._depth = None
            if self.history is not None:
                self.leave()
        new, total = visible.shape[1:]
        self.cache.begin(new, fixed=self.cache.compiled)
        if self._windows:  # for which distances count
            depth = self.present(depth)
            self._depth = depth if self._depth is None else torch.cat([self._depth, depth], dim=1)
        needed = self.masks.needed(total, extends_chain)
        yield self.masks.build(self.present(visible), self._depth) if needed else None
        self.cache.end()

    def hide(self, hidden: Tensor | None) -> None:
        """Hide some committed entries from all passes until this is called again.

        Args:
            hidden: `[batch, slots]` True at these entries, as many columns as are spoken of; None for none.
        """
        self.masks.hidden = hidden

    def leave(self) -> None:
        """Let rows go that have ended. Nothing is read for them any more."""
        self.cache.leave(self.going_on)

    @property
    def going_on(self) -> list[bool]:
        """One flag per row of the cache, True while its text goes on."""
        return self.active

    def present(self, values: Tensor) -> Tensor:
        """Return the rows that a pass runs on, of a `[batch, ...]` tensor."""
        return self.cache.present(values)

    def whole(self, values: Tensor) -> Tensor:
        """Return a `[batch, ...]` tensor from one of a pass; zeros stand in rows that have left."""
        return self.cache.whole(values)

    def positions(self, depth: Tensor) -> Tensor:
        """Return the positions, `[rows, new]` or `[axes, rows, new]`, of nodes that are `[rows, new]` tokens behind the
        last committed one, minus one."""
        return self._first() + depth

    def _first(self) -> Tensor:
        """Return the position of what follows the last committed token: `[rows, 1]` or `[axes, rows, 1]`, found once a
        round."""
        now = self.cache.commits, self.cache.rows, id(self.position_offset)
        if self._begun is None or self._begun[0] != now:
            first = self.cache.present(self.cache.lengths + self.position_offset, dim=-1)
            self._begun = now, first[..., None]
        return self._begun[1]

    def enter(self, layers: list[tuple[Tensor, Tensor]], counts: list[int]) -> None:
        """Take the keys and values of a prompt, `[batch, heads, length, dim]` of every layer; keep so many per row."""
        self.cache.begin(layers[0][0].shape[2])
        for layer, keys_values in zip(self.cache.tree_layers, layers, strict=True):
            layer.update(*keys_values)
        self.cache.end()
        self.keep(counts)

    def keep(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """End a round: keep a path of its nodes, drop the rest; see `TreeCache.commit`."""
        self.cache.commit(counts, path, kept)

    def drop(self) -> None:
        """End a round and forget its nodes."""
        self.keep([0] * len(self.entries))

    def take_back(self, counts: list[int]) -> None:
        """Forget the last tokens that were kept, so many per row: they are pending again."""
        self.cache.take_back(counts)

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a layer holds of committed tokens, twice `[batch, heads, longest, dim]`. They
        are views until a row has left; what lies behind the length of a shorter row means nothing."""
        entries, end = self.cache.tree_layers[layer], self.cache.longest
        return self.whole(entries.keys[:, :, :end]), self.whole(entries.values[:, :, :end])
