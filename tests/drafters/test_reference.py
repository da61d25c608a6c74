"""ReferenceDrafter: what it finds, how soon it finds its place again, and that the text never depends on it."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest
from refusals import refused
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import zoo
from mmspec.drafters import ReferenceDrafter
from mmspec.drafters.reference import Alignment, ReferenceText, Windows, read_references
from mmspec.testing import check_lossless
from mmspec.verifiers import RejectionSampling

NEW = 20
WINDOWS = Windows()


@cache
def embedded():
    return mmspec.load_target("tiny")


def follow(answer, references, drafted=64, least=0.0):
    """Write an answer as a target would that drafts from references; return the rounds it takes, and the drafts."""
    alignment = Alignment([ReferenceText(ids) for ids in references], WINDOWS)
    written, drafts = 1, []
    while written < len(answer):
        paths = [
            line[at : at + int(min(alignment.odds.reach(kind, least), drafted))]
            for line, at, kind in alignment.guesses(answer[:written])
        ]
        rest = answer[written:]
        kept = max([agreeing(path, rest) for path in paths], default=0)
        drafts.append(sum(map(len, paths)))
        emitted = rest[: kept + 1]
        alignment.follow(emitted)
        written += len(emitted)
    return len(drafts), drafts


def agreeing(path, rest) -> int:
    return next((n for n, (a, b) in enumerate(zip(path, rest, strict=False)) if a != b), min(len(path), len(rest)))


def letters(count: int, seed: int = 0, of: int = 26) -> list[int]:
    return random.Random(seed).choices(range(of), k=count)


# Where the answer stands.


def test_an_answer_that_is_the_reference_takes_one_round():
    answer = letters(60)
    assert follow(answer, [letters(60, seed=1), answer])[0] == 1


@pytest.mark.parametrize("change", ["other", "more", "fewer"])
def test_a_token_that_differs_costs_two_rounds_at_most(change):
    """With a place that is kept: the window alone would have to be filled again."""
    answer = letters(60)
    reference = {
        "other": [*answer[:20], 30, *answer[21:]],
        "more": [*answer[:20], 30, *answer[20:]],
        "fewer": [*answer[:20], *answer[21:]],
    }[change]
    assert follow(answer, [reference])[0] <= 3


def test_the_window_tells_equal_beginnings_apart():
    """Four tokens stand in both references, and five in one of them."""
    one, two = [1, 2, 3, 4, 5, 6], [9, 2, 3, 4, 5, 7]
    alignment = Alignment([ReferenceText(ids) for ids in (one, two)], WINDOWS)
    assert [guess[1:] for guess in alignment.guesses([8, 2, 3, 4])] == [(4, "several"), (4, "several")]
    (guess,) = alignment.guesses([8, 9, 2, 3, 4])
    assert [*guess.line[guess.at :]] == [5, 7] and guess.kind == "unique"
    assert [guess.kind for guess in Alignment([ReferenceText(one)], WINDOWS).guesses([8, 3])] == ["short"]
    assert Alignment([ReferenceText(one)], WINDOWS).guesses([8, 8]) == []


def test_where_one_reference_ends_another_may_begin():
    parts = [letters(12, seed) for seed in range(3)]
    answer = [*parts[0], 40, *parts[2], 40, *parts[1]]
    rounds, _ = follow(answer, parts)
    assert rounds <= 7
    assert follow(answer, parts[:1])[0] > 20  # negative control: with the first one alone


def test_an_unrelated_reference_is_soon_left_alone():
    """`least` rests: guesses that were never right are not drafted, and are so as soon as they are right again."""
    answer, other = letters(200, of=8), letters(200, seed=1, of=8)
    rounds, drafts = follow(answer, [other], least=0.2)
    assert sum(drafts[40:]) < sum(follow(answer, [other])[1][40:]) / 20
    again = [*other, *letters(100, seed=2)]
    rounds, drafts = follow([*answer, *again[200:]], [again], least=0.2)
    assert rounds < 220 and max(drafts[-10:]) > 10


def test_letters_match_whatever_the_signs_and_the_case():
    tokenizer = embedded().tokenizer
    reference = ReferenceText(
        tokenizer.encode(text := "“THE PICTURE,  SHOWS”: FOUR SHAPES ON A WHITE BACKGROUND"), text, tokenizer
    )
    for kind, said, follows in (
        ("unique", "THE PICTURE SHOWS", "”: FOUR SHAPES ON A WHITE BACKGROUND"),
        ("letters", "The picture 'shows", "”: four shapes on a white background"),
        ("letters", "the picture shows ", "four shapes on a white background"),
    ):
        (guess,) = Alignment([reference], WINDOWS, lambda said=said: said).guesses(tokenizer.encode(said))
        assert guess.kind == kind and tokenizer.decode([*guess.line[guess.at :]]) == follows
    without = Alignment([reference], Windows(letters=0), lambda: said).guesses(tokenizer.encode(said))
    assert {guess.kind for guess in without} == {"short"}


# Requests.


def test_each_row_has_its_own_references_and_rows_without_rest(monkeypatch):
    """The first row's is the text, the second has none, the third that of another row."""
    rows = ((1, 0, 1), (9, 5, 7))
    inputs, expected = case("llava", "sdpa", *rows, NEW)
    drafter = ReferenceDrafter(target_of("llava", "sdpa"), references=[])
    references = [expected[0], [], [expected[1]]]
    drafts = record_drafts(monkeypatch, ReferenceDrafter)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, extras={"references": references})
    assert out.token_ids == expected
    rounds = out.stats.rounds
    assert rounds[0].drafted[0] == NEW - 1 and rounds[0].accepted[0] == NEW - 1
    assert not any(record.drafted[1] for record in rounds)
    assert all(draft.tree.validate() for draft in drafts)


def test_a_request_leaves_nothing_for_another_one():
    target = target_of("mistral", "sdpa")
    drafter = ReferenceDrafter(target, references=[])
    both = [case("mistral", "sdpa", (0,), (length,), NEW) for length in (9, 6)]
    streams = [
        mmspec.stream(target, drafter, inputs=inputs, max_new_tokens=NEW, extras={"references": [expected]})
        for inputs, expected in both
    ]
    found: list[list[int]] = [[], []]
    while any(streams):
        for place, stream in enumerate(streams):
            piece = next(stream, None) if stream else None
            streams[place] = stream if piece else None
            found[place] += piece.token_ids if piece else []
    assert found == [expected[0] for _, expected in both]


ANYTHING = [
    "",
    " ",
    "<image>\n<image>",
    "The picture shows five shapes on a white background.",
    "the PICTURE shows “five” shapes",
    "😀 é \ud7ff 漢字 \x00",
    "There is a small " * 30,
    [0, 1, 2, 3] * 10,
]


@pytest.mark.product
def test_no_reference_changes_the_text():
    """One, two and no pictures, greedy and drawn, alone and in a ragged batch."""
    drafter = ReferenceDrafter(embedded(), references=ANYTHING, least=0, nodes=40)
    assert check_lossless(drafter, max_new_tokens=16).accepted > 0


def test_true_regions_in_any_order_take_few_rounds():
    """The page of several regions; with JSON around them, the skeletons lead from one to the next."""
    target, (image, prompt, text) = embedded(), zoo.sample("documents", "test", 100)
    plain = mmspec.generate(target, None, prompt, [image])
    lines = text.split("\n")
    out = mmspec.generate(target, ReferenceDrafter(target), prompt, [image], extras={"references": [lines[::-1]]})
    assert out.token_ids == plain.token_ids and len(out.stats.rounds) < len(plain.token_ids[0]) / 3

    joined = ReferenceDrafter(target, joint="\n")
    out = mmspec.generate(target, joined, prompt, [image], extras={"references": [lines]})
    assert out.token_ids == plain.token_ids and len(out.stats.rounds) < 5

    encode = target.tokenizer.encode
    page = ", ".join(json.dumps({"category": "Text", "text": line + ' "x"'}) for line in lines)
    drafter = ReferenceDrafter(
        target, [line + ' "x"' for line in lines], skeletons=['"}, {"category": "Text", "text": "'], escape=True
    )
    known = [one.ids for one in [*drafter.references, *drafter.skeletons]]
    assert follow(encode(page), known)[0] < 4 * len(lines) < len(encode(page)) / 4


def test_rejection_sampling_takes_its_point_proposals():
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = ReferenceDrafter(target_of("llava", "sdpa"), references=expected)
    options = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 0.8}
    out = mmspec.generate(drafter.target, drafter, verifier=RejectionSampling(), **options)
    assert out.stats.lossless and [len(row) for row in out.token_ids] == [NEW] * len(expected)


def test_without_references_the_prompt_is_one():
    inputs, expected = case("mistral", "sdpa", (0,), (9,), NEW)
    inputs = {"input_ids": inputs["input_ids"].new_tensor([[*inputs["input_ids"][0].tolist(), *expected[0], 5]])}
    target = target_of("mistral", "sdpa")
    drafter = ReferenceDrafter(target)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW)
    assert out.token_ids == mmspec.generate(target, None, inputs=inputs, max_new_tokens=NEW).token_ids
    assert sum(sum(record.drafted) for record in out.stats.rounds) > 0


# Files, and what is refused.


def test_files_of_references(tmp_path):
    files = {
        "a.txt": ("one\ntwo\n", ["one\ntwo"]),
        "b.json": ('["one", "two"]', ["one", "two"]),
        "c.json": ('{"references": ["one"]}', ["one"]),
        "d.json": ('{"parsing_res_list": [{"block_bbox": [0, 0, 9, 9], "block_content": "one"}]}', ["one"]),
    }
    for name, (content, expected) in files.items():
        (tmp_path / name).write_text(content)
        assert read_references(tmp_path / name) == expected
    drafter = ReferenceDrafter(embedded(), references="zero", file=tmp_path / "b.json")
    assert [one.text for one in drafter.references] == ["zero", "one", "two"]
    for name, content, said in (
        ("e.json", "{", "is not JSON"),
        ("f.json", '{"a": 1}', "give a list of texts"),
        ("g.json", '{"parsing_res_list": [{}]}', "holds [None]: give a list of texts"),
    ):
        (tmp_path / name).write_text(content)
        refused(lambda name=name: read_references(tmp_path / name), f"{name!r} ... {said}".replace("'", ""))
    refused(lambda: read_references(3), "file=3 must be the name of a file")
    refused(lambda: read_references(tmp_path / "none.txt"), "none.txt' cannot be read: No such file")


def test_what_is_no_reference_is_refused():
    tiny, without = embedded(), target_of("mistral", "sdpa")
    refused(lambda: ReferenceDrafter(tiny, window=11), "window=11 is larger than longest_window=10")
    refused(lambda: ReferenceDrafter(tiny, nodes=0), "nodes=0 must be a positive integer")
    refused(lambda: ReferenceDrafter(tiny, least=1), "least=1 must be a number")
    refused(lambda: ReferenceDrafter(tiny, escape="no"), "escape='no' must be true or false")
    refused(lambda: ReferenceDrafter(tiny, joint=1), "joint=1 must be a text, such as a line break, or None")
    refused(lambda: ReferenceDrafter(tiny, [[1], [2]], joint="a"), "joint='a' joins texts, and references has [1]")
    refused(lambda: ReferenceDrafter(tiny, references=3), "references is 3: give a text, or a list of texts")
    refused(lambda: ReferenceDrafter(tiny, references=[[1, 9999]]), "has [1, 9999], which is neither")
    refused(lambda: ReferenceDrafter(without, references="a"), "the target has no tokenizer: pass mmspec.Target")
    drafter, (image, prompt, _) = ReferenceDrafter(tiny), zoo.sample("documents", "test", 0)
    refused(
        lambda: mmspec.generate(tiny, drafter, prompt, [image], extras={"references": [{"a": "b"}]}),
        "extras['references'] of row 0 is {'a': 'b'}: give a text, or a list of texts",
    )
