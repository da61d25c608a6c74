"""`generate(custom_generate=...)` gives what `generate` gives."""

from __future__ import annotations

import inspect
import itertools
import time

import models
import pytest
import tiny_families
import torch
import transformers
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_requests import target_of
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    pipeline,
)

import mmspec
from mmspec import zoo
from mmspec.compat import CACHE
from mmspec.drafters import NGramDrafter, OwnEncoderDrafter, TextOnlyDrafter
from mmspec.errors import MMSpecError
from mmspec.inputs import prepare

pytestmark = pytest.mark.product


@pytest.mark.parametrize("name", sorted(models.MODELS))
@pytest.mark.parametrize("images", [[1, 0, 2], [1]])
def test_greedy_equals_generate(name, images):
    images = images if name in models.VISUAL else [0] * len(images)
    model = models.MODELS[name]()
    target = mmspec.Target(model)
    drafter = TextOnlyDrafter(target, models.llama(seed=3, layers=1))
    inputs = models.inputs_for(name, images, [5 + 4 * i for i in range(len(images))])
    drafted = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, custom_generate=mmspec.hf.custom_generate(drafter)
    )
    width = inputs["input_ids"].shape[1]
    assert drafted[:, :width].equal(inputs["input_ids"])
    assert drafted[:, width:].tolist() == models.reference(model, inputs, 12)
    assert drafter.last_output.stats.mean_acceptance_length >= 1


def test_settings_of_the_call_apply():
    model = models.llama()
    target = mmspec.Target(model)
    inputs = models.inputs_for("llama", [0])
    custom = mmspec.hf.custom_generate(NGramDrafter(target))
    options = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    assert model.generate(**inputs, **options, custom_generate=custom).equal(model.generate(**inputs, **options))
    stop = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, -8].item()
    ended = model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=stop, custom_generate=custom)
    assert ended.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=stop))


def test_sampling_follows_the_global_seed():
    model = models.llama()
    inputs = models.inputs_for("llama", [0])
    custom = mmspec.hf.custom_generate(NGramDrafter(mmspec.Target(model)))
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        options = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.5, "top_k": 20}
        texts.append(model.generate(**inputs, **options, custom_generate=custom).tolist())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_several_sequences_per_row(name):
    """transformers repeats the rows; they are those of `mmspec.generate(num_return_sequences=)`."""
    model = models.MODELS[name]()
    target = mmspec.Target(model)
    inputs, drafter = models.inputs_for(name, [1, 0], [9, 5]), NGramDrafter(target)
    options = {"max_new_tokens": 8, "num_return_sequences": 3}
    custom = mmspec.hf.custom_generate(drafter, seed=4)
    drafted = model.generate(**inputs, **options, do_sample=True, top_k=0, custom_generate=custom)
    want = mmspec.generate(target, drafter, inputs=inputs, **options, temperature=1.0, seed=4).token_ids
    assert drafted[:, inputs["input_ids"].shape[1] :].tolist() == want and len(set(map(tuple, want))) == 6


VISION_AND_TEXT = ("llava", "qwen_vl", "llama")
GREEDY = {"max_new_tokens": 20, "do_sample": False}


def asked(name: str) -> tuple:
    """A tiny model, inputs of one row, and a callable with a drafter that is often right."""
    drafter = blurred_drafter(name, "sdpa")
    inputs = models.inputs_for(name, [1 if name in models.VISUAL else 0])
    return drafter.target.model, inputs, mmspec.hf.custom_generate(drafter)


class AfterTwo(StoppingCriteria):
    """Stops a row at the second new token that is even."""

    def __init__(self, prompt: int):
        self.prompt, self.lengths = prompt, []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return (input_ids[:, self.prompt :] % 2 == 0).sum(-1) >= 2


class NoRepeat(LogitsProcessor):
    """Forbids the last token and its two neighbours."""

    def __call__(self, input_ids, scores):
        last = input_ids[:, -1:]
        return scores.scatter(1, torch.cat([last, last - 1, last + 1], 1).clamp(0, scores.shape[1] - 1), -1e9)


class Heard:
    """A streamer that remembers."""

    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True

    @property
    def tokens(self) -> list[int]:
        return list(itertools.chain(*self.pieces))


@pytest.mark.parametrize("name", VISION_AND_TEXT)
def test_stopping_criteria_of_ones_own(name):
    model, inputs, custom = asked(name)
    prompt = inputs["input_ids"].shape[1]
    ours, theirs = AfterTwo(prompt), AfterTwo(prompt)
    drafted = model.generate(**inputs, **GREEDY, stopping_criteria=StoppingCriteriaList([ours]), custom_generate=custom)
    plain = model.generate(**inputs, **GREEDY, stopping_criteria=StoppingCriteriaList([theirs]))
    assert drafted.equal(plain) and prompt + 2 <= drafted.shape[1] < prompt + 20
    assert ours.lengths == theirs.lengths, "asked after every token, and not after later ones"


@pytest.mark.parametrize("name", VISION_AND_TEXT)
def test_a_logits_processor_of_ones_own(name):
    model, inputs, custom = asked(name)
    options = {**GREEDY, "logits_processor": LogitsProcessorList([NoRepeat()])}
    drafted = model.generate(**inputs, **options, custom_generate=custom)
    assert drafted.equal(model.generate(**inputs, **options))
    assert not drafted.equal(model.generate(**inputs, **GREEDY)), "it did change the text"


@pytest.mark.parametrize("name", VISION_AND_TEXT)
def test_a_streamer_hears_the_prompt_once_and_then_the_text(name):
    """transformers 5.23 hands it to no callable."""
    model, inputs, custom = asked(name)
    ours, theirs = Heard(), Heard()
    out = model.generate(**inputs, **GREEDY, streamer=ours, custom_generate=custom)
    assert out.equal(model.generate(**inputs, **GREEDY, streamer=theirs))
    assert ours.tokens == theirs.tokens == out[0].tolist() and ours.ended
    assert ours.pieces[0] == inputs["input_ids"][0].tolist() and len(ours.pieces) < len(theirs.pieces)


def test_a_streamer_may_also_be_handed_over():
    """As earlier versions of transformers do."""
    model, inputs, custom = asked("llama")
    ours = Heard()

    def hands_over(model, input_ids, **given):
        return custom(model, input_ids, streamer=ours, **given)

    out = model.generate(**inputs, **GREEDY, streamer=ours, custom_generate=hands_over)
    assert ours.tokens == out[0].tolist() and ours.ended


def test_limits_of_time_and_length():
    model, inputs, custom = asked("llama")
    prompt = inputs["input_ids"].shape[1]
    plain = model.generate(**inputs, **GREEDY)

    class Slow(StoppingCriteria):
        def __init__(self):
            self.until = time.monotonic() + 0.2

        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), time.monotonic() > self.until)

    for limit in ({"max_time": 0.0}, {"stopping_criteria": [Slow()]}):
        out = model.generate(**inputs, max_new_tokens=400, do_sample=False, custom_generate=custom, **limit)
        assert prompt < out.shape[1] < prompt + 400, limit
        assert out[:, : plain.shape[1]].equal(plain[:, : out.shape[1]])
    own = StoppingCriteriaList([MaxLengthCriteria(prompt + 7)])  # replaces that of the call, in generate too
    options = {**GREEDY, "stopping_criteria": own}
    assert model.generate(**inputs, **options).shape[1] == prompt + 7
    assert model.generate(**inputs, **options, custom_generate=custom).equal(model.generate(**inputs, **options))


def test_end_tokens_of_a_criterion():
    model, inputs, custom = asked("llama")
    end = model.generate(**inputs, **GREEDY)[0, -6].item()
    options = {**GREEDY, "stopping_criteria": [transformers.EosTokenCriteria(end)]}
    plain = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, custom_generate=custom).equal(plain)
    assert plain[0, -1] == end and plain.shape[1] < inputs["input_ids"].shape[1] + 20


@pytest.mark.parametrize("name", VISION_AND_TEXT)
def test_a_dictionary_where_one_is_asked_for(name):
    model, inputs, custom = asked(name)
    plain = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, custom_generate=custom)
    assert type(out) is type(plain) and out.sequences.equal(plain.sequences)
    for flag in ("output_scores", "output_logits", "output_hidden_states", "output_attentions"):
        with pytest.raises(MMSpecError, match=f"keeps no {flag}"):
            model.generate(**inputs, **GREEDY, return_dict_in_generate=True, custom_generate=custom, **{flag: True})
        # Without a dictionary generate passes over these, and so does the loop.
        assert model.generate(**inputs, **GREEDY, custom_generate=custom, **{flag: True}).equal(plain.sequences)


def test_defaults_of_the_model_apply_under_the_callers_config():
    """What a generation config of the call leaves open, the model's fills in."""
    model = models.llama()
    inputs = models.inputs_for("llama", [0])
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.max_new_tokens = 9
    custom = mmspec.hf.custom_generate(NGramDrafter(mmspec.Target(model)))
    for config in (None, transformers.GenerationConfig(), transformers.GenerationConfig(repetition_penalty=1.2)):
        plain = model.generate(**inputs, generation_config=config, pad_token_id=0)
        drafted = model.generate(**inputs, generation_config=config, pad_token_id=0, custom_generate=custom)
        assert drafted.equal(plain) and plain.shape[1] == inputs["input_ids"].shape[1] + 9


def test_the_signature_follows_from_the_family():
    names = {}
    for name in ("llava", "qwen_vl", "llama"):
        target = target_of(name, "sdpa")
        parameters = inspect.signature(mmspec.hf.custom_generate(NGramDrafter(target))).parameters
        assert set(target.family.media_inputs) <= parameters.keys()
        names[name] = len(parameters)
    assert names["llama"] < names["llava"] < names["qwen_vl"]


@pytest.mark.parametrize("name", [name for name, tiny in tiny_families.FAMILIES.items() if tiny.picture])
def test_every_family_hands_over_its_pictures_and_videos(name):
    """To a draft model that looks at them itself."""
    tiny = tiny_families.FAMILIES[name]
    drafter = blurred_drafter(name, tiny.attention)
    assert type(drafter) is OwnEncoderDrafter
    inputs = tiny.inputs([["image", *tiny.kinds[1:]], [], ["image", "image"]])
    options = {"max_new_tokens": 8, "do_sample": False}
    custom = mmspec.hf.custom_generate(drafter)
    drafted = drafter.target.model.generate(**inputs, **options, custom_generate=custom)
    assert drafted.equal(drafter.target.model.generate(**inputs, **options))
    outside = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=8)
    rounds = [record.accepted for record in drafter.last_output.stats.rounds]
    assert rounds == [record.accepted for record in outside.stats.rounds], "it saw the same"


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_pictures_that_the_caller_encoded(name):
    model, inputs, _ = asked(name)
    plain = model.generate(**inputs, **GREEDY)
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    names = [key for key in inputs if key in ("pixel_values", "image_grid_thw")]
    encoded = {"image": model.model.get_image_features(**{key: inputs[key] for key in names}, return_dict=True)}
    left = {key: value for key, value in inputs.items() if key not in names}
    blind = mmspec.hf.custom_generate(NGramDrafter(target_of(name, "sdpa")))
    options = {**GREEDY, "mm_encoder_outputs": encoded, "position_ids": positions}
    assert model.generate(**left, **options, custom_generate=blind).equal(plain)
    assert model.generate(**left, **options).equal(plain)


def test_positions_of_ones_own_are_not_passed_over():
    model, inputs, custom = asked("llama")
    counted = torch.arange(inputs["input_ids"].shape[1])[None]
    texts = []
    for positions in (counted, 5 * counted):
        texts.append(model.generate(**inputs, **GREEDY, position_ids=positions))
        own = model.generate(**inputs, **GREEDY, position_ids=positions, custom_generate=custom)
        assert own.equal(texts[-1])
    assert not texts[0].equal(texts[1])


def test_refusals():
    model, inputs, custom = asked("llama")
    refused(lambda: models.llama(seed=1).generate(**inputs, max_new_tokens=4, custom_generate=custom), "another model")
    refused(lambda: model.generate(**inputs, max_new_tokens=4, custom_generate=custom, num_beams=2), "num_beams=2")
    with pytest.raises(MMSpecError, match=r"guidance_scale=1.5: call mmspec.generate\(guidance_scale="):
        model.generate(**inputs, max_new_tokens=4, custom_generate=custom, guidance_scale=1.5)
    with pytest.raises(ValueError, match="locate a tokenizer"):  # transformers keeps the tokenizer to itself
        model.generate(**inputs, max_new_tokens=4, custom_generate=custom, stop_strings=["a"])


@pytest.mark.parametrize(
    "assistant", [{"assistant_model": models.llama(seed=2, layers=1)}, {"prompt_lookup_num_tokens": 4}]
)
def test_a_second_assistant_is_refused(assistant):
    model, inputs, custom = asked("llama")
    with pytest.raises(MMSpecError, match="the drafter is the assistant; leave out assistant_model"):
        model.generate(**inputs, max_new_tokens=4, custom_generate=custom, **assistant)


def test_a_cache_that_holds_tokens_is_refused():
    model, inputs, custom = asked("llama")
    cache = transformers.DynamicCache()
    assert model.generate(**inputs, **GREEDY, **{CACHE: cache}, custom_generate=custom).equal(
        model.generate(**inputs, **GREEDY)
    )
    model.generate(**inputs, max_new_tokens=3, **{CACHE: cache})
    with pytest.raises(MMSpecError, match=rf"{CACHE} holds \d+ tokens"):
        model.generate(**inputs, max_new_tokens=4, **{CACHE: cache}, custom_generate=custom)


def test_a_least_length_counts_from_the_prompt_and_not_from_its_padding():
    model, inputs, custom = asked("llama")
    end = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] + 1].item()
    options = {**GREEDY, "eos_token_id": end, "min_new_tokens": 6}
    plain = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, custom_generate=custom).equal(plain)
    padded = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in inputs.items()}
    refused(lambda: model.generate(**padded, **options, custom_generate=custom), "drop the columns that hold padding")


@pytest.fixture(scope="module")
def tiny():
    return mmspec.load_target("tiny")


@pytest.mark.parametrize("drafter", ["ngram", "tiny/eagle3", "tiny/draft_model"])
def test_the_pipeline_of_pictures_and_text(tiny, drafter, capsys):
    drafter = NGramDrafter(tiny) if drafter == "ngram" else mmspec.load_drafter(drafter, tiny)
    custom = mmspec.hf.custom_generate(drafter)
    pipe = pipeline("image-text-to-text", model=tiny.model, processor=tiny.processor)
    content = [{"type": "image", "image": zoo.demo_image()}, {"type": "text", "text": zoo.DEMO_PROMPT}]
    messages, options = [{"role": "user", "content": content}], {"max_new_tokens": 24, "do_sample": False}
    (plain,) = pipe(text=messages, generate_kwargs=dict(options), return_full_text=False)
    streamer = TextStreamer(tiny.tokenizer, skip_prompt=True)
    options |= {"custom_generate": custom, "streamer": streamer}
    (drafted,) = pipe(text=messages, generate_kwargs=options, return_full_text=False)
    assert drafted["generated_text"] == plain["generated_text"] == drafter.last_output.text[0]
    assert len(plain["generated_text"]) > 40 and capsys.readouterr().out.strip() == plain["generated_text"].strip()
    assert drafter.last_output.stats.mean_acceptance_length > 1


def test_a_text_that_stops(tiny):
    """`stop_strings` needs a tokenizer that transformers keeps to itself; the criterion made of both is the way."""
    inputs = prepare(tiny, zoo.DEMO_PROMPT, [zoo.demo_image()]).inputs
    stop = transformers.StopStringCriteria(tiny.tokenizer, ["background"])
    options = {"max_new_tokens": 40, "do_sample": False, "stopping_criteria": [stop]}
    custom = mmspec.hf.custom_generate(mmspec.load_drafter("tiny/eagle3", tiny))
    plain = tiny.model.generate(**inputs, **options)
    assert tiny.model.generate(**inputs, **options, custom_generate=custom).equal(plain)
    assert tiny.tokenizer.decode(plain[0]).endswith("background")


def test_the_pipeline_of_text(tiny):
    config = transformers.LlamaConfig(**{**models.TEXT, "vocab_size": tiny.vocab_size})
    model = models.rescale(transformers.LlamaForCausalLM(config), 0)
    drafter = NGramDrafter(mmspec.Target(model, tiny.tokenizer))
    pipe = pipeline("text-generation", model=model, tokenizer=tiny.tokenizer)
    options = {"max_new_tokens": 30, "do_sample": False, "return_full_text": False}
    texts = ["The picture shows", "Describe the picture."]
    plain = pipe(texts, **options)
    drafted = pipe(texts, **options, custom_generate=mmspec.hf.custom_generate(drafter))
    assert drafted == plain and drafter.last_output.stats.rounds
    batched = pipe(texts, **options, batch_size=2, custom_generate=mmspec.hf.custom_generate(drafter))
    assert batched == plain


@pytest.mark.parametrize("pad", [None, 7])
@pytest.mark.parametrize("ends", ["end token", "criterion", "both"])
def test_what_follows_a_row_that_has_ended_is_what_generate_writes_there(pad, ends):
    """Without a pad token it is an end token; without either the row goes on until all have met a criterion."""
    model = models.llama(seed=3)
    inputs = models.inputs_for("llama", [0, 0], [9, 6])
    first, second = models.reference(model, inputs, 12)
    model.generation_config.pad_token_id = pad
    model.generation_config.eos_token_id = first[2] if ends != "criterion" else None

    def criterion(ids, scores, **_):
        return (ids[:, -1] == first[4]) | (ids[:, -1] == second[8])

    settings = {} if ends == "end token" else {"stopping_criteria": StoppingCriteriaList([criterion])}
    plain = model.generate(**inputs, max_new_tokens=10, do_sample=False, **settings)
    drafter = TextOnlyDrafter(mmspec.Target(model), models.blurred(model))
    ours = model.generate(
        **inputs, max_new_tokens=10, do_sample=False, custom_generate=mmspec.hf.custom_generate(drafter), **settings
    )
    assert ours.tolist() == plain.tolist()
    assert len({tuple(row) for row in drafter.last_output.token_ids}) == 2
