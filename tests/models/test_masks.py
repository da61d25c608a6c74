"""TreeMask against a naive construction, over rounds of several passes in rows that advance differently."""

from __future__ import annotations

from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmspec.models import cache as cache_module
from mmspec.models.cache import TreeCache
from mmspec.models.cache_layer import SlotShape
from mmspec.models.masks import MaskForm, TreeMask

SHAPES = [(SlotShape(1, 1, torch.float32, torch.device("cpu")),) * 2]


@dataclass
class Row:
    """What a mask means for one row: committed tokens, then nodes with their parents among the nodes (-1: none)."""

    length: int = 0
    parents: list[int] = field(default_factory=list)

    def path(self, node: int) -> list[int]:
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def sees(self, node: int, slot: int, window: int | None) -> bool:
        path = self.path(node)
        if slot < self.length:
            place = slot
        elif slot - self.length in path:
            place = self.length + path.index(slot - self.length)
        else:
            return False
        return window is None or self.length + len(path) - 1 - place < window


def naive(rows: list[Row], new: int, slots: int, window: int | None) -> torch.Tensor:
    total = len(rows[0].parents)
    mask = [[[row.sees(q, slot, window) for slot in range(slots)] for q in range(total - new, total)] for row in rows]
    return torch.tensor(mask)[:, None]


@st.composite
def requests(draw):
    """Prompt lengths, and rounds: passes (per row the parents of the new nodes), then per row the node to keep."""
    batch = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch))
    rounds = []
    for _ in range(draw(st.integers(1, 5))):
        passes, total = [], 0
        for new in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)):
            parents = [st.integers(-1, total + node - 1) for node in range(new)]
            passes.append(draw(st.lists(st.tuples(*parents), min_size=batch, max_size=batch)))
            total += new
        kept = st.lists(st.integers(-1, total - 1), min_size=batch, max_size=batch)
        rounds.append((passes, draw(st.just([-1] * batch) | kept)))  # often nothing is kept in any row
    return lengths, rounds


def replay(request, windows: dict[str, int | None], form=MaskForm.BOOLEAN, capacity: int = 1):
    """Play a request on a cache; yield every mask with the rows it is for, and the number of new nodes."""
    lengths, rounds = request
    with mock.patch.object(cache_module, "CHUNK", 8):
        cache = TreeCache(SHAPES, len(lengths), capacity)
        masks = TreeMask(cache, windows, form, torch.float32)
        cache.begin(max(lengths))
        cache.end()
        cache.commit(lengths)
        rows = [Row(length) for length in lengths]
        for passes, keep in rounds:
            for parents in passes:
                for row, more in zip(rows, parents, strict=True):
                    row.parents += more
                total, new = len(rows[0].parents), len(parents[0])
                paths = [[row.path(node) for node in range(total)] for row in rows]
                visible = [[[j in path for j in range(total)] for path in row[total - new :]] for row in paths]
                depth = [[len(path) - 1 for path in row] for row in paths]
                cache.begin(new)
                needed = masks.needed(total)
                mask = masks.build(torch.tensor(visible), torch.tensor(depth)) if needed else None
                yield mask, rows, new, cache.slots_in_use
                cache.end()
            paths = [row.path(node) for row, node in zip(rows, keep, strict=True)]
            counts = [len(path) for path in paths]
            cache.commit(counts, torch.tensor([path + [-1] * (max(counts) - len(path)) for path in paths]))
            rows = [Row(row.length + count) for row, count in zip(rows, counts, strict=True)]


def assert_masks(request, window: int | None) -> None:
    for mask, rows, new, slots in replay(request, {"some_attention": window}):
        expected = naive(rows, new, slots, window)
        if mask is None:  # the model's own causal mask, which knows neither trees nor ragged rows
            assert new == 1 and len({row.length for row in rows}) == 1 and naive(rows, new, slots, None).all()
        else:
            assert torch.equal(mask, expected)


@given(requests())
def test_full_attention_equals_naive(request):
    assert_masks(request, None)


@given(requests(), st.integers(1, 9))
def test_sliding_window_equals_naive(request, window):
    assert_masks(request, window)


@given(requests())
def test_kinds_of_attention_get_a_mask_each(request):
    windows = {"full_attention": None, "sliding_attention": 3}
    for masks, rows, new, slots in replay(request, windows):
        if masks is not None:
            assert set(masks) == set(windows)
            for name, window in windows.items():
                assert torch.equal(masks[name], naive(rows, new, slots, window)), name


@given(requests())
def test_additive_masks_block_with_the_lowest_number(request):
    for mask, rows, new, slots in replay(request, {"full_attention": None}, MaskForm.ADDITIVE):
        if mask is not None:
            visible = naive(rows, new, slots, None)
            assert mask.dtype == torch.float32
            assert (mask[visible] == 0).all() and (mask[~visible] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize(("lengths", "expected"), [([4, 4], None), ([4, 3], [[True] * 5, [True] * 4 + [False]])])
def test_plain_decoding_needs_a_mask_in_ragged_rows_only(lengths, expected):
    request = lengths, [([[(-1,), (-1,)]], [0, 0])]
    ((mask, *_),) = replay(request, {"full_attention": None})
    assert mask is expected if expected is None else mask[:, 0, 0].tolist() == expected


def test_a_round_without_growth_rewrites_a_few_columns_only():
    """The prefix part is a buffer: the cost of a pass does not depend on the length of the prefix."""
    rounds = [([[(-1, 0), (-1, 0)]], [1, 1])] * 3
    places = {mask.data_ptr() for mask, *_ in replay(([6, 6], rounds), {"full_attention": None}, capacity=64)}
    assert len(places) == 1
