"""What a model's generation config asks for: the text is that of `model.generate`, or there is none and the reason."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from models import blurred, inputs_for, llama, reference
from refusals import refused
from toys import PrefixRule
from transformers import (
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    WatermarkingConfig,
)
from transformers.generation import logits_process as hf

import mmspec
from mmspec import Target
from mmspec.decoding.sampling import NOT_TAKEN_OVER, LogitsPipeline
from mmspec.drafters import NGramDrafter, TextOnlyDrafter
from mmspec.trees import DynamicTree, StaticTree

NEW = 20
PROMPTS = {"images": [0, 0], "lengths": [9, 5]}


def model_with(**settings):
    model = llama()
    for name, value in settings.items():
        assert hasattr(model.generation_config, name)
        setattr(model.generation_config, name, value)
    return model


def run(model, drafter=None, images=PROMPTS["images"], lengths=PROMPTS["lengths"], **options):
    inputs = inputs_for("llama", images, lengths)
    return mmspec.generate(Target(model) if drafter is None else drafter.target, drafter, inputs=inputs, **options)


DRAFTERS = {
    "none": lambda target: None,
    "ngram": lambda target: NGramDrafter(target, max_ngram=2, length=4),
    "static": lambda target: TextOnlyDrafter(
        target, blurred(target.model), tree=StaticTree(["0", "1", "2", "00", "01", "10", "000"])
    ),
    "dynamic": lambda target: TextOnlyDrafter(
        target, blurred(target.model), tree=DynamicTree(depth=3, top_k=3, total=12)
    ),
}


@cache
def plain_text() -> list[list[int]]:
    return run(llama(), max_new_tokens=NEW).token_ids


def liked(count: int) -> list[int]:
    """The tokens that the model by itself writes most often."""
    text = [token for row in plain_text() for token in row]
    return sorted(set(text), key=lambda token: (-text.count(token), token))[:count]


SETTINGS = {
    "no_repeat": lambda: {"no_repeat_ngram_size": 2},
    "suppress": lambda: {"suppress_tokens": liked(4)},
    "begin": lambda: {"begin_suppress_tokens": [row[0] for row in plain_text()]},  # of rows that differ in length
    "bad_words": lambda: {"bad_words_ids": [[token] for token in liked(3)] + [[5, 9], [12, 40, 8]]},
    "bias": lambda: {"sequence_bias": [[[liked(1)[0]], -9.0], [[5], 3.0], [[5, 8], 6.0]]},
    "all": lambda: {
        "no_repeat_ngram_size": 3,
        "suppress_tokens": liked(2),
        "bad_words_ids": [[liked(3)[2]]],
        "sequence_bias": [[[5], 3.0], [[5, 8], 6.0]],
        "repetition_penalty": 1.3,
        "remove_invalid_values": True,
        "renormalize_logits": True,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_text_is_that_of_model_generate(name):
    model = model_with(**SETTINGS[name]())
    want = reference(model, inputs_for("llama", **PROMPTS), NEW)
    assert want != plain_text(), "the settings change nothing here"
    for drafter, make in DRAFTERS.items():
        out = run(model, make(Target(model)), max_new_tokens=NEW)
        assert out.token_ids == want, drafter
        if drafter in ("static", "dynamic"):
            assert out.stats.num_accepted_draft_tokens > 0, "no path was ever followed: nothing was tested"
    assert run(model, max_new_tokens=NEW, model_settings=False).token_ids == plain_text()


def test_processors_stand_in_the_order_of_model_generate():
    config = model_with(**SETTINGS["all"]()).generation_config
    config._eos_token_tensor = None
    theirs = llama()._get_logits_processor(config, input_ids_seq_length=6, logits_processor=[PrefixRule()])
    ours = LogitsPipeline(logits_processor=PrefixRule(), generation_config=config)
    assert [type(p) for p in ours.processors] == [type(p) for p in theirs] and len(theirs) == 8


def test_a_token_that_no_answer_begins_with_may_come_later():
    first, *later = plain_text()[0]
    model = model_with(begin_suppress_tokens=[token for token in later if token != first])
    row = {"images": [0], "lengths": [9], "max_new_tokens": NEW}
    assert run(model, **row).token_ids == [[first, *later]]
    given = hf.SuppressTokensAtBeginLogitsProcessor([first], 9)  # of the caller's, in the place of the model's
    want = reference(model, inputs_for("llama", [0], [9]), NEW, logits_processor=[given])
    assert run(model, **row, logits_processor=[given]).token_ids == want != [[first, *later]]


def test_an_end_token_is_no_bad_word():
    end = liked(1)[0]
    model = model_with(eos_token_id=end, bad_words_ids=[[end], [5]])
    assert run(model, max_new_tokens=NEW).token_ids == reference(model, inputs_for("llama", **PROMPTS), NEW)
    assert all(end not in row for row in run(model, max_new_tokens=NEW, eos_token_id=[]).token_ids)


@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"no_repeat_ngram_size": 2}, NoRepeatNGramLogitsProcessor(4)),
        ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.1)),
    ],
)
def test_a_processor_of_the_callers_takes_the_place_of_the_models(settings, processor):
    model = model_with(**settings)
    want = reference(model, inputs_for("llama", **PROMPTS), NEW, logits_processor=[processor])
    assert want != reference(model, inputs_for("llama", **PROMPTS), NEW)
    assert run(model, max_new_tokens=NEW, logits_processor=processor).token_ids == want


def test_a_function_stands_for_a_list_of_one_processor():
    def bar(ids, scores):
        return scores.scatter(1, ids[:, -1:] % 2 + 2, float("-inf")).index_fill(1, ids.new_tensor(liked(2)), -9.0)

    want = reference(llama(), inputs_for("llama", **PROMPTS), NEW, logits_processor=[bar])
    assert want != plain_text()
    for given in (bar, [bar]):
        assert run(llama(), max_new_tokens=NEW, logits_processor=given).token_ids == want


# Settings that are refused.

REFUSED = {
    "min_length": (12, "12 ... pass logits_processor=[MinLengthLogitsProcessor(...)], or set it to None"),
    "min_new_tokens": (4, "4 ... pass logits_processor=[MinNewTokensLengthLogitsProcessor(...)], or set"),
    "forced_bos_token_id": (0, "0 ... pass logits_processor=[ForcedBOSTokenLogitsProcessor"),
    "forced_eos_token_id": (0, "0 ... pass logits_processor=[ForcedEOSTokenLogitsProcessor"),
    "exponential_decay_length_penalty": ((2, 1.5), "(2, 1.5) ... pass logits_processor=[ExponentialDecay"),
    "encoder_no_repeat_ngram_size": (2, "2 ... pass logits_processor=[EncoderNoRepeatNGramLogitsProcessor"),
    "encoder_repetition_penalty": (1.2, "1.2, which mmspec does not apply by itself; set it to None on"),
    "watermarking_config": (WatermarkingConfig(), "WatermarkingConfig ... by itself; set it to None"),
    "token_healing": (True, "True, which ... set it to None on model.generation_config to decode without it"),
    "num_beams": (4, "4, which ... set it to None on model.generation_config to decode without it"),
    "penalty_alpha": (0.6, "0.6, which ... set it to None"),
    "dola_layers": ("high", "'high', which ... set it to None"),
    "constraints": ([3], "[3], which ... set it to None"),
    "force_words_ids": ([[3]], "[[3]], which ... set it to None"),
    "stop_strings": (["."], "['.'] ... pass stopping_criteria=[StopStringCriteria(...)], or set it to None"),
    "max_time": (3.0, "3.0 ... pass stopping_criteria=[MaxTimeCriteria(...)], or set it to None"),
}


def test_every_setting_that_is_refused_is_tested():
    assert set(REFUSED) == set(NOT_TAKEN_OVER)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_taken_over_are_refused(name):
    value, message = REFUSED[name]
    model = model_with(**{name: value})
    refused(
        lambda: mmspec.stream(Target(model), inputs=inputs_for("llama", [0])),
        f"the model's generation config has {name}={message}",
    )
    plain = [row[:4] for row in plain_text()]
    assert run(model, max_new_tokens=4, model_settings=False).token_ids == plain
    neutral = model_with(**{name: NOT_TAKEN_OVER[name][0]})
    assert run(neutral, max_new_tokens=4).token_ids == plain


def test_a_wrong_value_is_refused_by_name():
    for wrong, said in (
        ({"bad_words_ids": [3]}, "the model's generation config has a wrong bad_words_ids=[3]: ... list of lists"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range"),
    ):
        refused(partial(mmspec.stream, Target(model_with(**wrong)), inputs=inputs_for("llama", [0])), said)


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
def test_the_way_out_gives_the_text_of_model_generate(name):
    end = run(llama(), images=[0], lengths=[9], max_new_tokens=NEW).token_ids[0][3]
    model = model_with(eos_token_id=end, **{name: 19 if name == "min_length" else 10})
    want = reference(model, inputs_for("llama", [0], [9]), NEW)
    assert want != reference(model_with(eos_token_id=end), inputs_for("llama", [0], [9]), NEW)
    given = {
        "min_length": MinLengthLogitsProcessor(19, end),
        "min_new_tokens": MinNewTokensLengthLogitsProcessor(9, 10, end),
    }[name]
    for make in DRAFTERS.values():
        drafter = make(Target(model))
        out = run(model, drafter, images=[0], lengths=[9], max_new_tokens=NEW, logits_processor=[given])
        assert out.token_ids == want


def test_criteria_of_the_callers_stand_for_the_models():
    from toys import byte_tokenizer

    model = model_with(stop_strings=["."], max_time=100.0)
    criteria = [StopStringCriteria(byte_tokenizer(), ["."]), MaxTimeCriteria(100.0)]
    assert run(model, max_new_tokens=4, stopping_criteria=criteria).finish_reason
    refused(lambda: run(model, max_new_tokens=4, stopping_criteria=criteria[:1]), "has max_time=")


# Processors that cannot judge the nodes of a tree, or not those of every row.


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=torch.tensor([0, 4])),
            "a RepetitionPenaltyLogitsProcessor with a prompt_ignore_length per row, ... repetition_penalty= instead",
        ),
        (
            hf.ClassifierFreeGuidanceLogitsProcessor(1.5),
            "a ClassifierFreeGuidanceLogitsProcessor, which runs the model: give guidance_scale= instead",
        ),
        (
            hf.EncoderRepetitionPenaltyLogitsProcessor(1.2, torch.tensor([[1, 2]])),
            "a EncoderRepetitionPenaltyLogitsProcessor, which cannot judge the nodes of a tree; leave it out",
        ),
    ],
)
def test_processors_that_know_no_trees_are_refused(processor, message):
    refused(lambda: run(llama(), logits_processor=[processor]), f"logits_processor holds {message}")


def test_processors_for_one_prompt_do_not_serve_a_batch():
    once = hf.EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor([[3, 4, 5]]))
    refused(lambda: run(llama(), logits_processor=[once]), "EncoderNoRepeatNGramLogitsProcessor was ... 9, 5 token")
    assert run(llama(), images=[0], lengths=[9], logits_processor=[once]).token_ids
    twice = hf.EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor([[3, 4, 5], [3, 4, 6]]))
    refused(lambda: run(llama(), images=[0], lengths=[9], logits_processor=[twice]), "was made for 2 prompts, but the")
    for processor in (
        MinNewTokensLengthLogitsProcessor(9, 4, 1),
        RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=9),
    ):
        message = f"{type(processor).__name__} was made for one prompt length, but the batch has rows of 9, 5 tokens"
        refused(partial(run, llama(), logits_processor=[processor]), message)
        assert run(llama(), lengths=[9, 9], max_new_tokens=4, logits_processor=[processor]).token_ids


# From inside `model.generate`, which has made processors of the settings already.


def test_custom_generate_applies_the_models_settings_once():
    end = run(llama(), images=[0], lengths=[9], max_new_tokens=NEW).token_ids[0][3]
    settings = {"sequence_bias": [[[5], 3.0], [[5, 8], 6.0]], "min_new_tokens": 8, "begin_suppress_tokens": [7, 8]}
    model = model_with(eos_token_id=end, no_repeat_ngram_size=2, repetition_penalty=1.2, **settings)
    inputs = inputs_for("llama", [0], [9])
    custom = mmspec.hf.custom_generate(NGramDrafter(Target(model)))
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, custom_generate=custom)
    assert out[:, 9:].tolist() == reference(model, inputs, NEW)
