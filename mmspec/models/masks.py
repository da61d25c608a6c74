"""Attention masks of tree passes, built without touching the prefix.

A query (a tree node) sees every committed entry of its row, and of the speculative entries its own ancestors. The mask
over the prefix is all True and is kept in a buffer; a pass only rewrites the columns that changed since the last one,
so its cost does not depend on the length of the prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .cache import WINDOW, TreeCache
from .switches import Switch
from .transfer import to_device


class MaskForm(Enum):
    """The form that a mask must have, by the name of the attention back end that reads it.

    Transformers hands masks on as they are: a boolean one would be added to eager scores, as ones.
    """

    BOOLEAN = "sdpa"
    ADDITIVE = "eager"
    BLOCK = "flex_attention"


Mask = Tensor | BlockMask


class TreeMask:
    """The maker of one request's masks.

    Args:
        cache: the request's cache, whose lengths tell what is committed.
        windows: attention type (a name from the config's `layer_types`) to its sliding window in tokens, or None for
            full attention. One entry makes `build` return a mask, several a dictionary by attention type.
        form: the form of the masks.
        dtype: the dtype of additive masks.
    """

    def __init__(self, cache: TreeCache, windows: dict[str, int | None], form: MaskForm, dtype: torch.dtype):
        self.cache, self.windows, self.form, self.dtype = cache, windows, form, dtype
        self._seen = torch.zeros(cache.rows, 0, 0, dtype=torch.bool, device=cache.lengths.device)
        # At the last refresh: how much was committed, and which columns each row's speculative entries have since then.
        self._commits, self._lengths, self._written = -1, [0] * cache.rows, 0
        self._columns = torch.zeros(cache.rows, 0, dtype=torch.long, device=cache.lengths.device)
        self.hidden: Tensor | None = None
        """`[batch, slots]` True at committed entries that nobody sees at present; None for none."""

    def needed(self, total: int, extends_chain: bool = False) -> bool:
        """Return whether a pass needs a mask; call it between `cache.begin` and `build` or the forward pass.

        The model's own causal mask says the same for a single new node that sees all, in rows of equal length. Passes
        of fixed form always get one, and so does flex attention: transformers would compile a block mask of its own
        anew for every length.

        Args:
            total: number of speculative entries, of earlier passes of this round and of this one.
            extends_chain: True for a single new node that is known to see all of them.
        """
        free = self.hidden is None and self.cache.uniform and not self.cache.fixed and self.form is not MaskForm.BLOCK
        if free and (extends_chain or total == 1):
            self._written = max(self._written, total)
            return False
        return True

    def build(self, visible: Tensor, depth: Tensor | None) -> Mask | dict[str, Mask]:
        """Return the mask of a pass.

        Args:
            visible: `[rows, new, speculative + new]`, which speculative entries (earlier passes of this round, then
                this one) each new node sees, itself included; of the rows that have not left the cache.
            depth: `[rows, speculative + new]` distance of every speculative entry from the last committed token, minus
                one: what comes right after it has depth 0. None if no layer has a sliding window.

        Returns:
            `[rows, 1, new, slots]`, or one of these per attention type. In passes of fixed form it is as wide as the
            cache's window.
        """
        new, total = visible.shape[1:]
        self._refresh(new, total)
        self._put(self._seen[:, :new], visible)
        self._written = max(self._written, total)
        slots = len(self.cache.window) if self.cache.fixed else self.cache.slots_in_use
        full = self._seen[:, :new, :slots]
        if self.hidden is not None:
            hidden = self.cache.present(self.hidden)[:, None, :slots]
            full = full & ~nn.functional.pad(hidden, (0, slots - hidden.shape[-1]))
        if self.cache.fixed:
            full = full.contiguous()  # else the whole buffer and a part of it are two programs
        seen = {name: self._window(full, window, depth, new) for name, window in self.windows.items()}
        masks = {name: self._finish(mask[:, None]) for name, mask in seen.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _refresh(self, new: int, total: int) -> None:
        """Bring the prefix part of the buffer up to what is committed now."""
        cache, (held, rows, capacity) = self.cache, self._seen.shape
        anew = held != cache.rows or new > rows or cache.capacity > capacity
        if anew or cache.commits != self._commits:
            lengths = cache.present_lengths
            grown = [0] if anew else [now - old for now, old in zip(lengths, self._lengths, strict=True)]
            # Passes without a mask may have come between: then there is more to show than was written.
            behind = max(*grown, self._written)
            if anew or behind > self._columns.shape[1] or min(grown) < 0:
                columns = torch.arange(cache.capacity, device=self._seen.device)
                self._seen = (columns < self._committed())[:, None].repeat(1, max(new, rows), 1)
            elif behind:
                # What was committed is visible from now on, and what was dropped is so to nobody.
                values = self._columns[:, :behind] < self._committed()
                self._put(self._seen, values[:, None].expand(-1, rows, -1))
            self._commits, self._lengths, self._written = cache.commits, lengths, 0
            self._columns = self._columns[:, :0]
        if total > self._columns.shape[1]:
            self._columns = cache.slots(0, -(-total // WINDOW) * WINDOW)

    def _committed(self) -> Tensor:
        """Return `[rows, 1]` numbers of committed entries."""
        return self.cache.present(self.cache.lengths)[:, None]

    def _put(self, seen: Tensor, values: Tensor) -> None:
        """Write `[rows, queries, width]` values into the columns of this round's entries."""
        width = min(values.shape[-1], seen.shape[-1] - max(self._lengths))
        values = values[..., :width]
        if len(set(self._lengths)) == 1:
            seen[..., self._lengths[0] : self._lengths[0] + width] = values
        else:
            seen.scatter_(2, self._columns[:, None, :width].expand(values.shape), values)

    def _window(self, full: Tensor, window: int | None, depth: Tensor | None, new: int) -> Tensor:
        """Hide what lies a sliding window or more before each node.

        Distance is counted in tokens of the node's own sequence, not in slots: siblings share an index.
        """
        slots = full.shape[-1]
        if window is None or slots <= window:
            return full
        assert depth is not None, "distances count under a sliding window"
        lengths = self._committed()
        position = torch.arange(slots, device=full.device).expand(full.shape[0], slots).clone()
        speculative = lengths + torch.arange(depth.shape[1], device=full.device)
        position.scatter_(1, speculative, lengths + depth)
        query = (lengths + depth)[:, -new:]
        return full & (query[..., None] - position[:, None] < window)

    def _finish(self, mask: Tensor) -> Mask:
        """Return a mask `[rows, 1, new, slots]`, True where a node sees a slot, in the form that the back end reads."""
        if self.form is MaskForm.BOOLEAN:
            return mask
        if self.form is MaskForm.BLOCK:
            rows, _, new, slots = mask.shape
            sees = lambda row, head, query, slot: mask[row, 0, query, slot]  # noqa: E731
            return create_block_mask(sees, rows, None, new, slots, device=mask.device)
        blocked = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(~mask, blocked)


def padding_mask(lengths: list[int], width: int, device: torch.device) -> Tensor | None:
    """Return `[batch, width]` ones on the tokens of right-padded rows; None where nothing is padded."""
    if min(lengths) == width:
        return None
    return (torch.arange(width, device=device) < to_device(lengths, device)[:, None]).long()


def whole_mask(lengths: list[int], width: int, device: torch.device) -> Tensor:
    """Return what `padding_mask` returns, with ones where nothing is padded: without a mask, transformers takes gaps
    between positions for the ends of texts that were packed into one row."""
    mask = padding_mask(lengths, width, device)
    return torch.ones(len(lengths), width, dtype=torch.long, device=device) if mask is None else mask


def _compile_nothing() -> Callable[[], object]:
    stance: AbstractContextManager = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


UNCOMPILED = Switch(_compile_nothing)
"""Nothing is compiled in this process."""


def kernels(attention: str, device: torch.device) -> AbstractContextManager:
    """Return the context for a pass: flex attention on a processor runs uncompiled, everything else as it is.

    Transformers compiles flex attention, but what torch 2.13 writes for tree masks on a processor is no valid C++.

    Args:
        attention: name of the back end.
        device: the device on which the pass begins.
    """
    on_processor = attention == MaskForm.BLOCK.value and device.type == "cpu"
    return UNCOMPILED.on() if on_processor else nullcontext()
