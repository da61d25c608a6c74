"""Bad input from Python: one line that names the thing, the value and the way out, before any work is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import IMAGE, VOCAB, inputs_for, llama, llava
from PIL import Image
from toys import byte_tokenizer
from transformers import BatchFeature, LlamaConfig, LlamaForCausalLM, MaxLengthCriteria

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import DraftModelDrafter, NGramDrafter
from mmspec.errors import did_you_mean, first_line
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling


@pytest.fixture(scope="module")
def text_target():
    return Target(llama(), byte_tokenizer())


@pytest.fixture(scope="module")
def visual_target():
    return Target(llava(), byte_tokenizer())


def refused(target, message: str, drafter=None, **arguments) -> None:
    with pytest.raises(MMSpecError, match=message) as error:
        mmspec.generate(target, drafter, **{"max_new_tokens": 4, **arguments})
    assert "\n" not in str(error.value)


PROMPT = {"prompt": "a thing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a positive integer"),
        ({"max_new_tokens": -4}, "max_new_tokens=-4 must be a positive integer"),
        ({"temperature": -1.0}, r"temperature=-1\.0 is out of range: it must be 0 \(greedy\) or more"),
        ({"temperature": 1.0, "top_p": 2.0}, r"top_p=2\.0 is out of range"),
        ({"top_k": 0}, "top_k=0 is out of range: it must be a positive integer"),
        ({"temperature": 0.7, "verifier": Greedy()}, r"Greedy verifies at temperature 0 only, not 0\.7; use PointMass"),
        ({"verifier": PointMassSampling()}, "PointMassSampling samples: give temperature= above 0, or use Greedy"),
        ({"verifier": RejectionSampling()}, "RejectionSampling samples: give temperature= above 0, or use Greedy"),
        ({"tree": Chain(3)}, "tree= shapes what a drafter proposes, but drafter is None"),
        ({"drafter": "ngram"}, r"drafter='ngram' is no Drafter; load one with mmspec\.load_drafter\(name, target\)"),
        ({"verifier": "greedy"}, r"verifier='greedy' is no Verifier.*mmspec\.verifiers\.Greedy\(\)"),
        ({"verifier": Greedy}, r"verifier=.*Greedy.* is no Verifier"),
        ({"prompt": ""}, "prompt 0 is empty: ''"),
        ({"prompt": " \n"}, "prompt 0 is empty: "),
        ({"prompt": ["a", ""]}, "prompt 1 is empty: ''"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": None}, "give either prompt= .* or inputs="),
        ({"inputs": {"input_ids": torch.tensor([[1]])}}, "give either prompt= .* or inputs="),
        ({"prompt": None, "inputs": {}}, "inputs has no input_ids"),
        ({"prompt": None, "inputs": {"input_ids": torch.tensor([1, 2])}}, r"input_ids must be \[batch, length\]"),
        ({"prompt": None, "inputs": {"input_ids": torch.zeros(1, 0).long()}}, "at least one token per row"),
        ({"prompt": "a " * 300}, r"the prompt has \d+ tokens .* but the model's limit is 512"),
        ({"prompt": ["a", "b"], "images": []}, "2 prompts but images for 0"),
        ({"prompt": 5}, "prompt=5 is no text; pass a str, or a list of them"),
        ({"prompt": b"a"}, "prompt=b'a' is no text"),
        ({"prompt": ["a", 5]}, "prompt 1 is 5, which is no text"),
        ({"prompt": torch.ones(3, 40)}, "prompt is a Tensor, which is no text; .* goes into inputs="),
        ({"prompt": BatchFeature({"input_ids": torch.ones(3, 40)})}, "prompt is a BatchFeature, .* goes into inputs="),
        ({"max_new_tokens": "x"}, "max_new_tokens='x' must be a positive integer"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens=2\.5 must be a positive integer"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"seed": 1.0}, r"seed=1\.0 must be an integer"),
        ({"seed": None}, "seed=None must be an integer"),
        ({"temperature": None}, r"temperature=None is out of range: it must be 0 \(greedy\) or more"),
        ({"temperature": "hot"}, "temperature='hot' is out of range"),
        ({"repetition_penalty": "x"}, "repetition_penalty='x' is out of range: it must be above 0"),
        ({"eos_token_id": "x"}, "eos_token_id='x' must be a token id or a list of them"),
        ({"eos_token_id": ["</s>"]}, r"eos_token_id=\['</s>'\] must be a token id or a list of them"),
        ({"stopping_criteria": 5}, "stopping_criteria holds 5, which cannot be called with token ids and scores"),
        ({"stopping_criteria": "stop"}, "stopping_criteria holds 's', which cannot be called"),
        ({"stopping_criteria": [MaxLengthCriteria]}, "stopping_criteria holds <class .*give .* an instance"),
        ({"logits_processor": 5}, "logits_processor holds 5, which cannot be called with token ids and scores"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_arguments(text_target, arguments, message):
    refused(text_target, message, **{**PROMPT, **arguments})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[1, 2]]), r'inputs is a Tensor, .* pass inputs=\{"input_ids": tensor\}'),
        ([[1, 2]], "inputs is a list, but a processor returns a mapping"),
        ({"input_ids": [[1, 61]]}, "input_ids holds 61, but the token ids of LlamaForCausalLM go from 0 to 60; make"),
        ({"input_ids": [[1, -1]]}, "input_ids holds -1, but the token ids"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids is no rectangular table of integers; pad its rows to one length"),
        ({"input_ids": [["a", "b"]]}, "input_ids is no rectangular table of integers"),
        ({"input_ids": [[1.0, 2.0]]}, r"input_ids holds torch\.float32 values; it must hold integers"),
    ],
)
def test_inputs(text_target, inputs, message):
    refused(text_target, message, inputs=inputs)


def test_a_token_beyond_the_vocabulary_may_only_be_the_models_placeholder():
    target = Target(llava())
    for token in (VOCAB, 99):
        inputs = {"input_ids": torch.tensor([[1, token, 2]])}
        refused(target, f"input_ids holds {token}, but the token ids of Llava", inputs=inputs)


def test_trees_for_drafters(text_target):
    refused(
        text_target,
        "NGramDrafter proposes whole trees of its own, so tree=",
        NGramDrafter(text_target),
        tree=Chain(2),
        **PROMPT,
    )
    drafter = DraftModelDrafter(text_target, llama(), "text_only")
    refused(text_target, r"tree='chain' is no TreeBuilder.*mmspec\.trees\.Chain\(\)", drafter, tree="chain", **PROMPT)
    sampling = {"verifier": RejectionSampling(), "temperature": 1.0, **PROMPT}
    refused(text_target, "DynamicTree keeps the likeliest nodes", drafter, tree=DynamicTree(), **sampling)


def test_a_drafter_serves_the_target_it_was_built_for(text_target):
    stranger = NGramDrafter(Target(llama()))
    refused(text_target, "this NGramDrafter was made for another target; build it with the target", stranger, **PROMPT)
    twin = NGramDrafter(Target(text_target.model))  # another view of the same model is fine
    assert mmspec.generate(text_target, twin, max_new_tokens=2, **PROMPT).token_ids


def test_a_draft_model_shares_the_vocabulary(text_target):
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(MMSpecError, match="target vocab is 61 but the drafter's is 64: they must share a tokenizer"):
        DraftModelDrafter(text_target, other, "text_only")
    # Padded embedding tables are fine when the tokenizers agree, and only then.
    same, renamed = byte_tokenizer(), byte_tokenizer()
    renamed.add_tokens(["<new>"])

    def with_processor(processor):
        return DraftModelDrafter(text_target, other, "text_only", processor=processor)

    with pytest.raises(MMSpecError, match=r"tokenizer \(62 tokens\) is not the target's \(61 tokens\)"):
        with_processor(renamed)
    out = mmspec.generate(text_target, with_processor(same), max_new_tokens=4, **PROMPT)
    assert out.token_ids == mmspec.generate(text_target, max_new_tokens=4, **PROMPT).token_ids


@pytest.mark.parametrize(
    ("mode", "projector", "message"),
    [
        ("blind", None, "mode 'blind' is unknown.*Available: own_vision, shared_encoder, shared_vision, text_only"),
        ("text_onyl", None, r"mode 'text_onyl' is unknown\. Did you mean 'text_only'\?"),
        ("shared_vision", None, "a projector belongs to mode='shared_vision'"),
        ("text_only", torch.nn.Identity(), "a projector belongs to mode='shared_vision'"),
        (
            "own_vision",
            None,
            "takes pictures or sound, LlamaForCausalLM takes none; use mode='text_only'",
        ),
    ],
)
def test_modes_of_draft_models(visual_target, mode, projector, message):
    with pytest.raises(MMSpecError, match=message):
        DraftModelDrafter(visual_target, llama(), mode, projector)


# Pictures.


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.effect_noise((64, 64), 99).convert("RGB").save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.with_name("no.png"), "image '.*no.png' does not exist"),
        (lambda path: _written(path, b"not a picture"), "image '.*noise.png' is not in a picture format"),
        (lambda path: _written(path, path.read_bytes()[:1500]), "image '.*noise.png' cannot be read: "),
        (lambda path: _written(path, b""), "image '.*noise.png' is not in a picture format"),
        (lambda path: path.parent, "image '.*' cannot be read: it is a folder"),
    ],
    ids=["missing", "text", "truncated", "empty", "folder"],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_unreadable_pictures(visual_target, picture, make, message, as_list):
    path = make(picture)
    for image in (path, str(path)):
        refused(visual_target, message, images=[image] if as_list else image, **PROMPT)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 255.0), "image in an array has floating point values from 255 to 255, and only those from"),
        (np.zeros((4, 4), np.int64), "image in an array has int64 values, whose black and white are unknown"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); arrays are read as .*\[height, width, channels\]"),
        (np.zeros((0, 4, 3), np.uint8), r"with shape \(0, 4, 3\);"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\); arrays are read as .*\[height, width, channels\]"),
        (b"\x89PNG", "image in bytes is not in a picture format"),
        (5, "an image is a int; pass a PIL image"),
        ("a\0b", "image 'a.x00b' cannot be read: "),
    ],
    ids=["float", "integers", "channels first", "empty", "tensor", "bytes", "number", "no path"],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_things_that_are_no_picture(visual_target, image, message, as_list):
    refused(visual_target, message, images=[image] if as_list else image, **PROMPT)


def test_a_picture_whose_file_breaks_off(visual_target, picture):
    """Pillow reads the header when it opens a file, and the rest only when it is asked for pixels."""
    _written(picture, picture.read_bytes()[:1500])
    with Image.open(picture) as image:
        refused(visual_target, "image '.*noise.png' cannot be read: ", images=[image], **PROMPT)


def test_pictures_for_a_text_model(text_target, picture):
    refused(text_target, "1 images were given but LlamaForCausalLM takes none", images=[picture], **PROMPT)


def test_numbers_of_pictures_and_placeholders(visual_target):
    two = inputs_for("llava", [2])
    fewer = {**two, "pixel_values": two["pixel_values"][:1]}
    more = {**two, "pixel_values": two["pixel_values"].repeat(2, 1, 1, 1)}
    none = {name: value for name, value in two.items() if name != "pixel_values"}
    refused(visual_target, "8 image placeholder tokens but the 1 images given fill 4; pass as many", inputs=fewer)
    refused(visual_target, "8 image placeholder tokens but the 4 images given fill 16; pass as many", inputs=more)
    refused(visual_target, r"8 image placeholder tokens but no image was given; pass images=", inputs=none)
    unplaced = {**inputs_for("llava", [0]), "pixel_values": two["pixel_values"]}
    refused(visual_target, "0 image placeholder tokens but the 2 images given fill 8", inputs=unplaced)
    refused(visual_target, "images= goes with prompt=", inputs=two, images=[Image.new("RGB", (4, 4))])


def test_text_needs_a_tokenizer():
    refused(Target(llama()), "the target has no processor, so it reads no text", **PROMPT)


def test_a_blind_drafter_needs_words(visual_target):
    ids = torch.tensor([[IMAGE] * 4])
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 16, 16)}
    drafter = DraftModelDrafter(visual_target, llama(), "text_only")
    refused(visual_target, "a prompt without its images is empty", drafter, inputs=inputs)


def test_a_refused_request_leaves_the_target_usable(visual_target):
    inputs = inputs_for("llava", [1])
    want = mmspec.generate(visual_target, inputs=inputs, max_new_tokens=3).token_ids
    refused(visual_target, "max_new_tokens", inputs=inputs, max_new_tokens=0)
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


def test_a_model_without_a_tokenizer_is_refused_with_a_way_out(tmp_path):
    llama(layers=1).save_pretrained(tmp_path)
    with pytest.raises(MMSpecError, match="has no tokenizer that can be read .*mmspec.Target, which works on inputs="):
        mmspec.load_target(tmp_path)
