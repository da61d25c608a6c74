"""Bad input from Python: one line that names the thing, the value and the way out, before any work is done."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from models import IMAGE, VOCAB, inputs_for, llama, llava
from PIL import Image
from refusals import refused
from toys import byte_tokenizer
from transformers import BatchFeature, LlamaConfig, LlamaForCausalLM, MaxLengthCriteria

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import (
    Drafter,
    DraftModelDrafter,
    EagleDrafter,
    NGramDrafter,
    OwnEncoderDrafter,
    SharedEncoderDrafter,
    TextOnlyDrafter,
)
from mmspec.errors import did_you_mean, first_line
from mmspec.training import losses
from mmspec.trees import Chain, DynamicTree, NativeTree, TreeBuilder
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling


@pytest.fixture(scope="module")
def text_target():
    return Target(llama(), byte_tokenizer())


@pytest.fixture(scope="module")
def visual_target():
    return Target(llava(), byte_tokenizer())


def request_refused(target, said: str, drafter=None, **arguments) -> str:
    return refused(lambda: mmspec.generate(target, drafter, **{"max_new_tokens": 4, **arguments}), said)


PROMPT = {"prompt": "a thing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a positive integer"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range: it must be 0 (greedy) or"),
        ({"temperature": 0.7, "verifier": Greedy()}, "Greedy verifies at temperature 0 only, not 0.7; use PointMass"),
        ({"verifier": PointMassSampling()}, "PointMassSampling samples: give temperature= above 0, or"),
        ({"tree": Chain(3)}, "tree= shapes what a drafter proposes, but drafter is None"),
        ({"drafter": "ngram"}, "drafter='ngram' is no Drafter ... load one with"),
        ({"verifier": "greedy"}, "verifier='greedy' is no Verifier ... mmspec.verifiers.Greedy()"),
        ({"verifier": Greedy}, "verifier= ... Greedy ... is no Verifier"),
        ({"prompt": ""}, "prompt 0 is empty: ''"),
        ({"prompt": " \n"}, "prompt 0 is empty:"),
        ({"prompt": ["a", ""]}, "prompt 1 is empty: ''"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": None}, "give either prompt= ... or inputs="),
        ({"inputs": {"input_ids": torch.tensor([[1]])}}, "give either prompt= ... or inputs="),
        ({"prompt": "a " * 300}, "the prompt has ... tokens ... but the model's limit is 512"),
        ({"prompt": ["a", "b"], "images": []}, "2 prompts but images for 0"),
        ({"prompt": 5}, "prompt=5 is no text; pass a str, or a list of them"),
        ({"prompt": ["a", 5]}, "prompt 1 is 5, which is no text"),
        ({"prompt": torch.ones(3, 40)}, "prompt is a Tensor, which is no text; ... goes into inputs="),
        ({"prompt": BatchFeature({"input_ids": torch.ones(3, 40)})}, "prompt is a BatchFeature, ... goes into inputs="),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"repetition_penalty": "x"}, "repetition_penalty='x' is out of range: it must be above 0"),
        ({"eos_token_id": "x"}, "eos_token_id='x' must be a token id or a list of them"),
        ({"stopping_criteria": 5}, "stopping_criteria holds 5, which cannot be called with"),
        ({"stopping_criteria": [MaxLengthCriteria]}, "stopping_criteria holds <class ... give ... an instance"),
        ({"logits_processor": 5}, "logits_processor holds 5, which cannot be called with"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_arguments(text_target, arguments, message):
    request_refused(text_target, message, **{**PROMPT, **arguments})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[1, 2]]), 'inputs is a Tensor, ... pass inputs={"input_ids": tensor}'),
        ([[1, 2]], "inputs is a list, but a processor returns a mapping"),
        ({"input_ids": [[1, 61]]}, "input_ids holds 61, but the token ids of ... make"),
        ({"input_ids": [[1, -1]]}, "input_ids holds -1, but the token ids"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids is no rectangular table of ... pad its rows to one length"),
        ({"input_ids": [["a", "b"]]}, "input_ids is no rectangular table of integers"),
        ({"input_ids": [[1.0, 2.0]]}, "input_ids holds torch.float32 values; it must hold integers"),
    ],
)
def test_inputs(text_target, inputs, message):
    request_refused(text_target, message, inputs=inputs)


def test_a_token_beyond_the_vocabulary_may_only_be_the_models_placeholder():
    target = Target(llava())
    for token in (VOCAB, 99):
        inputs = {"input_ids": torch.tensor([[1, token, 2]])}
        request_refused(target, f"input_ids holds {token}, but the token ids of Llava", inputs=inputs)


def test_trees_for_drafters(text_target):
    request_refused(
        text_target,
        "NGramDrafter proposes whole trees of its own, so tree=",
        NGramDrafter(text_target),
        tree=Chain(2),
        **PROMPT,
    )
    drafter = TextOnlyDrafter(text_target, llama())
    request_refused(
        text_target, "tree='chain' is no TreeBuilder ... mmspec.trees.Chain()", drafter, tree="chain", **PROMPT
    )
    sampling = {"verifier": RejectionSampling(), "temperature": 1.0, **PROMPT}
    request_refused(text_target, "DynamicTree keeps the likeliest nodes", drafter, tree=DynamicTree(), **sampling)


def test_a_drafter_serves_the_target_it_was_built_for(text_target):
    stranger = NGramDrafter(Target(llama()))
    request_refused(
        text_target, "this NGramDrafter was made for another ... build it with the target", stranger, **PROMPT
    )
    twin = NGramDrafter(Target(text_target.model))  # another view of the same model is fine
    assert mmspec.generate(text_target, twin, max_new_tokens=2, **PROMPT).token_ids


def test_a_draft_model_shares_the_vocabulary(text_target):
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(MMSpecError, match="target vocab is 61 but the drafter's is 64: they must share a tokenizer"):
        TextOnlyDrafter(text_target, other)
    # Padded embedding tables are fine when the tokenizers agree, and only then.
    same, renamed = byte_tokenizer(), byte_tokenizer()
    renamed.add_tokens(["<new>"])

    def with_processor(processor):
        return TextOnlyDrafter(text_target, other, processor=processor)

    with pytest.raises(MMSpecError, match=r"tokenizer \(62 tokens\) is not the target's \(61 tokens\)"):
        with_processor(renamed)
    out = mmspec.generate(text_target, with_processor(same), max_new_tokens=4, **PROMPT)
    assert out.token_ids == mmspec.generate(text_target, max_new_tokens=4, **PROMPT).token_ids


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (DraftModelDrafter, "does not say what a model reads ... as_drafter(target, model) ... TextOnlyDrafter"),
        (OwnEncoderDrafter, "cannot draft with LlamaForCausalLM: ... neither pictures nor sound; use TextOnlyDrafter"),
        (SharedEncoderDrafter, "cannot draft with LlamaForCausalLM: ... use TextOnlyDrafter or OwnEncoderDrafter"),
    ],
)
def test_a_draft_model_fits_its_class(visual_target, cls, message):
    refused(lambda: cls(visual_target, llama()), message)


# Pictures.


@pytest.mark.parametrize("as_list", [False, True])
def test_pictures_that_cannot_be_read(visual_target, tmp_path, as_list):
    """What else is no picture: tests/media/test_load_image.py."""
    path = tmp_path / "noise.png"
    request_refused(
        visual_target, "image ' ... noise.png' does not exist", images=[path] if as_list else path, **PROMPT
    )
    path.write_text("not a picture")
    request_refused(
        visual_target, "noise.png' is not in a picture format", images=[path] if as_list else path, **PROMPT
    )


def test_pictures_for_a_text_model(text_target):
    picture = Image.new("RGB", (4, 4))
    request_refused(text_target, "1 images were given but LlamaForCausalLM takes none", images=[picture], **PROMPT)


def test_a_blind_drafter_needs_words(visual_target):
    ids = torch.tensor([[IMAGE] * 4])
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 16, 16)}
    drafter = TextOnlyDrafter(visual_target, llama())
    request_refused(visual_target, "a prompt without its images is empty", drafter, inputs=inputs)


def test_a_refused_request_leaves_the_target_usable(visual_target):
    inputs = inputs_for("llava", [1])
    want = mmspec.generate(visual_target, inputs=inputs, max_new_tokens=3).token_ids
    request_refused(visual_target, "max_new_tokens", inputs=inputs, max_new_tokens=0)
    assert mmspec.generate(visual_target, inputs=inputs, max_new_tokens=3).token_ids == want
    assert all(0 <= token < VOCAB for token in want[0])


def test_hints():
    assert did_you_mean("chian", ["chain", "dynamic"]) == " Did you mean 'chain'? Available: chain, dynamic."
    assert did_you_mean("xyz", ["b", "a"]) == " Available: a, b."
    assert did_you_mean("xyz", []) == ""


def test_what_other_libraries_say_is_told_with_what_they_announce():
    assert first_line(ValueError("Validation error for 'vocab_size':\n    '61' is no int\nmore")) == (
        "Validation error for 'vocab_size': '61' is no int"
    )
    assert first_line(KeyError("weird")) == "KeyError: 'weird'"
    assert first_line(OSError()) == "OSError" and first_line(OSError("a\nb")) == "a"


def kinds_in(module, base: type) -> list[type]:
    """The classes of a kind that a module offers, but the base itself."""
    found = [getattr(module, name) for name in module.__all__]
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, base) and cls is not base]


@pytest.mark.parametrize("cls", kinds_in(mmspec.trees, TreeBuilder), ids=lambda cls: cls.__name__)
def test_no_tree_takes_an_argument_that_it_does_not_have(cls):
    refused(lambda: cls(foo=1), f"{cls.__name__} has no argument 'foo'")
    refused(lambda: cls(*range(20)), f"{cls.__name__}: too many positional arguments; its arguments are")


KINDS = [
    *kinds_in(mmspec.verifiers, mmspec.verifiers.Verifier),
    *kinds_in(mmspec.verifiers.gates, mmspec.verifiers.gates.Gate),
    *kinds_in(mmspec.verifiers.rules, mmspec.verifiers.rules.Rule),
    *kinds_in(mmspec.compressors, mmspec.compressors.VisualCompressor),
    *kinds_in(losses, losses.Term),
]


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_no_method_takes_an_argument_that_it_does_not_have(cls):
    if not any(each.kind is each.VAR_KEYWORD for each in signature(cls).parameters.values()):
        refused(lambda: cls(foo=1), f"{cls.__name__} has no argument 'foo'")


def test_an_argument_that_is_left_out_is_named(text_target):
    said = "Gemma4AssistantDrafter: give model too; its arguments are target, model, tree"
    refused(lambda: mmspec.drafters.Gemma4AssistantDrafter(text_target), said)
    refused(lambda: mmspec.drafters.TextOnlyDrafter(tree=Chain()), "TextOnlyDrafter: give target and model too")
    refused(lambda: mmspec.verifiers.Gated(Greedy()), "Gated: give gate too; its arguments are inner, gate")
    refused(lambda: mmspec.drafters.Gemma4AssistantDrafter("tiny"), "takes a Target, and 'tiny' is a name")


@pytest.mark.parametrize("cls", kinds_in(mmspec.drafters, Drafter), ids=lambda cls: cls.__name__)
def test_no_drafter_takes_parts_that_are_none(text_target, cls):
    refused(lambda: cls("tiny"), f"{cls.__name__} takes a Target, and 'tiny' is a name: mmspec.load_target('tiny')")
    refused(lambda: cls(target=text_target.model), f"{cls.__name__} takes a Target, and this is a LlamaForCausalLM")
    parameters, such_as = signature(cls).parameters, {"tree": "Chain()", "compressor": "Hide()"}
    for part in such_as.keys() & parameters.keys():
        said = f"{cls.__name__}: {part}='hide' is no ... {such_as[part]}"
        refused(lambda part=part: cls(text_target, **{part: "hide"}), said)
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        refused(lambda: cls(text_target, foo=1), "foo")


def test_where_a_drafter_cannot_be_saved(text_target, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "below"):
        said = "save_pretrained: ... cannot be written to ... name a folder"
        refused(lambda folder=folder: EagleDrafter(text_target).save_pretrained(folder), said)
    assert file.read_text() == "mine"


def test_another_view_has_to_be_a_compressor(visual_target):
    said = "EagleDrafter: compressor='hide' is no VisualCompressor; pass an instance, such as Hide()"
    refused(lambda: EagleDrafter(visual_target).with_compressor("hide"), said)


def test_the_native_tree_is_called_by_its_own_name(text_target):
    options = {"tree": NativeTree(), "verifier": RejectionSampling(), "temperature": 1.0, **PROMPT}
    said = request_refused(text_target, "NativeTree keeps the likeliest nodes", EagleDrafter(text_target), **options)
    assert "DynamicTree" not in said


def test_a_drafter_without_weights_is_not_loaded(text_target):
    for name, cls in {"ngram": "NGramDrafter", "jacobi": "JacobiDrafter", "early_exit": "EarlyExitDrafter"}.items():
        said = f"drafter '{name}' is not loaded but made: mmspec.drafters.{cls}(target)"
        refused(lambda name=name: mmspec.load_drafter(name, text_target), said)
    made = "drafter 'tabed' is not loaded but made: mmspec.mixtures.mixture_of_views(target, ...)"
    refused(lambda: mmspec.load_drafter("tabed", text_target), made)
    refused(lambda: mmspec.load_drafter("eagle3", text_target), "Did you mean 'tiny/eagle3'")
