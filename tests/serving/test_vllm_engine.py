"""The engine of vLLM on a package in its place: what it is told, and what is made of its answers and counters."""

from __future__ import annotations

import json

import fake_vllm
import pytest
import torch
from refusals import refused
from running import tiny

import mmspec
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import NGramDrafter
from mmspec.inputs import prepare
from mmspec.serving.asking import asked_of
from mmspec.serving.engine import VLLMEngine
from mmspec.settings import configuration
from mmspec.trees import Chain

TOKENS = 6


@pytest.fixture
def requested(tmp_path):
    """A request of two rows, what the target answers, and the variables with which the package is found."""
    samples = [mmspec.zoo.sample(task, "test", 100) for task in ("scenes", "charts")]
    request = prepare(tiny(), [one.prompt for one in samples], [[one.image] for one in samples])
    plain = mmspec.generate(tiny(), inputs=request, max_new_tokens=TOKENS).token_ids
    rows = zip(asked_of(tiny(), request), request.token_ids(), plain, strict=True)
    answers = {json.dumps(asked.ids): {"prompt": read, "ids": ids} for asked, read, ids in rows}
    return request, plain, answers, fake_vllm.install(tmp_path, answers)


def engine(variables, drafter=None, tree=None, **options) -> VLLMEngine:
    given = {"environment": variables, "patience": 60} | options
    return VLLMEngine(tiny(), drafter, tree, None, Sampling(), TOKENS, **given)


def test_plain_answers_arrive_with_what_they_took(requested, tmp_path):
    request, plain, _, variables = requested
    answer = engine(variables, options={"max_model_len": 512}).answer(request, 3)
    assert answer.token_ids == plain and answer.finish == ["length"] * 2 and answer.first_tokens == [1, 1]
    assert answer.passes == len(answer.rounds) == 2 * (TOKENS - 1) and not any(one.depth for one in answer.rounds)
    assert sum(answer.seconds.values()) == pytest.approx(answer.wall) and answer.wall > 0
    options, asked = fake_vllm.told(tmp_path)
    assert options["model"].endswith("target") and options["dtype"] == "float32" and options["max_model_len"] == 512
    assert options["speculative_config"] is None and not options["enable_prefix_caching"]
    assert [one[1] for one in asked] == [[[96, 96]]] * 2 and [one[2]["seed"] for one in asked] == [3, 4]


def test_the_process_has_as_many_threads_as_this_one_whichever_library_starts_them(requested, tmp_path):
    variables, threads = requested[-1], torch.get_num_threads()
    for more, wanted in (({}, [str(threads)] * 2), ({"NUMBA_NUM_THREADS": "7"}, [str(threads), "7"])):
        engine(variables | more)
        assert json.loads((tmp_path / "threads.json").read_text()) == wanted


@pytest.mark.parametrize("given", ["engine.options={max_model_len: 180}", "+engine.options.max_model_len=180"])
def test_options_can_be_typed(given):
    config = configuration.compose("distill", ["engine=vllm", given])
    assert config.engine.options == {"max_model_len": 180}


@pytest.mark.parametrize(
    ("name", "length", "wanted"),
    [
        (
            "ngram",
            None,
            {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 1},
        ),
        ("eagle3", 3, {"method": "eagle3", "num_speculative_tokens": 3}),
        ("text_only", None, {"method": "draft_model", "num_speculative_tokens": 5}),
    ],
)
def test_the_drafter_says_how_it_drafts(name, length, wanted, requested, tmp_path):
    request, _, _, variables = requested
    drafter = NGramDrafter(tiny()) if name == "ngram" else mmspec.load_drafter(f"tiny/{name}", tiny())
    side = engine(variables, drafter, length and Chain(length))
    options, _ = json.loads((tmp_path / "options.json").read_text()), side.answer(request, 0)
    assert wanted.items() <= options["speculative_config"].items()
    assert side.budget == wanted["num_speculative_tokens"] and side.versions["vllm"] == "0.0" and side.exact


def test_counters_are_those_of_the_request_alone(requested):
    request, _, _, variables = requested
    side = engine(variables, NGramDrafter(tiny()))
    for _ in range(2):
        rounds = side.answer(request, 0).rounds
        # Ten tokens behind the first ones: 2 x (3 + 1) of drafts, and the two others alone.
        assert [(one.drafted[0], one.accepted[0], one.emitted[0]) for one in rounds] == [
            (3, 2, 3), (3, 2, 3), (3, 0, 1), (3, 0, 1), (0, 0, 1), (0, 0, 1),
        ]  # fmt: skip


def test_a_prompt_that_it_does_not_take_leaves_the_others_alone(requested, tmp_path):
    request, plain, answers, variables = requested
    list(answers.values())[1]["refused"] = True
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    answer = engine(variables).answer(request, 0)
    assert answer.token_ids == [plain[0], []] and answer.first_tokens == [1, 0] and len(answer.rounds) == TOKENS - 1
    assert answer.unanswered == {1: "vLLM does not take the prompt: ValueError: this prompt is too long"}
    refused(answer.complete, "vLLM does not take the prompt")


def test_an_engine_that_reads_other_prompts_is_found_out(requested, tmp_path):
    request, _, answers, variables = requested
    next(iter(answers.values()))["prompt"].append(5)
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    side = engine(variables)
    refused(lambda: side.answer(request, 0), "vLLM has read row 0 as ... it serves another model")


def test_an_answer_that_is_cut_for_want_of_room_is_none(requested, tmp_path):
    request, plain, answers, variables = requested
    first, second = answers.values()
    first["ids"], second["ids"] = plain[0][:2], plain[1][:2]
    second["finish"] = "stop"  # as short, but whole
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    side = engine(variables, options={"max_model_len": 180})
    answer = side.answer(request, 0)
    assert answer.token_ids == [[], plain[1][:2]] and answer.finish[1] == "eos"
    assert answer.unanswered == {
        0: f"vLLM has cut the answer after 2 of max_new_tokens={TOKENS} tokens, having room for 180, prompt and answer "
        "together: give it more (engine.options={max_model_len: N}), or lower max_new_tokens"
    }


def test_no_room_for_any_answer_is_said_at_once(requested):
    variables = requested[-1]
    refused(
        lambda: engine(variables, options={"max_model_len": TOKENS}),
        f"vLLM has room for {TOKENS} tokens, prompt and answer together, and max_new_tokens={TOKENS}: give it more",
    )
