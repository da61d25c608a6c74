"""Pieces, streamers, and text that appears as the tokens come."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import inputs_for, llama
from refusals import refused
from toys import END, Scripted, byte_tokenizer, cut, piece_tokenizer
from transformers import TextIteratorStreamer, TextStreamer

import mmspec
from mmspec import Target
from mmspec.decoding.draining import drain
from mmspec.decoding.text import TextStream

LENGTH = 24


@pytest.fixture(scope="module")
def target():
    return Target(llama(), byte_tokenizer())


def options_for(rows: int) -> dict:
    return {"inputs": inputs_for("llama", [0] * rows), "max_new_tokens": LENGTH, "temperature": 1.0, "seed": 1}


def drafter_for(target, options, **script):
    return Scripted(target, mmspec.generate(target, **options).token_ids, **script)


def collect(stream):
    pieces = []
    return pieces, drain(stream, pieces.append)


def flat(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("right", [0, 2, 9])
@pytest.mark.parametrize("rows", [1, 3])
def test_pieces_add_up_to_the_output(target, rows, right):
    options = options_for(rows)
    drafter = drafter_for(target, options, right=right)
    ends = [drafter.texts[-1][7]]
    pieces, out = collect(mmspec.stream(target, drafter, eos_token_id=ends, **options))
    assert out.token_ids == [cut(text, LENGTH, ends) for text in drafter.texts]
    for row in range(rows):
        mine = [piece for piece in pieces if piece.row == row]
        assert flat(piece.token_ids for piece in mine) == out.token_ids[row]
        assert flat(piece.drafted for piece in mine) == out.drafted[row]
        assert "".join(piece.text for piece in mine) == out.text[row]
        assert [piece.round for piece in mine] == list(range(len(mine))), "rounds count from the prefill on"
        assert mine[0].drafted == [False] and len(mine[0].token_ids) == 1
        for number, piece in enumerate(mine[1:]):
            emitted, accepted = out.stats.rounds[number].emitted[row], out.stats.rounds[number].accepted[row]
            assert len(piece.token_ids) == emitted and sum(piece.drafted) == accepted
            assert piece.drafted == sorted(piece.drafted, reverse=True), "drafted tokens come before the bonus"
            assert all(a[1] != b[1] for a, b in zip(piece.spans, piece.spans[1:], strict=False)), "spans not merged"
    assert out.text == [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in out.token_ids]
    assert any(map(any, out.drafted)) == (right > 0)


def test_spans_tell_drafted_text_from_the_targets_own(target):
    """Two of three drafted tokens are right, so every round emits two drafted letters and one of the target's."""
    ids = target.tokenizer.encode("abcdefghij", add_special_tokens=False)
    assert len(ids) == 10
    options = {
        "inputs": {"input_ids": torch.tensor([[3, 4]])},
        "max_new_tokens": 9,
        "logits_processor": [Force(ids, 2)],
    }
    pieces, _ = collect(mmspec.stream(target, Scripted(target, [ids], right=2), **options))
    assert [piece.spans for piece in pieces] == [
        [("a", False)],
        [("bc", True), ("d", False)],
        [("ef", True), ("g", False)],
        [("hi", True)],
    ]
    wrong, _ = collect(mmspec.stream(target, Scripted(target, [ids], right=0), **options))
    assert [piece.spans for piece in wrong] == [[(letter, False)] for letter in "abcdefghi"]


class Force:
    """A logits processor that makes the target write a given text."""

    def __init__(self, ids, prompt):
        self.ids, self.prompt = ids, prompt

    def __call__(self, input_ids, scores):
        done = input_ids.shape[1] - self.prompt
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.ids[min(done, len(self.ids) - 1)]] = 0.0
        return forced


class Log:
    """What a Hugging Face streamer is called with."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        assert value.device.type == "cpu" and not value.is_floating_point()
        self.calls.append(value.tolist())

    def end(self):
        self.calls.append("end")


@pytest.mark.parametrize("right", [0, 9])
def test_streamer_gets_the_prompt_then_the_tokens_then_the_end(target, right):
    options = options_for(1)
    drafter = drafter_for(target, options, right=right)
    log = Log()
    out = mmspec.generate(target, drafter, streamer=log, **options)
    prompt, *tokens, end = log.calls
    assert prompt == options["inputs"]["input_ids"].tolist() and end == "end"
    assert flat(tokens) == out.token_ids[0] == drafter.texts[0]
    assert "end" not in tokens


def test_streamers_of_hugging_face_print_the_text(target, capsys):
    options = options_for(1)
    drafter = drafter_for(target, options)
    printer = TextStreamer(target.tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = mmspec.generate(target, drafter, streamer=printer, **options)
    assert capsys.readouterr().out == out.text[0] + "\n"
    iterator = TextIteratorStreamer(target.tokenizer, skip_prompt=True, skip_special_tokens=True)
    mmspec.generate(target, drafter, streamer=iterator, **options)
    assert "".join(iterator) == out.text[0]


def test_streamer_of_a_batch_is_refused(target):
    refused(lambda: mmspec.generate(target, streamer=Log(), **options_for(2)), "a streamer shows one row, the ... use")


def test_target_without_tokenizer_gives_tokens_and_no_text():
    target = Target(llama())
    pieces, out = collect(mmspec.stream(target, **options_for(2)))
    assert out.text == [None, None] and all(len(ids) == LENGTH for ids in out.token_ids)
    assert all(piece.text == "" and piece.spans == [] for piece in pieces)


# Text from tokens.

SENTENCE = "the é€😀漢ß n't a, b . 'c' !\n the ing"


def pieces_of(tokenizer, ids: list[int], backwards: bool = False) -> list[str]:
    """What every token completes, and what is left at the end."""
    stream = TextStream(tokenizer)
    texts = dict.fromkeys(range(len(ids)), "")
    for number, token in enumerate(ids):
        stream.ids.append(token)
        if not backwards:
            texts[number] = stream.text(number)
    if backwards:
        return [*[stream.text(number) for number in reversed(range(len(ids)))][::-1], stream.rest()]
    return [*texts.values(), stream.rest()]


@pytest.mark.parametrize("cleaning", [False, True])
@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
def test_text_grows_by_whole_characters_and_ends_complete(make, cleaning):
    tokenizer = make(clean_up_tokenization_spaces=cleaning)
    sentence = SENTENCE if make is byte_tokenizer else "the é€😀 ing a b"
    ids = [*tokenizer.encode(sentence, add_special_tokens=False), END]
    assert len(ids) > len(sentence) and ids.count(tokenizer.unk_token_id or -1) == 0
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == sentence
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(map(len, pieces)) <= 4, "text was held back for longer than a character"


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_any_bytes_concatenate_to_the_decoded_text(seed):
    """Broken characters included, in the middle and at the end."""
    tokenizer = byte_tokenizer()
    ids = torch.randint(0, 61, (80,), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces = pieces_of(tokenizer, ids)
    want = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == want and "\ufffd" in want


def test_text_of_an_unfinished_character_comes_at_the_end():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "\ufffd"]
    assert pieces_of(tokenizer, ids, backwards=True) == ["a", "", "", "", "\ufffd"], "in whatever order one asks"


def test_text_equals_the_pieces_with_a_tokenizer_that_cleans_up():
    """Cleaning joins " ." to the word before it, which a stream has printed already: the two must agree not to."""
    tokenizer = byte_tokenizer(clean_up_tokenization_spaces=True)
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = tokenizer.encode("a . b , c n't", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a. b, cn't"
    options = {"inputs": {"input_ids": torch.tensor([[3, 4]])}, "max_new_tokens": len(ids)}
    pieces, out = collect(mmspec.stream(Target(llama(), tokenizer), logits_processor=[Force(ids, 2)], **options))
    assert "".join(piece.text for piece in pieces) == out.text[0] == "a . b , c n't"


@pytest.mark.parametrize("right", [0, 9])
def test_a_row_that_ends_inside_a_character_shows_what_there_is(target, right):
    ids = target.tokenizer.encode("ab😀", add_special_tokens=False)[:-1]
    options = {"inputs": {"input_ids": torch.tensor([[3, 4]])}, "max_new_tokens": len(ids)}
    drafter = Scripted(target, [ids], right=right, length=4)
    pieces, out = collect(mmspec.stream(target, drafter, logits_processor=[Force(ids, 2)], **options))
    assert "".join(piece.text for piece in pieces) == out.text[0] == "ab\ufffd"
    assert pieces[-1].spans[-1][1] == bool(right)
