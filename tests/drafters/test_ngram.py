"""NGramDrafter: its index against a naive search, and trees that merge several continuations."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from models import inputs_for, llava, reference
from tiny_requests import target_of
from toy_drafters import shape

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import NGramDrafter


def started(histories, image_token=None, **options) -> NGramDrafter:
    """A drafter with a request on the given histories."""
    target = SimpleNamespace(family=SimpleNamespace(placeholders={image_token: "image"}))
    context = SimpleNamespace(history=histories, active=[True] * len(histories), target=target)
    drafter = NGramDrafter(target, **options).fork()
    drafter.start(context)
    return drafter


def draft(drafter):
    return drafter.draft(torch.tensor([history[-1] for history in drafter.context.history])).validate()


def naive(history, max_ngram=4, min_ngram=1, length=8, branches=4, image_token=None) -> list[tuple[int, ...]]:
    """A search through the whole history: paths in the order of their first appearance."""
    for n in range(max_ngram, min_ngram - 1, -1):
        gram = history[-n:]
        if len(gram) < n or image_token in gram:
            continue
        ends = [i for i in range(n, len(history)) if history[i - n : i] == gram]
        if not ends:
            continue
        paths: list[tuple[int, ...]] = []
        for end in ends[::-1][:branches]:
            continuation = history[end : end + length]
            if image_token in continuation:
                continuation = continuation[: continuation.index(image_token)]
            for k in range(1, len(continuation) + 1):
                if tuple(continuation[:k]) not in paths:
                    paths.append(tuple(continuation[:k]))
        return paths
    return []


SETTINGS = [
    {},
    {"max_ngram": 2, "length": 3, "branches": 2},
    {"max_ngram": 3, "min_ngram": 2, "length": 5, "branches": 8},
    {"max_ngram": 1, "length": 1, "branches": 1},
    {"max_ngram": 5, "min_ngram": 5},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("alphabet", [2, 4, 12])
def test_trees_equal_a_naive_search(options, alphabet):
    random.seed(alphabet)
    histories = [random.choices(range(alphabet), k=length) for length in (1, 2, 5, 17, 40, 80)]
    tree = draft(started(histories, **options))
    assert tree.tokens[:, 0].tolist() == [history[-1] for history in histories]
    found = 0
    for row, history in enumerate(histories):
        assert shape(tree, row) == naive(history, **options)
        found += len(shape(tree, row))
    assert found > 0 or options.get("min_ngram", 1) > 1
    assert tree.drafted.tolist() == [len(naive(history, **options)) for history in histories]
    assert tree.max_depth <= options.get("length", 8) and tree.proposal == "point"


def test_continuations_that_begin_alike_share_nodes():
    history = [1, 2, 3, 9, 1, 2, 4, 9, 1, 5, 9, 1]
    tree = draft(started([history], max_ngram=1, length=2))
    # the latest match first: 1 -> 5 9, then 1 -> 2 4, then 1 -> 2 3, which shares the 2
    assert tree.tokens.tolist() == [[1, 5, 9, 2, 4, 3]]
    assert tree.parents.tolist() == [[-1, 0, 1, 0, 3, 3]]


def test_longest_match_wins_over_later_ones():
    history = [7, 1, 2, 0, 5, 2, 6, 0, 7, 1, 2]
    assert shape(draft(started([history], max_ngram=3, length=1)), 0) == [(0,)]
    assert shape(draft(started([history], max_ngram=1, length=1)), 0) == [(6,), (0,)]


def test_index_that_grew_equals_one_built_afresh():
    random.seed(0)
    histories = [random.choices(range(4), k=k) for k in (3, 9)]
    drafter = started(histories, max_ngram=3)
    for step in range(25):
        for row, history in enumerate(histories):
            history.extend(random.choices(range(4), k=(step + row) % 5))  # none at times: a finished row
        drafter.observe(None, None, None)
        fresh = started([list(history) for history in histories], max_ngram=3)
        assert drafter.index == fresh.index
        grown, built = draft(drafter), draft(fresh)
        for row, history in enumerate(histories):
            assert shape(grown, row) == shape(built, row) == naive(history, max_ngram=3)


def test_image_tokens_are_never_looked_up_nor_proposed():
    random.seed(1)
    image = 99
    histories = [[*random.choices([1, 2, image], k=60), last] for last in (1, 2)]
    histories.append([1, 2, *[image] * 30, 1, 2, 3, 1, 2])
    tree = draft(started(histories, image_token=image))
    drafter = started(histories, image_token=image)
    assert not any(image in gram for index in drafter.index for gram in index)
    for row, history in enumerate(histories):
        assert shape(tree, row) == naive(history, image_token=image)
        assert not any(image in path for path in shape(tree, row))
    assert shape(tree, 2)[0] == (3,)
    blind = draft(started(histories, image_token=None))
    assert any(image in path for row in range(3) for path in shape(blind, row)), "the test is blind"


def test_rows_without_a_match_and_finished_rows_propose_nothing():
    drafter = started([[1, 2, 3], [4, 5, 4, 5, 4], [6, 6, 6]])
    drafter.context.active[2] = False
    tree = draft(drafter)
    assert tree.drafted.tolist() == [0, 2, 0]
    assert shape(tree, 1) == [(5,), (5, 4)]
    alone = draft(started([[1, 2, 3]]))
    assert alone.num_nodes == 1 and alone.max_depth == 0


def test_lookups_help_on_a_text_that_repeats_itself_and_stay_exact():
    model = llava()
    inputs = inputs_for("llava", [1, 2], [20, 8])
    want = reference(model, inputs, 40)
    target = Target(model)
    out = mmspec.generate(target, NGramDrafter(target, max_ngram=2), inputs=inputs, max_new_tokens=40)
    assert out.token_ids == want
    assert out.stats.num_accepted_draft_tokens > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "NGramDrafter: length=0 must be a positive integer"),
        ({"branches": -1}, "NGramDrafter: branches=-1 must be a positive integer"),
        ({"max_ngram": 2, "min_ngram": 3}, "NGramDrafter: min_ngram=3 is larger than max_ngram=2"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(MMSpecError, match=message):
        NGramDrafter(target_of("llama", "sdpa"), **options)
