"""What a request may be made from, besides PIL pictures, Python numbers and ids inside the vocabulary."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import IMAGE, inputs_for, llama, llava
from PIL import Image
from refusals import refused

import mmspec
from mmspec import Target, zoo
from mmspec.inputs import Request, prepare
from mmspec.inputs.processing import apply_template
from mmspec.inputs.prompts import conversation_of

TALK = ("What is this?", "A red square.", "And below it?")
"""A conversation: a question, what the model answered, and the next question."""


@pytest.fixture(scope="module")
def tiny():
    return mmspec.load_target("tiny")


def test_placeholders_and_padding_may_lie_outside_the_vocabulary():
    inputs = inputs_for("llava", [1, 1], [9, 4])
    want = mmspec.generate(Target(llava()), inputs=inputs, max_new_tokens=6).token_ids
    model = llava()
    model.config.image_token_id = 70
    for pad in (-100, 71):
        ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 70)
        ids = ids.masked_fill(inputs["attention_mask"] == 0, pad)
        assert (ids == pad).any()
        out = mmspec.generate(Target(model), inputs={**inputs, "input_ids": ids}, max_new_tokens=6)
        assert out.token_ids == want


def test_numbers_of_other_types():
    target = Target(llama())
    sampled = {"inputs": inputs_for("llama", [0]), "max_new_tokens": 8, "temperature": 1.0, "seed": 4}
    want = mmspec.generate(target, **sampled).token_ids
    others = {"seed": np.int64(4), "max_new_tokens": np.int32(8), "temperature": np.float32(1)}
    assert mmspec.generate(target, **{**sampled, **others}).token_ids == want
    assert mmspec.generate(target, **{**sampled, "seed": 5}).token_ids != want


# Conversations


def test_a_tokenizer_writes_conversations_as_plain_text(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }} {% endfor %}"
    bare = SimpleNamespace(processor=tokenizer, tokenizer=tokenizer, family=tiny.family)
    (ids,) = apply_template(bare, [conversation_of("prompt 0", TALK, {})])["input_ids"].tolist()
    assert ids == tokenizer("user: What is this? assistant: A red square. user: And below it? ")["input_ids"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("What?", "That."), "prompt 1 is a conversation of 2 texts ... it must be of odd length"),
        ((), "prompt 1 is a conversation of 0 texts"),
        (("What?", "That.", " "), "prompt 1, text 3 of 3 is empty: ' '; say what you want to know"),
        (("", "That.", "Why?"), "prompt 1, text 1 of 3 is empty"),
        (("What?", None, "Why?"), "prompt 1, text 2 of 3 is None, which is no ... a conversation is a tuple of"),
        ((["What?"],), "prompt 1, text 1 of 1 is ['What?'], which is no text"),
        (["What?", "That.", "Why?"], "which is no text ... pass a list of str, one per"),
        (" ", "prompt 1 is empty: ' '"),
    ],
)
def test_what_is_no_conversation_is_refused(tiny, row, message):
    refused(lambda: prepare(tiny, ["What?", row]), message)


@pytest.mark.parametrize("knows", ["parts of messages", "texts alone"])
def test_a_chat_template_of_the_tokenizer_alone_is_used(tiny, knows):
    """Some models keep it with the tokenizer, where it may know nothing of pictures."""
    processor = copy.deepcopy(tiny.processor)
    processor.chat_template = None
    if knows == "texts alone":
        processor.tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}"
            "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
    assert processor.tokenizer.chat_template
    other, picture = Target(tiny.model, processor), zoo.demo_image()
    for prompt, images in (
        ("What?", []),
        ("What?", [picture]),
        (TALK, [picture]),
        ("Is <image> <image>?", [picture] * 2),
    ):
        assert prepare(other, [prompt], [images]).token_ids() == prepare(tiny, [prompt], [images]).token_ids()
    processor.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    refused(lambda: prepare(other, ["What?", TALK]), "prompt 1: the chat template of LlavaProcessor does not")
    processor.tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    refused(lambda: prepare(other, ["What?"]), "prompt 0: the chat template of ... does not take it: only one turn")


# Pictures at their places


def test_a_marker_says_where_a_picture_stands(tiny):
    pictures = [zoo.sample("scenes", "test", number).image for number in range(2)]

    def written(*parts: str | None) -> list[list[int]]:
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        text = tiny.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return tiny.processor(text=[text], images=[pictures], add_special_tokens=False)["input_ids"]

    for prompt, parts in (
        ("Is <image> older than <image>?", ("Is ", None, " older than ", None, "?")),
        ("<image>\n<image> Which? ", (None, None, "Which?")),
        ("Which?", (None, None, "Which?")),
    ):
        request = prepare(tiny, prompt, pictures)
        assert request.token_ids() == written(*parts)
        assert prepare(tiny, messages=request.conversations).token_ids() == request.token_ids()
    talk = prepare(tiny, [("What is <image>?", "A cat.", "And <image>?")], [pictures]).token_ids()[0]
    ids = {token: tiny.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<|assistant|>")}
    half = talk.index(ids["<|assistant|>"])
    assert talk[:half].count(ids["<image>"]) == talk[half:].count(ids["<image>"]) > 0


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ("What is <image>?", 0, "prompt 1 has 1 <image> but 0 pictures: give as many"),
        ("<image>", 1, "prompt 1 has a question of pictures alone: say what you"),
        ("<image> <image> What?", 1, "prompt 1 has 2 <image> but 1 pictures"),
        (("What?", "<image>", "Why?"), 1, "prompt 1: an answer of the conversation has '<image>'"),
    ],
)
def test_markers_that_do_not_fit_are_refused(tiny, prompt, count, message):
    refused(
        lambda: mmspec.generate(
            tiny, prompt=["What?", prompt], images=[[], [zoo.demo_image()] * count], max_new_tokens=2
        ),
        message,
    )


def test_the_tokens_of_a_family_are_no_markers(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.processor), "boi_token", "<start_of_image>", raising=False)
    refused(lambda: prepare(tiny, "What is <start_of_image>?", [zoo.demo_image()]), "prompt 0: it has")


def test_what_a_processor_refuses_is_said_with_its_row(tiny):
    class Narrow(type(tiny.processor)):
        def __call__(self, text=None, images=None, **options):
            for picture in (picture for row in images or [] for picture in row):
                if max(picture.size) > 200 * min(picture.size):
                    raise ValueError(f"aspect ratio must be smaller than 200,\ngot {picture.size}")
            return super().__call__(text=text, images=images, **options)

    processor = copy.copy(tiny.processor)
    processor.__class__ = Narrow
    narrow = Target(tiny.model, processor)
    pictures = [zoo.demo_image(), Image.new("RGB", (4000, 8))]
    refused(
        lambda: mmspec.generate(narrow, prompt=["What?", "Why?"], images=pictures),
        "prompt 1: Narrow does not take it or its pictures: aspect",
    )


def test_a_tokenizer_reads_no_pictures(tiny):
    refused(lambda: prepare(Target(tiny.model, tiny.tokenizer), "What?", [zoo.demo_image()]), "images were given, but")


# Requests that are prepared once


@pytest.mark.parametrize("name", [None, "tiny/draft_model"])
def test_a_request_may_be_answered_twice(tiny, name):
    drafter = mmspec.load_drafter(name, tiny) if name else None
    pictures = [zoo.sample("scenes", "test", number).image for number in range(2)]
    request = prepare(tiny, [TALK, "Describe the picture."], pictures)
    before = copy.deepcopy(request)
    first = mmspec.generate(tiny, drafter, inputs=request, max_new_tokens=12)
    second = mmspec.generate(tiny, drafter, inputs=request, max_new_tokens=12)
    direct = mmspec.generate(tiny, drafter, [TALK, "Describe the picture."], pictures, max_new_tokens=12)
    assert first.token_ids == second.token_ids == direct.token_ids
    assert request.inputs.keys() == before.inputs.keys()
    assert all(torch.equal(value, before.inputs[key]) for key, value in request.inputs.items())
    assert request.lengths == before.lengths
    assert prepare(tiny, inputs=request) is request


def test_a_request_is_checked_against_its_target(tiny, monkeypatch):
    request = prepare(tiny, "Describe the picture.", [zoo.demo_image()])
    refused(lambda: prepare(Target(llama()), inputs=request), "inputs has pixel_values, which mmspec does not know how")
    refused(lambda: prepare(Target(llava()), inputs=request), "the token ids of Llava ... go from 0 to")
    halves = Request({**request.inputs, "pixel_values": request.inputs["pixel_values"].half()}, request.lengths)
    refused(lambda: prepare(tiny, inputs=halves), "pixel_values is torch.float16 on cpu, but the target reads")
    refused(lambda: prepare(tiny, "What?", inputs=request), "give either prompt= ... not prompt= and inputs=")
    refused(lambda: prepare(tiny, images=[zoo.demo_image()], inputs=request), "images= goes with prompt=")
    monkeypatch.setattr(tiny.family.text_config, "max_position_embeddings", request.max_length)
    refused(lambda: prepare(tiny, inputs=request), "but the model's limit is")
