"""Suffix decoding: counts and trees against a search by hand, and a store that outlives its requests."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from tiny_requests import RAGGED, case, target_of
from toy_drafters import shape

import mmspec
from mmspec.drafters import SuffixDrafter, SuffixStore

NEW = 32
IMAGE = 99


def target():
    return target_of("llava", "sdpa")


def started(histories, texts=(), **options) -> SuffixDrafter:
    """A drafter with a request on the given histories, and earlier answers."""
    drafter = SuffixDrafter(target(), **options)
    for text in texts:
        drafter.store.add(text)
    own = SimpleNamespace(family=SimpleNamespace(placeholders={IMAGE: "image"}))
    drafter = drafter.fork()
    drafter.start(SimpleNamespace(history=histories, active=[True] * len(histories), target=own))
    return drafter


def draft(drafter):
    return drafter.draft(torch.tensor([history[-1] for history in drafter.context.history])).validate()


def count(texts, pattern: tuple[int, ...]) -> int:
    """How often a pattern stands in some texts."""
    size = len(pattern)
    return sum(tuple(text[i : i + size]) == pattern for text in texts for i in range(len(text) - size + 1))


def chance(texts, pattern, path) -> float:
    """D of a node: of every step, the share of the continuations that take it."""
    value, tokens = 1.0, {token for text in texts for token in text} - {IMAGE}
    for place in range(len(path)):
        above = (*pattern, *path[:place])
        value *= count(texts, (*above, path[place])) / max(sum(count(texts, (*above, one)) for one in tokens), 1)
    return value


def by_hand(texts, pattern, room: int, threshold: float, branching: bool) -> float:
    """The score of the tree that is grown node by node, each time over all that could follow."""
    tokens, grown, score = {token for text in texts for token in text} - {IMAGE}, [()], 0.0
    while len(grown) <= room:
        above = grown if branching else grown[-1:]
        new = [(*path, token) for path in above for token in tokens]
        new = [(chance(texts, pattern, path), path) for path in new if path not in grown]
        new = [one for one in new if one[0] >= threshold and one[0] > 0]
        if not new:
            break
        value, path = max(new)
        score += value
        grown.append(path)
    return score


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1.0, "threshold": 0.0}, {"branching": False, "budget": 4}, {"max_match": 2, "alpha": 3.0}]
)
def test_the_best_tree_is_found_and_counted_as_by_hand(options):
    chosen = {"max_match": 3, "alpha": 2.0, "budget": 6, "threshold": 0.15, "branching": True} | options
    found = 0
    for seed in range(8):
        random.seed(seed)
        texts = [random.choices(range(1, 4), k=12) for _ in range(2)]
        history = [*random.choices([1, 2, 3, IMAGE], k=10), 1 + seed % 3]
        tree = draft(started([history], texts, learn=False, **chosen))
        paths = shape(tree, 0)
        best, ours = 0.0, []
        for where in ([history], texts):
            for length in range(1, chosen["max_match"] + 1):
                pattern = tuple(history[-length:])
                if IMAGE in pattern:
                    continue
                room = min(int(chosen["alpha"] * length), chosen["budget"])
                rest = chosen["threshold"], chosen["branching"]
                best = max(best, by_hand(where, pattern, room, *rest))
                if len(paths) <= room:
                    ours.append(sum(chance(where, pattern, path) for path in paths))
        assert max(ours, default=0.0) == pytest.approx(best), (seed, paths)
        assert not any(IMAGE in path for path in paths) and len(set(paths)) == len(paths)
        assert chosen["branching"] or [len(path) for path in paths] == [*range(1, len(paths) + 1)]
        found += len(paths)
    assert found > 8


def test_a_longer_match_drafts_more_and_the_request_comes_before_the_store():
    text = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert shape(draft(started([[7, 8]], [text], alpha=2.0, learn=False)), 0)[-1] == (9, 10, 11, 12)
    assert shape(draft(started([[8]], [text], alpha=2.0, learn=False)), 0)[-1] == (9, 10)
    # as sure and as long: what the request itself says
    assert shape(draft(started([[8, 3, 8]], [text], alpha=1.0, learn=False)), 0) == [(3,)]
    assert draft(started([[4], [8]], [text], learn=False)).drafted.tolist() == [0, 2]


def test_a_second_identical_request_accepts_more_and_a_store_that_may_not_learn_does_not():
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    accepted = {}
    for learn in (True, False):
        drafter = SuffixDrafter(target(), learn=learn)
        outs = [mmspec.generate(target(), drafter, inputs=inputs, max_new_tokens=NEW) for _ in range(2)]
        assert all(out.token_ids == expected for out in outs)
        accepted[learn] = [out.stats.num_accepted_draft_tokens for out in outs]
        assert len(drafter.store) == (2 * len(expected) if learn else 0)
    assert accepted[True][1] > accepted[True][0] and accepted[False][0] == accepted[False][1]
    assert accepted[True][1] > 0.8 * NEW * len(expected)
    drafter.store.clear()
    assert len(drafter.store) == drafter.store.tokens == 0


def test_a_text_ends_in_the_store_where_the_model_ends_it(monkeypatch):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    monkeypatch.setattr(target().model.generation_config, "eos_token_id", expected[0][10])
    drafter = SuffixDrafter(target())
    for _ in range(2):
        out = mmspec.generate(target(), drafter, inputs=inputs, max_new_tokens=NEW)
    kept = list(drafter.store._texts.texts.values())
    ended = [(row, answer) for row, answer in enumerate(out.token_ids) if len(answer) < NEW]
    assert ended and len(kept) == 2 * len(expected)
    for row, answer in ended:
        assert all(text[-len(answer) :] == answer for text in (kept[row], kept[len(expected) + row]))


def test_interleaved_requests_write_their_texts_and_both_are_kept():
    drafter, asked = SuffixDrafter(target()), [case("llava", "sdpa", (1,), (9,), NEW, seed) for seed in (0, 1)]
    streams = [mmspec.stream(target(), drafter, inputs=inputs, max_new_tokens=NEW) for inputs, _ in asked]
    written: list[list[int]] = [[], []]
    alive = [0, 1]
    while alive:
        for number in list(alive):
            piece = next(streams[number], None)
            if piece is None:
                alive.remove(number)
            else:
                written[number] += piece.token_ids
    assert written == [expected[0] for _, expected in asked]
    for inputs, expected in asked:
        out = mmspec.generate(target(), drafter, inputs=inputs, max_new_tokens=NEW)
        assert out.token_ids == expected and out.stats.mean_acceptance_length > 3


def test_the_oldest_answers_leave_also_while_they_are_written():
    store = SuffixStore(target(), capacity=10)
    store.add([1, 2, 3])
    late = store.open()
    store.extend(late, [4, 5])
    store.add([6, 7, 8, 9])
    assert len(store) == 3 and store.tokens == 9
    store.extend(late, [1, 1])  # the oldest leaves
    assert len(store) == 2 and not store.places(2) and len(store.places(1)) == 1
    store.add([2, 3, 2, 3])  # and so does the one that is being written
    store.extend(late, [7, 7])
    assert store.tokens == 8 and not store.places(1) and not store.places(5)
    assert [place.text[place.after :] for place in store.places(2)] == [[3], [3, 2, 3]]  # the last one first
    store.add(range(11))  # too long to be kept
    assert len(store) == store.tokens == 0
    empty = started([[1, 2, 1]], capacity=0)
    assert shape(draft(empty), 0) == [(2,), (2, 1)] and len(empty.store) == 0


def test_a_store_is_saved_as_plain_text_and_loaded_for_its_own_vocabulary_alone(tmp_path):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    first = SuffixDrafter(target())
    mmspec.generate(target(), first, inputs=inputs, max_new_tokens=NEW)
    first.store.save(tmp_path / "answers.json")
    second = SuffixDrafter(target(), store=tmp_path / "answers.json")
    assert second.store.tokens == first.store.tokens
    out = mmspec.generate(target(), second, inputs=inputs, max_new_tokens=NEW)
    assert out.token_ids == expected and out.stats.num_accepted_draft_tokens > 0.8 * NEW * len(expected)
    saved = json.loads((tmp_path / "answers.json").read_text())
    for text, answer in zip(saved["texts"], expected, strict=True):  # behind the last words of the question
        assert answer in [text[place : place + NEW] for place in range(34)]
    other = SuffixStore(target_of("mistral", "sdpa"))
    refused(lambda: other.load(tmp_path / "answers.json"), "answers.json' is of another vocabulary than the target's")
    for content in ("", "[1]", json.dumps(saved | {"texts": [[True]]}), json.dumps(saved | {"format": "x"})):
        (tmp_path / "torn.json").write_text(content)
        refused(lambda: SuffixDrafter(target(), store=tmp_path / "torn.json"), "torn.json' is no store of answers")
    refused(lambda: SuffixDrafter(target(), store=tmp_path / "gone.json"), "gone.json' cannot be read")
    refused(lambda: first.store.save(tmp_path / "no" / "a.json"), "a.json' cannot be written ... name a file in")
    for strange in (-1, 1.5, True, None, "3"):
        refused(lambda strange=strange: first.store.add([2, strange]), f"the token {strange!r} is none of the target's")
    for strange in (5, "words"):
        refused(lambda strange=strange: first.store.add(strange), f"tokens={strange!r} must be a list of token ids")
    refused(lambda: first.store.save(5), "file=5 must be the name of a file")
    refused(lambda: first.store.load(5), "file=5 must be the name of a file")


def test_pictures_are_no_text():
    histories = [[1, 2, 3, *[IMAGE] * 4, 1, 2], [IMAGE, IMAGE, 7, IMAGE], [5, IMAGE, 5]]
    drafter = started(histories)
    tree = draft(drafter)
    assert shape(tree, 0) == [(3,)] and tree.drafted.tolist() == [1, 0, 0]
    assert [list(text) for text in drafter.store._texts.texts.values()] == [[1, 2], [], [5]]


def test_values_that_cannot_be_are_refused():
    refused(lambda: SuffixDrafter(target(), alpha=0), "alpha=0 must be a number above 0")
    refused(lambda: SuffixDrafter(target(), branching="no"), "branching='no' must be true or false")
    refused(lambda: SuffixDrafter(target(), learn=2), "learn=2 must be true or false")
    refused(lambda: SuffixDrafter(target(), threshold=2), "threshold=2 must be a number from 0 to 1")
    refused(lambda: SuffixDrafter(target(), capacity=-1), "capacity=-1 must be a whole number, 0 or more")
    refused(lambda: SuffixStore("tiny"), "SuffixStore takes a Target")
