"""TreeCache: a preallocated, ragged, prunable key-value cache for targets and drafters alike.

Every row of the batch owns the slots `0 .. length` of a storage with room to spare. A forward pass writes its new
entries in place behind the committed ones, each row at its own offset; `commit` keeps the accepted path by moving its
few entries to the front of that speculative area. The committed prefix is never copied.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

CHUNK = 256
"""The storage grows by multiples of this many slots."""

AHEAD = 1024
"""Slots that are reserved at most for an answer that has not begun, however long it may become."""

WINDOW = 64
"""Passes of fixed form see a multiple of this many slots."""


@dataclass(frozen=True)
class SlotShape:
    """What one layer stores per token, of keys or of values: `[heads, dim]` on a device, in a dtype."""

    heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device


class TreeCacheLayer(CacheLayerMixin):
    """One layer's view of a `TreeCache`, in the form that transformers' attention layers expect."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: TreeCache):
        super().__init__()
        self.cache = cache
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage was allocated with the cache."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write `[batch, heads, new, dim]` states behind each row's entries; return views of all slots in use."""
        self.cache.write(self.keys, key_states)
        self.cache.write(self.values, value_states)
        if self.cache.fixed:
            end = self.cache.window.shape[0]
            return self.keys[:, :, :end], self.values[:, :, :end]
        end = self.cache.slots_in_use  # the same for all rows: a short row's surplus is masked
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest + self.cache.speculative + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.longest + self.cache.speculative

    def get_max_length(self) -> int:
        return -1


class TreeCache(Cache):
    """Key-value storage of one request.

    Args:
        shapes: for every layer the `SlotShape` of its keys and of its values (see `Target.cache_shapes`).
        batch_size: rows.
        capacity: slots to allocate at once; more are added in chunks when a forward pass needs them.
        compiled: whether blocks go through compiled passes, see `begin`. Each tensor of a layer then has a storage of
            its own: a compiler makes copies of a whole tensor to write to views of it.
        device: where lengths, masks and positions are made; by default where the first layer is. Every layer's entries
            are on the layer's own device.

    A round is any number of forward passes, each opened by `begin(new)`, and one `commit`. Between two commits the
    entries of those passes lie behind one another, at slots `length + 0, 1, 2, ...` of each row.
    """

    def __init__(
        self,
        shapes: list[tuple[SlotShape, SlotShape]],
        batch_size: int,
        capacity: int = CHUNK,
        compiled: bool = False,
        device: torch.device | None = None,
    ):
        super().__init__(layers=[TreeCacheLayer(self) for _ in shapes])
        self.rows, self.compiled = batch_size, compiled
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device or shapes[0][0].device)
        self.lengths_list = [0] * batch_size
        self.speculative = 0
        self._pass = 0
        self.fixed = False
        # Layers of one shape share one tensor, so that a commit is one gather and one scatter for all of them.
        members: dict[tuple, list[tuple[int, str]]] = defaultdict(list)
        for layer, pair in enumerate(shapes):
            for name, shape in zip(("keys", "values"), pair, strict=True):
                members[(shape, layer, name) if compiled else (shape,)].append((layer, name))
        self._members = [(shape, group) for (shape, *_), group in members.items()]
        self._storage: list[Tensor] = []
        self.capacity = 0
        self.reserve(capacity)

    @property
    def longest(self) -> int:
        """Committed entries of the longest row."""
        return max(self.lengths_list)

    @property
    def uniform(self) -> bool:
        """True if all rows have the same length."""
        return min(self.lengths_list) == self.longest

    @property
    def slots_in_use(self) -> int:
        return self.longest + self.speculative + self._pass

    def reserve(self, slots: int, used: int | None = None) -> None:
        """Make room for `slots` slots per row, in whole chunks.

        The storage grows by a quarter at least, so that a text of any length is copied a few times only.

        Args:
            slots: wanted.
            used: slots whose entries are to be kept; by default those in use.
        """
        if slots <= self.capacity:
            return
        capacity = -(-max(slots, self.capacity + self.capacity // 4) // CHUNK) * CHUNK
        before, self._storage = self._storage, []
        for number, (shape, members) in enumerate(self._members):
            # Attention multiplies masked slots by 0, and 0 * NaN is NaN: ragged rows need clean memory, and so do fixed
            # passes. Else a single row never sees a slot that it did not write.
            allocate = torch.zeros if self.rows > 1 or self.compiled else torch.empty
            grown = allocate(
                len(members), self.rows, shape.heads, capacity, shape.dim, dtype=shape.dtype, device=shape.device
            )
            if self.capacity:
                used = self.longest + self.speculative if used is None else used
                grown[..., :used, :] = before[number][..., :used, :]
                before[number] = None
            self._storage.append(grown)
            for index, (layer, name) in enumerate(members):
                setattr(self.layers[layer], name, grown[index])  # the last to hold the old storage lets go of it
        self.capacity = capacity

    def begin(self, new: int, fixed: bool = False) -> None:
        """Open a forward pass that writes `new` entries per row.

        With `fixed` it is of fixed form, for compilers: entries are written at slots that a tensor tells, and layers
        get as many slots as another tensor is long, whether all are used or not.
        """
        self._pass, self.fixed = new, fixed
        self.reserve(self.slots_in_use)
        self._start = self.longest + self.speculative
        self._scattered = fixed or not self.uniform
        device = self.lengths.device
        if fixed:
            self.window = torch.empty(min(self.capacity, -(-self.slots_in_use // WINDOW) * WINDOW), device=device)
        if self._scattered:
            self._row_index = torch.arange(self.rows, device=device)[:, None]
            self._slots = self.lengths[:, None] + torch.arange(self.speculative, self.speculative + new, device=device)

    def end(self) -> None:
        """Close the pass: its entries are now speculative."""
        self.speculative += self._pass
        self._pass = 0

    def write(self, storage: Tensor, states: Tensor) -> None:
        """Put `[batch, heads, new, dim]` states into a layer's `[batch, heads, capacity, dim]` storage.

        They are in its dtype, but where autocast makes a drafter's others than its weights are, or was turned on or off
        since the request began.
        """
        narrow = torch.float16 in (states.dtype, storage.dtype)
        states = states.to(storage.dtype)
        if narrow:
            # A wild guess may overflow. Its siblings see it with a weight of 0, which makes 0 of finite numbers only.
            states = states.nan_to_num()
        if self._scattered and self.rows == 1:
            storage.index_copy_(2, self._slots[0].to(storage.device), states)
        elif self._scattered:
            storage[self._row_index.to(storage.device), :, self._slots.to(storage.device)] = states.transpose(1, 2)
        else:
            storage[:, :, self._start : self._start + states.shape[2]] = states

    def commit(self, counts: list[int], path: Tensor | None = None) -> None:
        """Keep a path of the speculative entries and drop the rest.

        Args:
            counts: per row, how many entries to keep (0 leaves the row as it was).
            path: `[batch, steps]` which speculative entries to keep, in order, `steps >= max(counts)`; entries beyond
                a row's count are ignored. None keeps the first `counts` entries, which costs nothing.
        """
        if path is not None and max(counts):
            path = path[:, : max(counts)]  # padding may reach beyond the storage
            steps = torch.arange(path.shape[1], device=path.device)
            keep = steps < torch.tensor(counts, device=path.device)[:, None]
            base = self.lengths[:, None].to(path.device)
            # A step that is not kept moves onto itself.
            destination = base + steps
            source = base + torch.where(keep, path, steps)
            rows = torch.arange(self.rows, device=path.device)[:, None]
            for storage in self._storage:
                r, s, d = (index.to(storage.device) for index in (rows, source, destination))
                by_slot = storage.permute(1, 3, 0, 2, 4)  # a view: [batch, capacity, members, heads, dim]
                by_slot[r, d] = by_slot[r, s]
        if self.rows > 1:
            self._clear(counts)
        self.speculative = 0
        self.lengths_list = [length + count for length, count in zip(self.lengths_list, counts, strict=True)]
        self.lengths = torch.tensor(self.lengths_list, device=self.lengths.device)

    def take_back(self, counts: list[int]) -> None:
        """Forget the last committed entries of each row, so many, between two rounds."""
        self.lengths_list = [length - count for length, count in zip(self.lengths_list, counts, strict=True)]
        self.lengths = torch.tensor(self.lengths_list, device=self.lengths.device)
        self.speculative = max(counts)
        self.reserve(self.slots_in_use)
        self.commit([0] * self.rows)

    @torch.inference_mode()
    def _clear(self, counts: list[int]) -> None:
        """Zero the speculative entries behind the first `counts` of each row. Passes of longer rows read them too:
        one guess that is NaN would spoil all that its row reads from then on, see `reserve`."""
        dropped = [
            (row, slot)
            for row, (length, count) in enumerate(zip(self.lengths_list, counts, strict=True))
            for slot in range(length + count, length + self.speculative)
        ]
        if not dropped:
            return
        rows, slots = torch.tensor(dropped, device=self.lengths.device).unbind(1)
        for storage in self._storage:
            by_slot = storage.permute(1, 3, 0, 2, 4)
            by_slot[rows.to(storage.device), slots.to(storage.device)] = 0

    def copy_of(self, entries: list[list[int]]) -> TreeCache:
        """A cache of its own with some of the committed entries.

        Args:
            entries: per row, the slots to copy, in order.
        """
        lengths = [len(row) for row in entries]
        width = max(lengths)
        shapes: list[list[SlotShape]] = [[None, None] for _ in self.layers]
        for shape, members in self._members:
            for layer, name in members:
                shapes[layer][name == "values"] = shape
        cache = TreeCache(shapes, self.rows, max(width, 1), self.compiled, self.lengths.device)
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in entries], device=self.lengths.device)
        cache.begin(width)
        for layer, own in zip(self.layers, cache.layers, strict=True):
            parts = []
            for states in (layer.keys, layer.values):
                chosen = index.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                parts.append(states.gather(2, chosen))
            own.update(*parts)
        cache.end()
        cache.commit(lengths)
        return cache

    # What transformers asks of a cache besides its layers.

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read yet: by this PaliGemma tells the prompt from what follows."""
        return self.longest > 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of storage allocated."""
        return sum(storage.nbytes for storage in self._storage)


class LayersOfCache(TreeCache):
    """The first layers of another cache: its storage and its committed entries, without a copy.

    Entries written through it are speculative until the round ends; the other cache overwrites them with its own when
    it reads the same tokens, and is the one that commits.

    Args:
        whole: the other cache.
        count: how many of its layers.
    """

    def __init__(self, whole: TreeCache, count: int):
        Cache.__init__(self, layers=[TreeCacheLayer(self) for _ in range(count)])
        self.whole, self.rows, self.compiled = whole, whole.rows, whole.compiled
        self.speculative, self._pass, self.fixed = 0, 0, False

    @property
    def lengths(self) -> Tensor:
        return self.whole.lengths

    @property
    def lengths_list(self) -> list[int]:
        return self.whole.lengths_list

    @property
    def capacity(self) -> int:
        return self.whole.capacity

    def reserve(self, slots: int, used: int | None = None) -> None:
        self.whole.reserve(slots, self.longest + self.speculative if used is None else used)
        for own, theirs in zip(self.layers, self.whole.layers, strict=False):
            own.keys, own.values = theirs.keys, theirs.values

    def commit(self, counts: list[int], path: Tensor | None = None) -> None:
        """Forget what was written through it: only the whole cache commits."""
        if any(counts):
            raise ValueError("the first layers of a cache keep nothing by themselves")
        self.speculative = 0
