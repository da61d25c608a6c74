"""The tokenizer, the chat template and the processor."""

import random

import pytest
import torch
from transformers import AutoProcessor

from mmspec import zoo
from mmspec.zoo.batches import IGNORE, Conversations, encode, pixels
from mmspec.zoo.data import conversation
from mmspec.zoo.evaluation import chat
from mmspec.zoo.vocabulary import build_processor, build_tokenizer

TEXTS = [
    "",
    " ",
    "  two  spaces, and a tab\t.",
    "Hello, World!\r\n\n  Line",
    "naïve café – 東京 🦜 ẞ",
    "MIXED Case3D and 3.14159%",
    " leading and trailing ",
    "| a | b |\n|---|---|",
    "\u00a0\u2003\u200b\x00\x07",
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(examples=300)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build_processor(tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_survives(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(chr(rng.choice((rng.randrange(1, 0x250), rng.randrange(0xE000, 0x1FFFF)))) for _ in range(20))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_documents_take_one_token_per_character(tokenizer):
    for index in range(50):
        reference = zoo.sample("documents", "test", index).reference
        assert len(tokenizer.encode(reference)) == len(reference)


def test_answers_are_long(tokenizer):
    lengths = {
        task: sum(len(tokenizer.encode(zoo.sample(task, "test", i).reference)) for i in range(200)) / 200
        for task in zoo.TASKS
    }
    assert sum(lengths.values()) / len(lengths) >= 60
    assert lengths["scenes"] >= 80


def test_training_rows_look_like_the_chat_template(tokenizer, processor):
    example = conversation("scenes", 5)
    messages = []
    for turn, (prompt, reference) in enumerate(example.turns):
        image = [{"type": "image"}] if turn == 0 else []
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": reference}]})
    text = processor.apply_chat_template(messages)
    expected = processor(text=[text], images=[[example.image]], return_tensors="pt")
    ids, labels = encode(example, tokenizer)
    assert expected["input_ids"][0].tolist() == ids
    assert torch.allclose(expected["pixel_values"][0], pixels(example.image), atol=1e-6)
    answered = [i for i, label in zip(ids, labels, strict=True) if label != IGNORE]
    assert tokenizer.decode(answered) == "".join(reference + "</s>" for _, reference in example.turns)


def test_batches_pad_on_the_right(tokenizer):
    stream = Conversations(tokenizer, pictures=8, rows=4)
    batches = stream.step(0)
    assert [batch.input_ids.shape[0] for batch in batches] == [4, 4]
    for batch in batches:
        assert batch.pixel_values.shape == (4, 3, 96, 96)
        assert batch.input_ids.shape[1] % 16 == 0
        assert (batch.input_ids[:, 0] == tokenizer.bos_token_id).all()
        assert (batch.labels[batch.input_ids == tokenizer.pad_token_id] == IGNORE).all()
    assert torch.equal(stream.step(0)[0].input_ids, batches[0].input_ids)


def test_the_processor_survives_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    image = zoo.sample("scenes", "test", 0).image.resize((200, 120))
    texts = [chat(loaded, "Describe this image."), chat(loaded, "Which is larger?", 2), chat(loaded, "Hello there", 0)]
    images = [[image], [image, image], []]
    one, two = (p(text=texts, images=images, padding=True, return_tensors="pt") for p in (processor, loaded))
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key
    visual = loaded.tokenizer.convert_tokens_to_ids("<image>")
    assert (two["input_ids"] == visual).sum(dim=1).tolist() == [144, 288, 0]
    assert two["pixel_values"].shape == (3, 3, 96, 96)
