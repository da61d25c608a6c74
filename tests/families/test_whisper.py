"""Targets with cross-attention: Whisper of the real class, real features of sounds, what its own `generate` writes."""

from __future__ import annotations

import wave
from collections import Counter
from functools import cache

import pytest
import torch
from heads import guesses_of
from models import blurred, llama
from refusals import refused
from tiny_whisper import (
    ID,
    PROMPTS,
    RATE,
    START,
    decoder_alone,
    features,
    inputs_for,
    processor,
    reference,
    sound,
    whisper,
)
from transformers import T5Config, T5ForConditionalGeneration

import mmspec
from mmspec import MMSpecError, Target
from mmspec.cli import main
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import (
    EagleDrafter,
    EarlyExitDrafter,
    HiVisDrafter,
    JacobiDrafter,
    MedusaDrafter,
    NGramDrafter,
    OwnEncoderDrafter,
    SessionDrafter,
    SharedEncoderDrafter,
    TextOnlyDrafter,
    as_drafter,
)
from mmspec.evaluation.engines import TransformersEngine
from mmspec.hf import custom_generate
from mmspec.inputs import prepare
from mmspec.models.masks import TreeMask
from mmspec.models.session import ModelSession
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree, StaticTree

NEW = 16
TREES = {"chain": Chain(4), "static": StaticTree(["0", "1", "00", "10", "000"]), "dynamic": DynamicTree(3, 2, 6)}


@cache
def target_of(attention: str = "sdpa") -> Target:
    return Target(whisper(attention), processor())


@cache
def expected(attention: str = "sdpa") -> list[list[int]]:
    return reference(target_of(attention).model, NEW)


class AllEntries(SessionDrafter):
    """The target on a copy of all of its entries."""

    def start(self, context):
        super().start(context)
        self.session = context.branch(entries=[list(range(n)) for n in context.cache.lengths_list])


DRAFTERS = {
    "none": lambda target: None,
    "ngram": lambda target: NGramDrafter(target, max_ngram=2, length=4),
    "own": lambda target: OwnEncoderDrafter(target, blurred(target.model, 0.1)),
    "shared": lambda target: SharedEncoderDrafter(target, blurred(target.model, 0.1)),
    "alone": lambda target: SharedEncoderDrafter(target, decoder_alone()),
    "first layers": lambda target: EarlyExitDrafter(target, layers=2),
    "first layers, block": lambda target: EarlyExitDrafter(target, layers=2, imitation="block"),
    "entries": AllEntries,
    "jacobi": JacobiDrafter,
    "medusa": MedusaDrafter,
    "eagle": EagleDrafter,
    "hivis": HiVisDrafter,
}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_text_is_that_of_model_generate(drafter):
    torch.manual_seed(0)
    made = DRAFTERS[drafter](target_of())
    right_at_times = drafter in ("own", "shared", "first layers", "first layers, block", "entries")
    for tree in TREES.values() if right_at_times else [None]:
        out = mmspec.generate(target_of(), made, inputs=inputs_for(), max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected()
        if right_at_times:
            assert out.stats.num_accepted_draft_tokens > 0, "no path was ever followed: nothing was tested"


@pytest.mark.parametrize("drafter", ["ngram", "own", "shared"])
def test_on_eager_attention(drafter):
    target = target_of("eager")
    out = mmspec.generate(
        target,
        DRAFTERS[drafter](target),
        inputs=inputs_for(),
        max_new_tokens=NEW,
        tree=None if drafter == "ngram" else TREES["static"],
    )
    assert out.token_ids == expected("eager")


def test_the_texts_depend_on_the_sounds_and_on_what_came_before():
    other = mmspec.generate(target_of(), inputs=inputs_for(numbers=(4, 5, 6)), max_new_tokens=NEW).token_ids
    assert all(ours != theirs for ours, theirs in zip(other, expected(), strict=True))
    same = mmspec.generate(target_of(), inputs=inputs_for([START] * 3, (1, 1, 2)), max_new_tokens=NEW).token_ids
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("cls", [OwnEncoderDrafter, SharedEncoderDrafter])
@pytest.mark.parametrize(("tree", "length"), [("chain", 5), ("static", 4)])
def test_a_draft_model_that_is_the_target_is_always_right(cls, tree, length):
    drafter = cls(target_of(), target_of().model, tree=TREES[tree])
    out = mmspec.generate(target_of(), drafter, inputs=inputs_for(), max_new_tokens=NEW)
    whole = [record.emitted for record in out.stats.rounds if all(record.emitted)][:-1]
    assert out.token_ids == expected() and whole and all(emitted == [length] * 3 for emitted in whole)


def test_rows_end_where_generate_ends_them():
    ends = {"eos_token_id": [row[4] for row in expected()]}
    rows = [row[: next(i for i, token in enumerate(row) if token in ends["eos_token_id"]) + 1] for row in expected()]
    for name in ("none", "own", "shared"):
        out = mmspec.generate(target_of(), DRAFTERS[name](target_of()), inputs=inputs_for(), max_new_tokens=NEW, **ends)
        assert out.token_ids == rows and len({*map(len, rows)}) > 1


def test_the_sound_is_encoded_once_and_its_keys_are_computed_once(monkeypatch):
    calls = Counter()
    model = target_of().model

    def count(name):
        return lambda module, *rest: calls.update([name])

    handles = [model.model.encoder.register_forward_hook(count("encoder"))]
    for layer in model.model.decoder.layers:
        handles += [
            layer.encoder_attn.k_proj.register_forward_hook(count("keys")),
            layer.register_forward_hook(count("layer")),
        ]
    drafter = SharedEncoderDrafter(target_of(), decoder_alone())
    out = mmspec.generate(target_of(), drafter, inputs=inputs_for(), max_new_tokens=NEW)
    for handle in handles:
        handle.remove()
    layers = len(model.model.decoder.layers)
    assert calls == {"encoder": 1, "keys": layers, "layer": layers * (len(out.stats.rounds) + 1)}


# Mistakes that have to show.


def wrong_positions(monkeypatch):
    right = ModelSession.positions
    monkeypatch.setattr(ModelSession, "positions", lambda self, index: right(self, index + (index.shape[1] > 1)))


def positions_in_order(monkeypatch):
    def positions(self, index):  # siblings one behind the other
        return self.cache.lengths[:, None] + torch.arange(index.shape[1]) + self.cache.speculative

    monkeypatch.setattr(ModelSession, "positions", positions)


def no_tree_mask(monkeypatch):
    right = TreeMask.build

    def build(self, visible, depth):
        return right(self, torch.ones_like(visible), depth)

    monkeypatch.setattr(TreeMask, "build", build)


def sound_of_another_row(monkeypatch):
    family = type(target_of().family)
    right = family.lasting_inputs

    def rolled(self, vision):
        return {name: states.roll(1, 0) for name, states in right(self, vision).items()}

    monkeypatch.setattr(family, "lasting_inputs", rolled)


@pytest.mark.parametrize("mistake", [wrong_positions, positions_in_order, no_tree_mask, sound_of_another_row])
def test_a_mistake_shows(mistake, monkeypatch):
    drafter = OwnEncoderDrafter(target_of(), target_of().model, tree=TREES["static"])
    mistake(monkeypatch)
    assert mmspec.generate(target_of(), drafter, inputs=inputs_for(), max_new_tokens=NEW).token_ids != expected()
    if mistake in (sound_of_another_row, positions_in_order):
        assert not mmspec.check.check_target(Target(target_of().model)).ok


def test_the_self_check_passes():
    report = target_of().check()
    assert report.ok and max(finding.relative for finding in report.findings) < 1e-4


# What `generate` does around decoding.


def test_suppressed_tokens_are_those_of_generate():
    free = mmspec.generate(target_of(), inputs=inputs_for(), max_new_tokens=NEW, model_settings=False).token_ids
    assert free != expected()
    model = whisper()
    model.generation_config.begin_suppress_tokens = [row[0] for row in expected()]
    want = reference(model, NEW)
    assert want != expected() and any(model.generation_config.begin_suppress_tokens[0] in row for row in want)
    target = Target(model)
    for name in ("none", "shared"):
        out = mmspec.generate(target, DRAFTERS[name](target), inputs=inputs_for(), max_new_tokens=NEW)
        assert out.token_ids == want


def test_timestamps_are_those_of_generate():
    model = whisper()
    model.generation_config.return_timestamps = True
    prompts = [prompt[:-1] for prompt in PROMPTS]  # without <|notimestamps|>
    want = reference(model, NEW, prompts)
    assert all(sum(token >= ID["<|0.00|>"] for token in row) > 1 for row in want) and want != reference(
        whisper(), NEW, prompts
    )
    target = Target(model)
    drafter = SharedEncoderDrafter(target, blurred(model, 0.1), tree=TREES["static"])
    out = mmspec.generate(target, drafter, inputs=inputs_for(prompts), max_new_tokens=NEW)
    assert out.token_ids == want and out.stats.num_accepted_draft_tokens > 0
    del model.generation_config.no_timestamps_token_id
    refused(lambda: mmspec.generate(target, inputs=inputs_for(prompts)), "return_timestamps=True but no")


def test_a_sampled_text_does_not_depend_on_the_drafter():
    options = {"inputs": inputs_for(), "max_new_tokens": NEW, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    plain = mmspec.generate(target_of(), **options).token_ids
    assert plain != expected() != mmspec.generate(target_of(), **options | {"seed": 4}).token_ids != plain
    for name, tree in (("own", "chain"), ("shared", "dynamic")):
        out = mmspec.generate(target_of(), DRAFTERS[name](target_of()), tree=TREES[tree], **options)
        assert out.token_ids == plain and out.stats.num_accepted_draft_tokens > 0


# How it is asked.

OPENINGS = [
    {},
    {"language": "fr"},
    {"language": "german", "task": "translate"},
    {"language": ["en", "fr", "de"]},
    {"task": "transcribe"},
]


@pytest.mark.parametrize("options", OPENINGS, ids=str)
def test_sounds_are_asked_about_as_generate_does(options):
    sounds = [sound(number, 0.5 + 0.1 * number) for number in (1, 2, 3)]
    request = prepare(target_of(), audio=[(one, RATE) for one in sounds], chat_template_kwargs=options or None)
    out = target_of().model.generate(
        features((1, 2, 3)), max_new_tokens=8, do_sample=False, force_unique_generate_call=True, **options
    )
    start = out.shape[1] - 8
    assert request.token_ids() == out[:, :start].tolist()
    assert mmspec.generate(target_of(), inputs=request, max_new_tokens=8).token_ids == out[:, start:].tolist()
    if not options:
        mask = torch.ones(3, features((1,)).shape[-1], dtype=torch.long)
        for more in ({}, {"attention_mask": mask}, {"input_ids": out[:, :start], "attention_mask": mask}):
            alone = prepare(target_of(), inputs={"input_features": features((1, 2, 3)), **more})
            assert alone.token_ids() == request.token_ids()


def test_a_text_that_came_before_is_the_prompt():
    request = prepare(target_of(), "hello you", audio=(sound(1), RATE), chat_template_kwargs={"language": "en"})
    before = torch.as_tensor(processor().get_prompt_ids("hello you"))
    out = target_of().model.generate(
        request.inputs["input_features"],
        prompt_ids=before,
        language="en",
        max_new_tokens=8,
        do_sample=False,
        force_unique_generate_call=True,
    )
    assert request.token_ids() == out[:, :-8].tolist() == [[*before.tolist(), *START]]
    assert mmspec.generate(target_of(), inputs=request, max_new_tokens=8).token_ids == out[:, -8:].tolist()
    said = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": (sound(1), RATE)}, {"type": "text", "text": "hello you"}],
        }
    ]
    again = prepare(target_of(), messages=said, chat_template_kwargs={"language": "en"})
    assert again.token_ids() == request.token_ids()
    none = prepare(
        target_of(), ["", "<audio>"], audio=[(sound(1), RATE)] * 2, chat_template_kwargs={"language": "en"}
    )  # as a data set has them
    assert none.token_ids() == [START, START]


def test_a_draft_model_may_hear_with_another_extractor():
    draft = whisper(seed=1, bins=10)
    request = prepare(target_of(), audio=[(sound(1), RATE), (sound(2), RATE)])
    plain = mmspec.generate(target_of(), inputs=request, max_new_tokens=NEW).token_ids
    drafter = OwnEncoderDrafter(target_of(), draft, processor=processor(10))
    assert mmspec.generate(target_of(), drafter, inputs=request, max_new_tokens=NEW).token_ids == plain
    with pytest.raises(MMSpecError, match=r"reads \(3, 10, 100\), .*for a draft model, give it processor="):
        mmspec.generate(target_of(), drafter, inputs=inputs_for(), max_new_tokens=NEW)


def test_from_inside_transformers():
    mask = torch.ones(2, features((1,)).shape[-1], dtype=torch.long)  # of the sound, as the extractor may return it
    options = {"language": "fr", "max_new_tokens": NEW, "do_sample": False}
    want = target_of().model.generate(features((1, 2)), **options)
    for name, more in (("ngram", {}), ("shared", {"attention_mask": mask})):
        drafter = DRAFTERS[name](target_of())
        out = target_of().model.generate(features((1, 2)), **options, **more, custom_generate=custom_generate(drafter))
        assert torch.equal(out, want) and len(drafter.last_output.stats.rounds) < NEW
    with pytest.raises(MMSpecError, match="passed encoded and without input_features"):
        own = DRAFTERS["own"](target_of())
        target_of().model.generate(features((1, 2)), **options, custom_generate=custom_generate(own))


# Draft models: saved, loaded, trained.


def test_draft_models_are_saved_and_say_how_they_hear(tmp_path):
    draft = whisper(layers=1)
    draft.model.encoder.load_state_dict(target_of().model.model.encoder.state_dict())
    chosen = [type(as_drafter(target_of(), model)) for model in (draft, decoder_alone(), whisper(seed=2))]
    assert chosen == [SharedEncoderDrafter, SharedEncoderDrafter, OwnEncoderDrafter]
    for number, (model, cls) in enumerate([(draft, OwnEncoderDrafter), (decoder_alone(), SharedEncoderDrafter)]):
        drafter = cls(target_of(), model)
        drafter.save_pretrained(tmp_path / str(number))
        loaded = mmspec.load_drafter(str(tmp_path / str(number)), target_of())
        assert type(loaded.model) is type(model) and type(loaded) is cls
        runs = [mmspec.generate(target_of(), one, inputs=inputs_for(), max_new_tokens=NEW) for one in (drafter, loaded)]
        assert runs[0].token_ids == runs[1].token_ids == expected()
        assert runs[0].stats.mean_acceptance_length == runs[1].stats.mean_acceptance_length


@pytest.mark.parametrize("cls", [OwnEncoderDrafter, SharedEncoderDrafter])
def test_guesses_in_training_are_those_of_decoding(cls):
    answers = [[5, 9, 33, 12], [40, 41], [7, 8, 90]]
    lesson = Teacher(target_of(), [0]).study(prepare(target_of(), inputs=inputs_for()), answers)
    drafter = cls(target_of(), target_of().model)
    guesses = guesses_of(drafter, lesson, 2)
    trained = {*map(id, drafter.trainable_parameters())}
    assert len(guesses) == 9 and trained < {*map(id, drafter.model.parameters())}
    assert all(id(one) not in trained for one in drafter.model.model.encoder.parameters())
    for (row, root, step), logits in guesses.items():
        ids = torch.tensor([[*PROMPTS[row], *answers[row]]])
        with torch.no_grad():
            whole = target_of().model(input_features=features((row + 1,)), decoder_input_ids=ids).logits[0]
        assert torch.allclose(logits, whole[len(PROMPTS[row]) + root + step], atol=1e-4)


def test_models_are_loaded_by_name(tmp_path, capsys):
    target_of().model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    target = mmspec.load_target(str(tmp_path), device="cpu")
    assert type(target.model) is type(target_of().model) and target.processor.feature_extractor.sampling_rate == RATE
    assert prepare(target, audio=(sound(1), RATE), chat_template_kwargs={"language": "en"}).token_ids() == [START]
    drafter = mmspec.load_drafter(str(tmp_path), target)
    assert type(drafter) is SharedEncoderDrafter
    out = mmspec.generate(target, drafter, inputs=inputs_for(), max_new_tokens=NEW)
    assert out.token_ids == expected() and out.stats.mean_acceptance_length > 3
    place = tmp_path / "speech.wav"
    with wave.open(str(place), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound(1) * 2**14).astype("<i2").tobytes())
    settings = [f"target={tmp_path}", f"drafter={tmp_path}", "max_new_tokens=8", "device=cpu", "compare=true"]
    assert main(["generate", *settings, "--audio", str(place), "chat_template_kwargs.language=fr"]) == 0
    assert "text identical" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 0
    assert "sounds: a tree of 7 nodes" in capsys.readouterr().out


def test_an_adapter_of_peft_may_be_on_it():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    target = Target(peft.get_peft_model(whisper(), config))
    want = reference(target.model, NEW)
    assert want != expected()
    out = mmspec.generate(target, DRAFTERS["shared"](target), inputs=inputs_for(), max_new_tokens=NEW)
    assert out.token_ids == want


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": (sound(1, 1.2), RATE)}, "its sound lasts 1.2 seconds, but ... hears 1 at a time: cut it"),
        ({"audio": (sound(1), 8000)}, "8000 samples a second, but the model reads 16000: resample it"),
        ({"audio": []}, "audio is an empty list"),
        ({"prompt": "hello"}, "prompt 0 has 0 sounds in 1 messages"),
        ({"prompt": "hello", "audio": [(sound(1), RATE)] * 2}, "prompt 0 has 2 sounds in 1 messages"),
        ({"prompt": "<|en|> a", "audio": (sound(1), RATE)}, "prompt 0: ... special token: <|en|>"),
        ({"audio": (sound(1), RATE), "system": "a"}, "system= goes with prompt=; without one, Wh ... audio= alone"),
        ({"audio": (sound(1), RATE), "images": "a.png"}, "images= goes with prompt="),
        ({"audio": (sound(1), RATE), "chat_template_kwargs": {"language": "klingon"}}, "Unsupported language: klingon"),
        ({"audio": (sound(1), RATE), "chat_template_kwargs": {"task": "sing"}}, "The `sing` task is not supported"),
        ({"audio": (sound(1), RATE), "chat_template_kwargs": {"lang": "en"}}, "has 'lang', ... language and task only"),
        ({"inputs": {"input_ids": [START]}}, "listens, and no sound was given; pass audio="),
        ({"inputs": {"input_features": features((1,)).numpy()}}, "is a ndarray; call ... return_tensors='pt'"),
        ({"inputs": inputs_for([START]) | {"input_features": features((1,))[:, :4]}}, "reads (1, 8, 100), a window"),
        ({"inputs": {"input_features": features((1,)).repeat(1, 1, 2)}}, "(1, 8, 200), ... cut what is longer"),
        ({"inputs": inputs_for()["decoder_input_ids"]}, "inputs is a Tensor"),
    ],
)
def test_what_cannot_be_heard_is_refused(options, message):
    refused(lambda: prepare(target_of(), **options), message)


def test_what_does_not_fit_a_whisper_is_refused(tmp_path):
    listening = {"inputs": inputs_for()}
    model = target_of().model
    cases = [
        (lambda: mmspec.generate(target_of(), **listening, max_new_tokens=56), "ask for max_new_tokens=55 at most"),
        (
            lambda: Target(model, compile=True),
            "compile=true: passes of WhisperForConditionalGeneration, ... leave comp",
        ),
        (lambda: mmspec.generate(Target(decoder_alone()), **listening, max_new_tokens=9), "is a decoder alone"),
        (lambda: TextOnlyDrafter(target_of(), model), "attends to sound; use SharedEncoderDrafter or Own"),
        (lambda: OwnEncoderDrafter(target_of(), decoder_alone()), "neither pictures nor sound; use Shared"),
        (lambda: OwnEncoderDrafter(Target(llama()), model), "attends to sound, which LlamaForCausalLM does not"),
        (lambda: SharedEncoderDrafter(Target(llama()), llama()), "cannot draft with LlamaForCausalLM"),
        (
            lambda: TransformersEngine(target_of(), None, None, None, sampling=Sampling(), max_new_tokens=8),
            "does not ask WhisperForConditionalGeneration, an encoder-decoder model: use engine=mmspec",
        ),
    ]
    for call, message in cases:
        refused(call, message)
    assert len(mmspec.generate(target_of(), **listening, max_new_tokens=55).token_ids[0]) == 55  # to the last position
    deaf = whisper()
    deaf.generation_config.no_speech_threshold = 0.5
    refused(lambda: mmspec.generate(Target(deaf), **listening), "no_speech_threshold=0.5, which mmspec does not apply")
    text = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9))
    text.save_pretrained(tmp_path)
    for load in (lambda: Target(text), lambda: mmspec.load_target(str(tmp_path), device="cpu")):
        refused(load, "model type 't5' is an encoder-decoder ... of type whisper only")
