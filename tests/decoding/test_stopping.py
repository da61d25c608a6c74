"""Where a row ends: end tokens, the length limit and stopping criteria, wherever in a round they fall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from covering import covering
from models import inputs_for, llama
from refusals import refused
from toys import Scripted, byte_tokenizer, cut
from transformers import MaxLengthCriteria, StoppingCriteriaList, StopStringCriteria

import mmspec
from mmspec import Target
from mmspec.decoding.stopping import Stopping

LENGTH = 13


class Writer:
    """A target, and what it writes by itself on a ragged batch. Sampled, so that the text does not run in circles."""

    def __init__(self, rows: int):
        self.target = Target(llama(), byte_tokenizer())
        self.rows = rows
        self.inputs = inputs_for("llama", [0] * rows, [9, 5, 12, 7][:rows])
        self.texts = self.run(None).token_ids

    def run(self, drafter, **options):
        options = {"max_new_tokens": LENGTH, "temperature": 1.0, "seed": 3, **options}
        return mmspec.generate(self.target, drafter, inputs=self.inputs, **options)

    def drafted(self, **options) -> dict:
        """Drafters whose rounds emit from one to four tokens."""
        return {
            "none": None,
            "all right": Scripted(self.target, self.texts),
            "in a tree": Scripted(self.target, self.texts, siblings=2),
            "one right": Scripted(self.target, self.texts, right=1),
            "all wrong": Scripted(self.target, self.texts, right=0),
        }


@pytest.fixture(scope="module")
def single():
    return Writer(1)


@pytest.fixture(scope="module")
def ragged():
    return Writer(4)


DRAFTERS = ["none", "all right", "in a tree", "one right", "all wrong"]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("place", range(10))
def test_end_token_anywhere_in_a_round(single, drafter, place):
    """Rounds of the drafter that is right emit 4 tokens: place 0 is the first token, 4 and 8 are bonus tokens."""
    text = single.texts[0]
    want = cut(text, LENGTH, {text[place]})
    out = single.run(single.drafted()[drafter], eos_token_id=text[place])
    assert out.token_ids == [want] and out.finish_reason == ["eos"]
    assert out.stats.new_tokens == [len(want)] == [len(out.drafted[0])]


def test_the_text_used_above_has_its_end_tokens_in_all_places(single):
    first = {single.texts[0].index(token) for token in single.texts[0][:10]}
    assert {0, 4, 8} & first == {0, 4, 8} and len(first) > 7


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 8, 9])
def test_length_limit_anywhere_in_a_round(single, drafter, limit):
    out = single.run(single.drafted()[drafter], max_new_tokens=limit)
    assert out.token_ids == [single.texts[0][:limit]]
    assert out.finish_reason == ["length"] and out.stats.new_tokens == [limit]
    if limit == 1:
        assert out.stats.rounds == []


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_rows_of_a_batch_end_on_their_own(ragged, drafter):
    ends = {ragged.texts[0][0], ragged.texts[1][5], ragged.texts[2][2]}
    want = [cut(text, LENGTH, ends) for text in ragged.texts]
    assert len({len(row) for row in want}) >= 3, "the rows should end at different times"
    out = ragged.run(ragged.drafted()[drafter], eos_token_id=sorted(ends))
    assert out.token_ids == want
    assert out.finish_reason == ["eos" if row[-1] in ends else "length" for row in want]
    assert out.stats.new_tokens == list(map(len, want))
    for record in out.stats.rounds:
        for row in zip(record.drafted, record.accepted, record.emitted, strict=True):
            assert row[2] > 0 or row == (0, 0, 0), "a finished row must not be counted"


def test_finished_rows_stand_still(ragged):
    """They take part in the passes of the others, but neither their history nor their cache grows."""
    contexts = []

    class Watch(Scripted):
        def start(self, context):
            super().start(context)
            contexts.append(context)

    ends = [ragged.texts[0][0]]
    out = ragged.run(Watch(ragged.target, ragged.texts), eos_token_id=ends)
    context = contexts[0]
    assert len(out.token_ids[0]) == 1 and max(map(len, out.token_ids)) > 8
    for row, ids in enumerate(out.token_ids):
        grown = len(context.history[row]) - context.request.lengths[row]
        assert len(ids) <= grown < len(ids) + 4, "only what the last round emitted too many may be left"
        assert int(context.lengths[row]) == len(context.history[row]) - 1


def test_end_token_and_limit_at_once_is_an_end(single):
    text = single.texts[0]
    place = next(i for i, token in enumerate(text) if i > 2 and token not in text[:i])
    out = single.run(None, eos_token_id=text[place], max_new_tokens=place + 1)
    assert out.finish_reason == ["eos"]


def test_end_tokens_are_the_models_own_unless_given(single):
    text = single.texts[0]
    config = single.target.model.generation_config
    try:
        for own in (text[4], [text[4], text[2]]):
            config.eos_token_id = own
            ends = {own} if isinstance(own, int) else set(own)
            assert single.run(None).token_ids == [cut(text, LENGTH, ends)]
            assert single.run(None, eos_token_id=[]).token_ids == [text]
            assert single.run(None, eos_token_id=text[6]).token_ids == [cut(text, LENGTH, {text[6]})]
    finally:
        config.eos_token_id = None


class Recorder:
    """Stops after a number of tokens; remembers what it was shown."""

    def __init__(self, stop_at: int, answer=bool):
        self.stop_at, self.answer, self.seen = stop_at, answer, []

    def __call__(self, ids, scores, **kwargs):
        assert ids.shape[0] == 1 and scores is None
        self.seen.append(ids[0].tolist())
        return self.answer(ids.shape[1] >= self.stop_at)


ANSWERS = {"bool": bool, "tensor": lambda stop: torch.tensor([stop])}


@pytest.mark.parametrize(("drafter", "extra", "answer"), covering(DRAFTERS, [1, 3, 4, 6], ANSWERS))
def test_criteria_are_asked_after_every_token(single, drafter, extra, answer):
    prompt = single.inputs["input_ids"][0].tolist()
    recorder = Recorder(len(prompt) + extra, ANSWERS[answer])
    out = single.run(single.drafted()[drafter], stopping_criteria=[recorder])
    assert out.token_ids == [single.texts[0][:extra]] and out.finish_reason == ["stopping_criteria"]
    assert recorder.seen == [prompt + single.texts[0][: n + 1] for n in range(extra)]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_criteria_of_hugging_face(single, ragged, drafter):
    prompt = single.inputs["input_ids"].shape[1]
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=prompt + 6)])
    assert single.run(single.drafted()[drafter], stopping_criteria=criteria).token_ids == [single.texts[0][:6]]
    tokenizer = ragged.target.tokenizer
    strings = [tokenizer.decode([text[5]]) for text in ragged.texts[:2]]
    criterion = StopStringCriteria(tokenizer, strings)
    want = []
    for text in ragged.texts:
        ends = (n for n in range(1, LENGTH + 1) if bool(criterion(torch.tensor([text[:n]]), None).all()))
        want.append(text[: next(ends, LENGTH)])
    assert len({len(row) for row in want}) > 1
    out = ragged.run(ragged.drafted()[drafter], stopping_criteria=[criterion])
    assert out.token_ids == want
    out = ragged.run(ragged.drafted()[drafter], stop=strings)
    assert out.token_ids == want
    assert out.finish_reason == ["length" if len(row) == LENGTH else "stop" for row in want]


@pytest.mark.parametrize("drafter", ["none", "all right"])
def test_stop_strings_are_those_of_generate(single, drafter):
    """Texts of one token, of several, and one that begins in the prompt."""
    tokenizer, prompt = single.target.tokenizer, single.inputs["input_ids"]
    text = single.run(None, temperature=0.0).token_ids[0]
    for stop in (
        tokenizer.decode(text[4:5]),
        [tokenizer.decode(text[5:8]), "nowhere"],
        tokenizer.decode([*prompt[0, -1:].tolist(), *text[:2]]),
    ):
        own = single.target.model.generate(
            **single.inputs, max_new_tokens=LENGTH, do_sample=False, stop_strings=stop, tokenizer=tokenizer
        )
        want = own[0, prompt.shape[1] :].tolist()
        assert len(want) < LENGTH
        drafts = None if drafter == "none" else Scripted(single.target, [text])
        out = single.run(drafts, temperature=0.0, stop=stop)
        assert out.token_ids == [want] and out.finish_reason == ["stop"]


def test_a_single_criterion_stands_for_a_list_of_one(single):
    """As a function or as an object of Hugging Face's."""
    prompt = single.inputs["input_ids"].shape[1]
    want = [single.texts[0][:6]]
    for criteria in (lambda ids, scores: ids.shape[1] >= prompt + 6, MaxLengthCriteria(max_length=prompt + 6)):
        assert single.run(None, stopping_criteria=criteria).token_ids == want
        assert single.run(None, stopping_criteria=[criteria]).token_ids == want


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "5"])
def test_max_new_tokens_must_be_a_positive_integer(value):
    refused(lambda: Stopping(value), f"max_new_tokens={value!r} must be a positive integer")


def test_cut_on_its_own():
    stopping = Stopping(5, [9])
    assert stopping.cut([1, 2, 3, 4], [3], [4]) == ([4], None)
    assert stopping.cut([1, 2, 3, 4, 9, 5], [3], [4, 9, 5]) == ([4, 9], "eos")
    assert stopping.cut([0, 1, 2, 3, 4, 5, 6], [1, 2, 3], [4, 5, 6]) == ([4, 5], "length")
    assert Stopping(5, 9).eos == {9} and Stopping(5).eos == set()


@pytest.mark.parametrize("five", [5, np.int64(5), torch.tensor(5)], ids=["int", "numpy", "tensor"])
def test_whole_numbers_of_any_type(five):
    assert Stopping(five).max_new_tokens == 5
    for eos in (five, [five], (five, 5), np.array([5]), torch.tensor([5]), {5}):
        assert Stopping(5, eos).eos == {5}


@pytest.mark.parametrize("eos", ["x", "", "12", 1.5, True, None, ["x"], [1, None], torch.tensor(1.5)], ids=repr)
def test_end_tokens_must_be_whole_numbers(eos):
    refused(lambda: Stopping(5, eos), "eos_token_id= ... must be a token id or a list of them ([]")
