"""TreeCache: a preallocated, ragged, prunable key-value cache for targets and drafters alike.

Every row of the batch owns the slots `0 .. length` of a storage with room to spare. A forward pass writes its new
entries in place behind the committed ones, each row at its own offset; `commit` keeps the accepted path by moving its
few entries to the front of that speculative area. The committed prefix is never copied.

A row that has ended leaves: the last row of the storage takes its place, and passes run on the rows that are left. All
methods but those of the layers go on speaking of the whole batch, in its order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache_layer import SlotShape, TreeCacheLayer
from .entries import ChosenEntries
from .rows import Staying
from .transfer import to_device

CHUNK = 256
"""The storage grows by multiples of this many slots."""

AHEAD = 1024
"""Slots that are reserved at most for an answer that has not begun, however long it may become."""

WINDOW = 64
"""Passes of fixed form see a multiple of this many slots, and slots behind a row are numbered so many at a time."""


class TreeCache(Cache):
    """Key-value storage of one request.

    Args:
        shapes: for every layer the `SlotShape` of its keys and of its values (see `Target.cache_shapes`).
        batch_size: number of rows.
        capacity: slots to allocate at once; more are added in chunks when a forward pass needs them.
        compiled: True if blocks go through compiled passes, see `begin`. Each tensor of a layer then has a storage of
            its own: a compiler makes copies of a whole tensor to write to views of it.
        device: where lengths, masks and positions are made; by default where the first layer is. Every layer's entries
            are on the layer's own device.

    A round is any number of forward passes, each opened by `begin(new)`, and one `commit`. Between two commits the
    entries of those passes lie behind one another, at slots `length + 0, 1, 2, ...` of each row.

    Attributes:
        batch: number of rows at the beginning.
        lengths: `[batch]` committed entries; those that it had at last for a row that has left.
        lengths_list: `lengths` as numbers on the host.
        present_lengths: committed entries of the rows that have not left, in the order of the storage.
        longest: the largest of the `present_lengths`.
        uniform: True if all of the `present_lengths` are the same.
        written: speculative entries that others have written into some layers in this round, see `LayersOfCache`.
    """

    def __init__(
        self,
        shapes: list[tuple[SlotShape, SlotShape]],
        batch_size: int,
        capacity: int = CHUNK,
        compiled: bool = False,
        device: torch.device | None = None,
    ):
        self.tree_layers: list[TreeCacheLayer] = []
        super().__init__(layers=[])
        self.batch, self.compiled = batch_size, compiled
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device or shapes[0][0].device)
        self.lengths_list = [0] * batch_size
        self._commits = 0
        self._staying = Staying(batch_size)
        self._open()
        self._look()
        self._members: list[tuple[SlotShape, list[tuple[int, str]]]] = []
        self._storage: list[Tensor] = []
        self.capacity = 0
        self.add_layers(shapes)
        self.reserve(capacity)

    def add_layers(self, shapes: Sequence[tuple[SlotShape, SlotShape]]) -> None:
        """Add layers behind those that there are, with nothing in them yet.

        Args:
            shapes: for each of them the `SlotShape` of its keys and of its values.
        """
        # Layers of one shape share one tensor, so that a commit is one gather and one scatter for all of them.
        members: dict[tuple, list[tuple[int, str]]] = defaultdict(list)
        for pair in shapes:
            layer = TreeCacheLayer(self)
            number = len(self.tree_layers)
            self.tree_layers.append(layer)
            self.layers.append(layer)
            for name, shape in zip(("keys", "values"), pair, strict=True):
                members[(shape, number, name) if self.compiled else (shape,)].append((number, name))
        for (shape, *_), group in members.items():
            self._members.append((shape, group))
            self._storage.append(torch.empty(len(group), 0))
            if self.capacity:
                size = len(group), self.rows, shape.heads, self.capacity, shape.dim
                self._hold(len(self._storage) - 1, torch.zeros(size, dtype=shape.dtype, device=shape.device))

    def _open(self) -> None:
        """Begin a round."""
        self.speculative, self._pass, self.fixed = 0, 0, False
        self.written = 0
        self._numbered: Tensor | None = None
        self._numbered_for = -1, -1

    # The rows that have not left.

    @property
    def rows(self) -> int:
        """The number of rows that have not left. The storage, the layers and the passes have so many."""
        return len(self._staying)

    @property
    def rows_present(self) -> list[int]:
        """Numbers, in the batch, of the rows that have not left, in the order of the storage."""
        return list(self._staying.rows)

    def present(self, values: Tensor, dim: int = 0) -> Tensor:
        """Return the rows that passes run on, in the order of the storage, of a tensor about the batch, along `dim`."""
        return self._staying.of(values, dim)

    def whole(self, values: Tensor) -> Tensor:
        """Return a tensor about the batch, from one about the rows that passes run on; zeros stand for all others."""
        return self._staying.among_all(values)

    @torch.inference_mode()
    def leave(self, active: Sequence[bool]) -> None:
        """Let rows go that have ended. Call it between two rounds.

        Args:
            active: per row, True if it goes on. One row stays even if none does; two where passes are compiled and two
                began, as one row would be another program.
        """
        least, longest = min(2 if self.compiled else 1, self.batch), self.longest
        for row in [row for row in self._staying.rows if not active[row]]:
            if self.rows <= least:
                break
            gone, last = self._staying.replace(row)
            for number, storage in enumerate(self._storage):
                if gone != last:  # with all that is clean behind a short row, see `reserve`
                    storage[:, gone, :, :longest] = storage[:, last, :, :longest]
                self._hold(number, storage[:, : self.rows])
        self._look()

    def _look(self) -> None:
        """Note how long the rows are that have not left."""
        self.present_lengths = [self.lengths_list[row] for row in self._staying.rows]
        self.longest, self.uniform = max(self.present_lengths), len(set(self.present_lengths)) == 1

    @property
    def commits(self) -> int:
        """The number of commits so far."""
        return self._commits

    @property
    def slots_in_use(self) -> int:
        """Slots of the longest row that hold entries, those of the open pass included."""
        return self.longest + self.speculative + self._pass

    def reserve(self, slots: int, used: int | None = None) -> None:
        """Make room for `slots` slots per row, in whole chunks.

        The storage grows by a quarter at least, so that a text of any length is copied a few times only.

        Args:
            slots: slots wanted per row.
            used: slots whose entries are to be kept; by default those in use, with what others have written.
        """
        if slots <= self.capacity:
            return
        capacity = -(-max(slots, self.capacity + self.capacity // 4) // CHUNK) * CHUNK
        for number, (shape, _) in enumerate(self._members):
            # Attention multiplies masked slots by 0, and 0 * NaN is NaN: ragged rows need clean memory, and so do fixed
            # passes. Else a single row never sees a slot that it did not write.
            allocate = torch.zeros if self.rows > 1 or self.compiled else torch.empty
            before = self._storage[number]
            grown = allocate(
                len(before), self.rows, shape.heads, capacity, shape.dim, dtype=shape.dtype, device=shape.device
            )
            if self.capacity:
                used = self.longest + max(self.speculative, self.written) if used is None else used
                grown[..., :used, :] = before[..., :used, :]
            self._hold(number, grown)
            del before  # nobody else holds it any more
        self.capacity = capacity

    def _hold(self, number: int, storage: Tensor) -> None:
        """Take a storage, `[members, rows, heads, capacity, dim]`, and show the layers theirs."""
        self._storage[number] = storage
        for index, (layer, name) in enumerate(self._members[number][1]):
            setattr(self.tree_layers[layer], name, storage[index])

    def begin(self, new: int, fixed: bool = False) -> None:
        """Open a forward pass that writes `new` entries per row.

        With `fixed` it is of fixed form, for compilers: entries are written at slots that a tensor tells, and layers
        get as many slots as another tensor is long, whether all are used or not.
        """
        self._pass, self.fixed = new, fixed
        if fixed:
            slots = -(-self.slots_in_use // WINDOW) * WINDOW
            self.reserve(slots + 1)  # a window that is the whole storage is another program
            self.window = torch.empty(slots, device=self.lengths.device)
        else:
            self.reserve(self.slots_in_use)
        self._start = self.longest + self.speculative
        self._scattered = fixed or not self.uniform
        if self._scattered:
            self._slots = self.slots(self.speculative, self.speculative + new)

    def slots(self, start: int, end: int) -> Tensor:
        """Return `[rows, end - start]` the slots of the speculative entries with these numbers, found once a round."""
        now = self.commits, self.rows
        if self._numbered is None or self._numbered_for != now or self._numbered.shape[1] < end:
            device = self.lengths.device
            numbers = torch.arange(-(-end // WINDOW) * WINDOW, device=device)
            self._row_numbers = torch.arange(self.rows, device=device)[:, None]
            self._numbered, self._numbered_for = self.present(self.lengths)[:, None] + numbers, now
        return self._numbered[:, start:end]

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
            rows, slots = self._row_numbers.to(storage.device), self._slots.to(storage.device)
            storage[rows, :, slots] = states.transpose(1, 2)
        else:
            storage[:, :, self._start : self._start + states.shape[2]] = states

    @torch.inference_mode()
    def commit(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """Keep a path of the speculative entries and drop the rest.

        Args:
            counts: per row, the number of entries to keep (0 leaves the row as it was).
            path: `[batch, steps]` numbers of the speculative entries to keep, in order, `steps >= max(counts)`;
                entries beyond a row's count are ignored. None keeps the first `counts` entries, which costs nothing.
            kept: `[batch]` the same counts, where they are on the device already: then nothing has to be copied there.
        """
        number: int | Tensor
        if len(set(counts)) == 1:
            number = counts[0]  # needs no copy
        else:
            number = to_device(counts, self.lengths.device) if kept is None else kept
        if max(counts) and path is not None:
            self._move(self.present(path)[:, : max(counts)])  # padding may reach beyond the storage
        # Passes of longer rows, and those of fixed form, read what was dropped too: one guess that is NaN would spoil
        # all that its row reads from then on, see `reserve`.
        if (self.rows > 1 or self.compiled) and min(counts) < max(self.speculative, self.written):
            self._clear(number if isinstance(number, int) else self.present(number)[:, None])
        self.lengths_list = [length + count for length, count in zip(self.lengths_list, counts, strict=True)]
        if max(counts):
            self.lengths = self.lengths + number
        self._commits += 1
        self._open()
        self._look()

    def take_back(self, counts: list[int]) -> None:
        """Forget the last committed entries of each row, so many, between two rounds."""
        self.lengths_list = [length - count for length, count in zip(self.lengths_list, counts, strict=True)]
        self.lengths = self.lengths - to_device(counts, self.lengths.device)
        self._open()
        self._look()
        self.speculative = max(counts)
        self.reserve(self.slots_in_use)
        self.commit([0] * self.batch)

    def _move(self, path: Tensor) -> None:
        """Bring the speculative entries of a path to the front, in its order. What then lies behind a row's count means
        nothing."""
        destination = self.slots(0, path.shape[1])
        source = destination[:, :1] + path.to(destination.device)
        for storage in self._storage:
            r, s, d = (index.to(storage.device) for index in (self._row_numbers, source, destination))
            by_slot = storage.permute(1, 3, 0, 2, 4)  # a view: [rows, capacity, members, heads, dim]
            by_slot[r, d] = by_slot[r, s]

    @torch.inference_mode()
    def arrange(self, entries: Tensor, numbers: Collection[int]) -> None:
        """Put speculative entries that a `LayersOfCache` has written into the order of the pass that comes next.

        Args:
            entries: `[rows, new]` numbers of the entries that belong at its places.
            numbers: numbers of the layers: the first ones of those that share a shape.
        """
        end = self.speculative + entries.shape[1]
        self.reserve(self.longest + end)
        destination = self.slots(self.speculative, end)
        source = self.slots(0, 1) + entries.to(destination.device)
        for (_, members), storage in zip(self._members, self._storage, strict=True):
            count = sum(layer in numbers for layer, _ in members)
            r, s, d = (index.to(storage.device) for index in (self._row_numbers, source, destination))
            by_slot = storage[:count].permute(1, 3, 0, 2, 4)
            by_slot[r, d] = by_slot[r, s]

    def _clear(self, kept: int | Tensor) -> None:
        """Zero the speculative entries behind the first ones of each row: a number of them, or `[rows, 1]` numbers."""
        end = max(self.speculative, self.written)
        if isinstance(kept, int) and self.uniform:
            for storage in self._storage:
                storage[..., self.longest + kept : self.longest + end, :] = 0
            return
        first = kept if isinstance(kept, int) else 0
        slots = self.slots(first, end)
        dropped = None
        if not isinstance(kept, int):
            dropped = (slots >= slots[:, :1] + kept)[..., None, None, None]
        for storage in self._storage:
            r, s = self._row_numbers.to(storage.device), slots.to(storage.device)
            by_slot = storage.permute(1, 3, 0, 2, 4)
            by_slot[r, s] = 0 if dropped is None else by_slot[r, s].masked_fill(dropped.to(storage.device), 0)

    def copy_of(self, entries: ChosenEntries) -> TreeCache:
        """Return a cache of its own with some of the committed entries."""
        lengths = entries.lengths
        width = max(lengths)
        found = {member: shape for shape, members in self._members for member in members}
        shapes = [(found[number, "keys"], found[number, "values"]) for number in range(len(self.layers))]
        cache = TreeCache(shapes, self.batch, max(width, 1), self.compiled, self.lengths.device)
        cache.begin(width)
        for layer, own, index in zip(self.tree_layers, cache.tree_layers, entries.layers, strict=True):
            parts = []
            for states in (self.whole(layer.keys), self.whole(layer.values)):
                chosen = index[..., :width, None].to(states.device)
                parts.append(states.take_along_dim(chosen, dim=2))
            own.update(*parts)
        cache.end()
        cache.commit(lengths)
        cache.leave([row in self._staying.rows for row in range(self.batch)])
        return cache

    @torch.inference_mode()
    def take_from(self, other: TreeCache, counts: list[int]) -> None:
        """Commit copies of the last committed entries of another cache, between two rounds.

        Args:
            other: a cache of the same layers and rows, such as the one that this is a `copy_of`.
            counts: entries to take per row; 0 for a row that has left either cache.
        """
        width = max(counts)
        if not width:
            return
        self.begin(width)
        place = {row: number for number, row in enumerate(other.rows_present)}
        rows = self.rows_present
        starts = [[place.get(row, 0), other.lengths_list[row] - counts[row]] for row in rows]
        theirs, first = to_device(starts, self.lengths.device).split(1, dim=1)
        # What lies behind a shorter row's own is dropped again by the commit, wherever it comes from.
        columns = torch.arange(width, device=self.lengths.device)
        source, own = (first + columns).clamp(max=other.capacity - 1), self.slots(0, width)
        for storage, others in zip(self._storage, other._storage, strict=True):
            r, o, t, s = (index.to(storage.device) for index in (self._row_numbers, own, theirs, source))
            storage.permute(1, 3, 0, 2, 4)[r, o] = others.permute(1, 3, 0, 2, 4)[t, s]
        self.end()
        self.commit(counts)

    # What transformers asks of a cache besides its layers.

    @property
    def is_initialized(self) -> bool:
        """True once anything was read: by this PaliGemma tells the prompt from what follows."""
        return self.longest > 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of storage allocated."""
        return sum(storage.nbytes for storage in self._storage)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the entries that are committed, every row as long as the longest."""
        return self.memory_bytes // self.capacity * self.longest
