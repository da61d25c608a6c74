"""TreeCache against a model made of lists: ragged rows, several passes a round, any path, growth; nothing is copied."""

from __future__ import annotations

import copy
import pickle
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_drafters import eagle_drafter, text_drafter
from tiny_requests import target_of
from torch.overrides import TorchFunctionMode

import mmspec
from mmspec.models import cache as cache_module
from mmspec.models.cache import TreeCache
from mmspec.models.cache_layer import SlotShape

CPU = torch.device("cpu")
# Keys and values of one layer may differ, and so may layers.
SHAPES = [
    (SlotShape(2, 4, torch.float32, CPU), SlotShape(2, 4, torch.float32, CPU)),
    (SlotShape(1, 3, torch.float64, CPU), SlotShape(2, 4, torch.float32, CPU)),
    (SlotShape(1, 3, torch.float64, CPU), SlotShape(3, 2, torch.float32, CPU)),
]


class ListCache:
    """What a cache means: per row, a list of committed and a list of speculative entries for every storage."""

    def __init__(self, rows: int):
        self.committed = [[] for _ in range(rows)]
        self.speculative = [[] for _ in range(rows)]

    def write(self, states: list[list[torch.Tensor]]) -> None:
        """`states[row][step]` is one tensor with everything that all layers store of one token."""
        for row, entries in enumerate(states):
            self.speculative[row] += entries

    def commit(self, counts: list[int], paths: list[list[int]]) -> None:
        for row, (count, path) in enumerate(zip(counts, paths, strict=True)):
            self.committed[row] += [self.speculative[row][node] for node in path[:count]]
            self.speculative[row] = []


def forward(cache: TreeCache, new: int, generator: torch.Generator) -> list[list[list[torch.Tensor]]]:
    """A pass of `new` entries per row, as attention layers would make it; returns them as `[row][step][storage]`."""
    written = []
    cache.begin(new)
    for layer, shapes in zip(cache.layers, SHAPES, strict=True):
        states = [
            torch.randn(cache.rows, shape.heads, new, shape.dim, dtype=shape.dtype, generator=generator)
            for shape in shapes
        ]
        layer.update(*states)
        written += states
    cache.end()
    return [[[states[row, :, step] for states in written] for step in range(new)] for row in range(cache.rows)]


def assert_equal(cache: TreeCache, model: ListCache) -> None:
    storages = [storage for layer in cache.layers for storage in (layer.keys, layer.values)]
    for row in range(cache.rows):
        expected = model.committed[row] + model.speculative[row]
        assert cache.lengths_list[row] == cache.lengths[row] == len(model.committed[row])
        for index, storage in enumerate(storages):
            for slot, entry in enumerate(expected):
                assert torch.equal(storage[row, :, slot], entry[index]), (row, slot, index)


@st.composite
def rounds(draw):
    """`(rows, capacity, rounds)`; a round is a list of pass sizes, and per row the path to keep."""
    rows = draw(st.integers(1, 3))
    result = []
    for _ in range(draw(st.integers(1, 5))):
        passes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        path = st.lists(st.integers(0, sum(passes) - 1), max_size=sum(passes), unique=True).map(sorted)
        result.append((passes, draw(st.lists(path, min_size=rows, max_size=rows)), draw(st.integers(0, 3))))
    return rows, draw(st.integers(1, 9)), result


@given(rounds(), st.integers(0, 2**31))
def test_any_history_equals_lists(plan, seed):
    rows, capacity, history = plan
    generator = torch.Generator().manual_seed(seed)
    with mock.patch.object(cache_module, "CHUNK", 4):
        cache, model = TreeCache(SHAPES, rows, capacity), ListCache(rows)
        for passes, paths, padding in history:
            for new in passes:
                model.write(forward(cache, new, generator))
                assert_equal(cache, model)
            counts = [len(path) for path in paths]
            # Verifiers pad paths to the depth that the tree might have had, which may exceed what was written.
            width = max(counts) + padding
            cache.commit(counts, torch.tensor([path + [-1] * (width - len(path)) for path in paths]).view(rows, width))
            model.commit(counts, paths)
            assert_equal(cache, model)
            assert cache.speculative == 0 and cache.capacity >= cache.longest


@given(st.lists(st.tuples(st.integers(1, 5), st.data()), min_size=1, max_size=4), st.integers(1, 3))
def test_commit_without_a_path_keeps_the_first_entries(history, rows):
    generator = torch.Generator().manual_seed(0)
    cache, model = TreeCache(SHAPES, rows, 4), ListCache(rows)
    for new, data in history:
        model.write(forward(cache, new, generator))
        counts = data.draw(st.lists(st.integers(0, new), min_size=rows, max_size=rows))
        cache.commit(counts)
        model.commit(counts, [list(range(new))] * rows)
        assert_equal(cache, model)


def test_update_returns_what_attention_may_read():
    """Views of the storage, as long for all rows: a short row's surplus is the mask's business."""
    cache = TreeCache(SHAPES, 2, 8)
    generator = torch.Generator().manual_seed(0)
    forward(cache, 5, generator)
    cache.commit([5, 2])
    cache.begin(3)
    for layer, (key, value) in zip(cache.layers, SHAPES, strict=True):
        states = [torch.ones(2, shape.heads, 3, shape.dim, dtype=shape.dtype) for shape in (key, value)]
        for view, storage in zip(layer.update(*states), (layer.keys, layer.values), strict=True):
            assert view.shape[2] == 8 and view.data_ptr() == storage.data_ptr()
            assert (view[0, :, 5:8] == 1).all() and (view[1, :, 2:5] == 1).all()
            assert not (view[1, :, 5:8] == 1).any()
    assert cache.layers[0].get_mask_sizes(3) == (8, 0)


def test_unused_slots_are_finite():
    """Attention multiplies masked slots by 0, and 0 * NaN is NaN."""
    cache = TreeCache(SHAPES, 2, 1)
    forward(cache, 300, torch.Generator().manual_seed(0))
    assert all(storage.isfinite().all() for layer in cache.layers for storage in (layer.keys, layer.values))


def test_storage_moves_only_to_grow_and_by_whole_chunks():
    chunk = cache_module.CHUNK
    cache, model = TreeCache(SHAPES, 2, 1), ListCache(2)
    generator = torch.Generator().manual_seed(0)
    assert cache.capacity == chunk
    places, capacities = set(), set()
    while cache.longest <= chunk:
        model.write(forward(cache, 50, generator))
        cache.commit([31, 50], torch.arange(50).flip(0).sort().values.expand(2, 50))
        model.commit([31, 50], [list(range(50))] * 2)
        places.add(tuple(storage.data_ptr() for layer in cache.layers for storage in (layer.keys, layer.values)))
        capacities.add(cache.capacity)
    assert_equal(cache, model)
    assert capacities == {chunk, 2 * chunk} and len(places) == 2


def test_memory_bytes_counts_every_slot():
    cache = TreeCache(SHAPES, 3, 10)
    per_token = sum(s.heads * s.dim * s.dtype.itemsize for pair in SHAPES for s in pair)
    assert cache.memory_bytes == 3 * cache_module.CHUNK * per_token
    cache.reserve(cache_module.CHUNK + 1)
    assert cache.memory_bytes == 6 * cache_module.CHUNK * per_token


class LargestNewTensor(TorchFunctionMode):
    """Remembers the largest tensor that an operation allocates."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given_storage = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given_storage:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("lengths", [[900, 900], [900, 700]])
def test_a_round_never_copies_the_prefix(lengths):
    cache = TreeCache(SHAPES, 2, 1000)
    generator = torch.Generator().manual_seed(0)
    forward(cache, 900, generator)
    cache.commit(lengths)
    before = [storage[:, :, :700].clone() for layer in cache.layers for storage in (layer.keys, layer.values)]
    with LargestNewTensor() as largest:
        forward(cache, 6, generator)
        cache.commit([3, 2], torch.tensor([[0, 2, 5], [1, 4, -1]]))
    # All layers, both rows, six entries; a copy of one layer's prefix would be larger still.
    assert 0 < largest.elements <= 2 * 6 * max(s.heads * s.dim for pair in SHAPES for s in pair) * len(SHAPES) * 2
    assert largest.elements < before[0].numel()
    after = [storage[:, :, :700] for layer in cache.layers for storage in (layer.keys, layer.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("new", [10**8, 40])
def test_what_may_be_written_is_not_reserved_at_once(monkeypatch, new):
    """The caches of target and drafters, for an answer that may become endless or longer than the model's limit."""
    made = []
    grow = TreeCache.reserve

    def reserve(cache, slots):
        made.append(slots)
        grow(cache, slots)

    monkeypatch.setattr(TreeCache, "reserve", reserve)
    target = target_of("llama", "sdpa")
    monkeypatch.setattr(target.family.text_config, "max_position_embeddings", 30)
    ask = {"inputs": {"input_ids": torch.arange(1, 21)[None]}, "stopping_criteria": lambda ids, _: ids.shape[1] >= 50}
    plain = mmspec.generate(target, max_new_tokens=30, **ask)
    for drafter in (None, text_drafter("llama", "sdpa"), eagle_drafter("llama", "sdpa")):
        made.clear()
        out = mmspec.generate(target, drafter, max_new_tokens=new, **ask)
        assert out.token_ids == plain.token_ids and len(out.token_ids[0]) == 30  # as generate, beyond the limit
        assert made[0] == 30 and max(made) <= cache_module.CHUNK


def test_a_growing_cache_is_copied_a_few_times_only(monkeypatch):
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    cache, sizes = TreeCache(SHAPES, 1, 4), set()
    for slots in range(1, 1000):
        cache.reserve(slots)
        sizes.add(cache.capacity)
        assert slots <= cache.capacity < slots * 1.25 + 8
    assert len(sizes) < 30


@pytest.mark.parametrize(
    "another", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))], ids=["copied", "stored"]
)
def test_another_cache_has_layers_of_its_own(another):
    """What is written to it, it commits, and the first one is as it was."""

    def write(cache: TreeCache, value: float) -> None:
        cache.begin(1)
        for layer, (keys, values) in zip(cache.tree_layers, SHAPES, strict=True):
            layer.update(*(torch.full((2, one.heads, 1, one.dim), value, dtype=one.dtype) for one in (keys, values)))
        cache.end()
        cache.commit([1, 1])

    first = TreeCache(SHAPES, 2)
    write(first, 1)
    second = another(first)
    write(second, 2)
    assert all(layer.cache is second for layer in second.tree_layers)
    assert (first.lengths_list, second.lengths_list) == ([1, 1], [2, 2])
    for before, after in zip(first.tree_layers, second.tree_layers, strict=True):
        assert (after.keys[:, :, 0] == 1).all() and (after.keys[:, :, 1] == 2).all()
        assert (before.keys[:, :, 0] == 1).all() and not (before.keys[:, :, 1] == 2).any()
