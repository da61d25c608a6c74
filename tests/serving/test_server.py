"""A running server as who answers: the target's own answers arrive, and whatever goes wrong is said in one line."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
import tiny_training
from fake_server import serving
from refusals import refused
from tiny_training import ANSWERS, INFO, SKIPPED, lines

import mmspec
from mmspec import zoo
from mmspec.cli import main
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import NGramDrafter
from mmspec.inputs import prepare
from mmspec.serving import server as module
from mmspec.serving.counters import rounds_of
from mmspec.serving.server_engine import ServerEngine
from mmspec.training.distill import distill

pytest.importorskip("httpx2")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Nobody waits between two tries."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)


CHATS = "/v1/chat/completions"


def chat(content: object = "", **more: object) -> dict:
    """Return a chat completion."""
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop", **more}]}


def engine_at(how, **settings) -> ServerEngine:
    given = {"patience": 60, "retries": 2} | settings
    return ServerEngine(tiny_training.target(), None, None, None, Sampling(), 4, url=how.url, **given)


def requests():
    samples = [zoo.sample("scenes", "train", number) for number in range(3)]
    prompts, pictures = [one.prompt for one in samples], [[one.image] for one in samples]
    return prepare(tiny_training.target(), [*prompts, "No picture?"], [*pictures, []])


@pytest.mark.parametrize("ids", [True, False])
def test_the_answers_are_the_targets_own(ids):
    request = requests()
    with serving(tiny_training.target(), ids=ids) as how:
        answer = engine_at(how, concurrency=2).answer(request, 0)
    out = mmspec.generate(tiny_training.target(), inputs=request, max_new_tokens=4)
    assert answer.token_ids == out.token_ids and answer.finish == out.finish_reason
    assert how.most_at_once <= 2 and len(how.chats) == 1 + request.batch_size  # the probe came first


def test_a_busy_server_is_asked_again_and_a_lost_request_too():
    with serving(tiny_training.target(), busy=1, lost=1) as how:
        engine = engine_at(how)
        how.busy, how.lost = 1, 1
        assert all(engine.answer(requests(), 0).token_ids)


@pytest.mark.parametrize(
    ("behaviour", "settings", "words"),
    [
        ({"names": ("one", "two")}, {}, "has the models ['one', 'two']: name one"),
        ({}, {"model": "serve"}, "has no model 'serve'. Did you mean 'served'?"),
        (
            {"room": 4},
            {},
            "has room for 4 tokens, prompt and answer together, and max_new_tokens=4: start it with more",
        ),
        ({"shifted": 1}, {}, "has another tokenizer than the target"),
        ({"other": "something else", "ids": False}, {}, "it serves another model"),
        ({"sees": False}, {}, "does not take a picture and a question (the server at"),
        ({"page": "<html>"}, {}, "answers, but not in OpenAI's protocol"),
        ({"busy": 9}, {}, "says 503: queue is full, tried 3 times"),
        ({"slow": 0.5}, {"patience": 0.3}, "has not answered within 0.3 s, tried 1 times"),
        ({"replies": {"/v1/models": (200, None)}}, {"patience": 0.3}, "has not answered within 0.3 s, tried 1 times"),
        ({"replies": {CHATS: (200, None)}}, {"patience": 0.3}, "has not answered within 0.3 s, tried 1 times"),
        ({"replies": {"/v1/models": (200, {"data": None})}}, {}, "answers, but not in OpenAI's protocol"),
        ({"replies": {"/v1/models": (200, {"data": 5})}}, {}, "answers, but not in OpenAI's protocol"),
        ({"replies": {"/v1/models": (404, "gone")}}, {}, "says 404: gone; url= is its address up to /v1"),
        (
            {"replies": {CHATS: (401, {"error": "no"})}},
            {},
            "says 401: no; put its key into the variable OPENAI_API_KEY",
        ),
        ({"replies": {CHATS: (429, {"error": {"message": "slower"}})}}, {}, "says 429: slower, tried 3 times"),
        ({"replies": {CHATS: (500, "")}}, {}, "says 500: , tried 3 times"),
        ({"replies": {CHATS: (200, [])}}, {}, "answers, but not in OpenAI's protocol"),
        ({"replies": {CHATS: (200, {"choices": []})}}, {}, "no chat completion"),
        ({"replies": {CHATS: (200, chat(content=["a"]))}}, {}, "no chat completion"),
        ({"replies": {CHATS: (200, chat(token_ids=["a"]))}}, {}, "no chat completion"),
        ({"replies": {CHATS: (200, chat(token_ids=[10**6]))}}, {}, "has the token id 1000000"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_before_anything_is_asked(behaviour, settings, words):
    with serving(tiny_training.target(), **behaviour) as how:
        refused(lambda: engine_at(how, **settings), words)


def test_a_server_of_another_model_with_the_same_words_is_found_out():
    other = mmspec.Target(*tiny_training.small_model(seed=1))
    with serving(other) as how:
        refused(lambda: engine_at(how), "it serves another model")


def test_a_server_that_is_not_there_is_given_up_on():
    with serving(tiny_training.target()) as how:
        pass
    started = time.perf_counter()
    refused(lambda: engine_at(how), "cannot be reached")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "http//localhost:8000",
        "http:/localhost",
        "http://",
        "ftp://a",
        "http://a:b",
        "http://a:99999",
        8,
    ],
)
def test_what_is_no_address_is_not_asked(url):
    refused(lambda: module.Server(url), f"url={url!r} is no address of a server: give one such as")


def test_a_tokenizer_that_looks_for_the_text_elsewhere_says_nothing():
    with serving(tiny_training.target(), replies={"/tokenize": (200, {"tokens": []})}) as how:
        assert all(engine_at(how).answer(requests(), 0).token_ids)


def test_what_only_the_server_decides_is_not_chosen_here():
    target = tiny_training.target()
    drafter = NGramDrafter(target)
    refused(lambda: ServerEngine(target, drafter, None, None, Sampling(), 4, url="http://x"), "as it was started to")


def test_counters_become_rounds():
    with serving(tiny_training.target(), drafts=True) as how:
        answer = engine_at(how).answer(requests(), 0)
    # Four answers of four tokens, and a draft for each of them: 2 of 3 accepted, and the target's own.
    assert [(one.drafted, one.accepted, one.emitted) for one in answer.rounds] == [([3], [2], [3])] * 4


def test_tokens_that_no_draft_accounts_for_came_alone_and_those_beyond_the_end_do_not_count():
    counts = {"drafts": 3, "drafted": 8, "accepted": 4, "per_position": [2, 1, 1]}
    alone = rounds_of(counts, 9)
    assert [(one.drafted[0], one.accepted[0], one.emitted[0]) for one in alone] == [
        (3, 3, 4), (3, 1, 2), (2, 0, 1), (0, 0, 1), (0, 0, 1),
    ]  # fmt: skip
    beyond = rounds_of(counts, 5)
    assert [(one.accepted[0], one.emitted[0]) for one in beyond] == [(2, 2), (1, 2), (0, 1)]
    assert [one.emitted for one in rounds_of({}, 3)] == [[1]] * 3


# Distillation


def test_a_distillation_is_that_of_our_own_loop_and_goes_on_where_it_stopped(tmp_path):
    target, source = tiny_training.target(), tiny_training.SOURCE
    distill(target, source, tmp_path / "ours", batch_size=2, max_new_tokens=4)
    with serving(target) as how:
        # One at a time: a request that is given up in flight might reach the server when it is no longer busy.
        engine = engine_at(how, retries=0, concurrency=1)

        def stops(progress):
            if progress.answers == 2:
                how.busy = 99

        options = {"batch_size": 2, "max_new_tokens": 4, "engine": engine}
        refused(lambda: distill(target, source, tmp_path / "it", progress=stops, **options), "says 503")
        assert len(lines(tmp_path / "it")) == 2
        how.busy = 0
        distill(target, source, tmp_path / "it", **options)
        assert len(how.chats) == 1 + len(source)  # the probe, and every prompt once
    assert lines(tmp_path / "it") == lines(tmp_path / "ours")


class Stopped(Exception):
    """What ends a distillation in a test."""


def test_answers_are_written_as_they_come_and_stand_in_order_at_the_end(tmp_path):
    target, held = tiny_training.target(), "Who is held back?"
    first, *others = tiny_training.SOURCE
    source = [replace(first, prompt=held), *others]
    options = {"batch_size": len(source), "max_new_tokens": 4}
    distill(target, source, tmp_path / "ours", **options)
    with serving(target, held=held) as how:
        engine = engine_at(how, concurrency=3)

        def stops(progress):
            if progress.answers == len(source) - 1:
                raise Stopped

        def goes_on(progress):
            if progress.answers == len(source) - 1:
                assert {row["index"] for row in lines(tmp_path / "it")} == set(range(1, len(source)))
                how.released.set()

        with pytest.raises(Stopped):
            distill(target, source, tmp_path / "stopped", engine=engine, progress=stops, **options)
        distill(target, source, tmp_path / "it", engine=engine, progress=goes_on, **options)
        whole = (tmp_path / "ours" / ANSWERS).read_bytes()
        assert (tmp_path / "it" / ANSWERS).read_bytes() == whole
        seeds = {json.dumps(chat["messages"]): chat["seed"] for chat in how.chats}
        kept = (tmp_path / "stopped" / ANSWERS).read_bytes()
        assert kept.count(b"\n") == len(source) - 1
        for size in (len(kept) // 3, len(kept)):  # killed in the middle of a line, and between two
            how.chats.clear()
            shutil.copytree(tmp_path / "stopped", tmp_path / str(size))
            (tmp_path / str(size) / ANSWERS).write_bytes(kept[:size])
            distill(target, source, tmp_path / str(size), engine=engine, **options)
            assert (tmp_path / str(size) / ANSWERS).read_bytes() == whole
            assert len(how.chats) == len(source) - kept[:size].count(b"\n"), "what is there is not asked again"
            assert all(seeds[json.dumps(chat["messages"])] == chat["seed"] for chat in how.chats)


@pytest.mark.parametrize("ids", [True, False])
def test_answers_that_the_server_cuts_are_skipped_and_named(ids, tmp_path):
    target, source = tiny_training.target(), tiny_training.SOURCE
    with serving(target, ids=ids, room=180) as how:
        engine = engine_at(how)
        how.cut = 2
        done = distill(target, source, tmp_path, max_new_tokens=4, engine=engine)
    assert (done.answers, done.skipped) == (0, len(source))
    assert all(
        "has cut the answer after 2 of max_new_tokens=4 tokens, having room for 180" in row["reason"]
        for row in lines(tmp_path, SKIPPED)
    )


def test_the_folder_is_looked_at_before_the_engine_is_made(tmp_path):
    target, source, made = tiny_training.target(), tiny_training.SOURCE, []
    options = {"max_new_tokens": 4, "engine": lambda: made.append(1)}
    distill(target, source, tmp_path, max_new_tokens=4)
    assert distill(target, source, tmp_path, **options).answers == len(source)
    refused(lambda: distill(target, source, tmp_path, **options | {"max_new_tokens": 5}), "under other settings")
    assert not made
    with serving(target) as how:
        done = distill(target, source, tmp_path / "it", max_new_tokens=4, engine=lambda: engine_at(how))
    assert done.answers == len(source) and lines(tmp_path / "it") == lines(tmp_path)
    assert json.loads((tmp_path / "it" / INFO).read_text())["engine"] == "ServerEngine"


def test_a_prompt_that_the_server_does_not_take_is_skipped(tmp_path):
    target, source = tiny_training.target(), tiny_training.SOURCE
    with serving(target, refuses=source[1].prompt) as how:
        done = distill(target, source, tmp_path, batch_size=4, max_new_tokens=4, engine=engine_at(how))
    assert done.skipped >= 1 and done.answers + done.skipped == len(source)
    assert "this prompt is not taken" in (tmp_path / "skipped-00000-of-00001.jsonl").read_text()


def test_an_answer_that_cannot_be_tokenised_again_is_skipped(tmp_path):
    target, source = tiny_training.target(), tiny_training.SOURCE
    with serving(target, ids=False) as how:
        engine = engine_at(how)
        how.miscounted = 3
        done = distill(target, source, tmp_path, max_new_tokens=4, engine=engine)
    assert done.answers == 0 and "tokenised again" in (tmp_path / "skipped-00000-of-00001.jsonl").read_text()


def test_an_engine_of_another_text_teaches_nothing(tmp_path):
    target = tiny_training.target()
    with serving(target) as how:
        engine = engine_at(how)
    engine.lossless = False
    options = {"max_new_tokens": 4, "engine": engine}
    refused(lambda: distill(target, tiny_training.SOURCE, tmp_path / "it", **options), "the target's own text")
    assert not (tmp_path / "it").exists()


@pytest.mark.product
def test_the_command_takes_a_url(tmp_path, capsys):
    ours = ["distill", "source.count=1", "max_new_tokens=4"]
    assert main([*ours, "--output", str(tmp_path / "ours")]) == 0
    with serving(mmspec.load_target("tiny")) as how:
        assert main([*ours, f"url='{how.url}'", "--output", str(tmp_path / "it")]) == 0
        assert main([*ours, f"url={how.url}", "engine=vllm", "--output", str(tmp_path / "it")]) == 2
    assert lines(tmp_path / "it") == lines(tmp_path / "ours")
    assert "leave one of them out" in capsys.readouterr().err
