"""Rows that cannot be trained on are dropped, counted and named, wherever they are met; and whose answers they are."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from PIL import Image
from refusals import refused
from tiny_training import Answered, eagle3, small_model, trainer

import mmspec
from mmspec.data import ConversationFile, Example
from mmspec.errors import MMSpecError
from mmspec.inputs import end_of_answer
from mmspec.training.answers import Answers
from mmspec.training.author import check_author
from mmspec.training.data import Loader
from mmspec.training.distill import distill

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
FINE = (11, 12, 13)


class Broken(Answered):
    """Among good examples, one of each kind that cannot be used: their numbers, and what is said of them."""

    def __init__(self):
        super().__init__(24)
        vocabulary, image = tiny_training.target().vocab_size, tiny_training.target().family.image_token_id
        limit = tiny_training.target().family.text_config.max_position_embeddings
        self.kinds = {
            1: (Example("marker", "Is <image> a cat?", (), answer_ids=FINE), "has 1 <image> but 0 pictures"),
            3: (Example("refused", "What?", (Image.new("RGB", (4000, 8)),), answer_ids=FINE), "aspect ratio"),
            5: (Example("range", "What?", answer_ids=(11, vocabulary)), f"has the token id {vocabulary}, but those"),
            8: (Example("visual", "What?", answer="A <image>."), f"token id {image}, which is the place of image"),
            10: (Example("none", "What?"), "it has no answer"),
            12: (Example("empty", "What?", answer="", answer_ids=()), "it has no answer"),
            14: (Example("long", "What?", answer_ids=FINE * limit), f"tokens, more than the {limit} that the target"),
            17: (None, "data.json, row 18: the text has 1 places for pictures"),
            19: (Example("gone", "What?", ("no/such.png",), answer_ids=FINE), "no/such.png' does not exist"),
            20: (Example("silent", "  ", answer_ids=FINE), "is empty"),
        }

    def __getitem__(self, index: int) -> Example:
        if index not in self.kinds:
            return super().__getitem__(index)
        if (example := self.kinds[index][0]) is None:
            raise MMSpecError(self.kinds[index][1])
        return example


@pytest.fixture
def narrow(monkeypatch):
    """A processor that refuses thin pictures, as Qwen's does."""
    kind, call = type(tiny_training.target().processor), type(tiny_training.target().processor).__call__

    def refusing(self, *args, images=None, **options):
        if any(max(picture.size) > 200 * min(picture.size) for row in images or [] for picture in row):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return call(self, *args, images=images, **options)

    monkeypatch.setattr(kind, "__call__", refusing)


@pytest.mark.parametrize("cached", [False, True])
def test_every_kind_is_dropped_and_named(narrow, cached, tmp_path):
    examples = Broken()
    cache = tmp_path / "cache" if cached else None
    few = {"steps": 3, "held_out": 12, "depth": 1, "measured_prompts": 0}
    training = trainer(tmp_path / "run", examples=examples, cache=cache, max_length=10**6, **few)
    report = training.run()
    assert report["simulated"]["mean_acceptance_length"] >= 1
    assert training.loader.skipped.keys() == examples.kinds.keys()
    lines = [json.loads(line) for line in (tmp_path / "run" / "dropped-0.jsonl").read_text().splitlines()]
    assert {line["number"]: line["id"] for line in lines} == {
        number: example and example.id for number, (example, _) in examples.kinds.items()
    }
    for line in lines:
        assert examples.kinds[line["number"]][1] in line["reason"] and "\n" not in line["reason"]


def test_a_resumed_training_names_them_once(tmp_path):
    (tmp_path / "dropped-0.jsonl").write_text('{"id": "of an older version"}\n{"id{"id": "torn"}\n')
    for torn in ('{"num', "", ""):  # by a kill
        trainer(tmp_path, examples=Answered(broken=(2, 9))).loader.prepare([2, 9])
        with (tmp_path / "dropped-0.jsonl").open("a") as file:
            file.write(torn)
    lines = [json.loads(line) for line in (tmp_path / "dropped-0.jsonl").read_text().splitlines()[2:]]
    assert [line["id"] for line in lines] == ["2", "9"]


def test_the_vocabulary_is_chosen_from_what_can_be_used(narrow, tmp_path):
    training = trainer(tmp_path, eagle3, examples=Broken(), drafter={"draft_vocab_size": 30})
    assert len(training.drafter.draft_vocabulary) == 30


# The end of an answer


@pytest.mark.parametrize(
    ("ends", "template", "expected"),
    [
        ([], None, None),
        (["<|user|>"], None, "<|user|>"),  # the model's generate stops there, and not at the tokenizer's end token
        (["<|user|>", "EOS"], None, "EOS"),
        (["<|user|>", "<|assistant|>"], None, "<|user|>"),
        (["EOS", "<|user|>"], "{{ messages[-1]['content'][0]['text'] }}<|user|>", "<|user|>"),  # as Gemma 3
    ],
)
def test_an_answer_ends_as_the_model_ends_it(ends, template, expected, monkeypatch):
    target = tiny_training.target()
    ids = {name: target.tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "<|assistant|>")}
    ids["EOS"] = target.tokenizer.eos_token_id
    config = target.model.generation_config
    given = [ids[name] for name in ends]
    monkeypatch.setattr(config, "eos_token_id", given[0] if len(given) == 1 else given or None)
    monkeypatch.setattr(target.processor, "chat_template", template or "{{ messages[-1]['content'][0]['text'] }} .")
    assert end_of_answer(target) == ids.get(expected)
    answer = Loader(target, Answered()).answer(Example("a", "What?", answer="A cat."))
    text = target.tokenizer.encode("A cat.", add_special_tokens=False)
    assert answer == text + ([] if expected is None else [ids[expected]])


# Whose answers they are


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    distill(tiny_training.target(), [Example("a", "What?")], folder, max_new_tokens=3)
    return Answers(folder)


def other(seed: int = 0, dtype: torch.dtype = torch.float32) -> mmspec.Target:
    model, processor = small_model(seed)
    return mmspec.Target(model.to(dtype), processor)


@pytest.mark.parametrize(
    ("seed", "dtype", "warned"),
    [
        (0, torch.float32, False),
        (0, torch.bfloat16, False),
        (0, torch.float16, False),
        (1, torch.float32, True),
        (1, torch.bfloat16, True),
    ],
)
def test_answers_of_another_target_are_said(given, seed, dtype, warned, caplog):
    with caplog.at_level(logging.WARNING, "mmspec"):
        check_author(given, other(seed, dtype))
    assert ("were given by another target" in caplog.text) == warned
    assert not warned or "mmspec distill" in caplog.text


def test_a_fine_tuned_layer_is_another_target(given, caplog):
    target = other()
    with torch.no_grad():
        target.family.layers[1].mlp.up_proj.weight.mul_(1.01)
    with caplog.at_level(logging.WARNING, "mmspec"):
        check_author(given, target)
    assert "were given by another target" in caplog.text


def test_training_says_whose_answers_they_are(tmp_path, caplog):
    source = [Example(f"{n}", "What?") for n in range(6)]
    distill(other(seed=1), source, tmp_path / "answers", max_new_tokens=3)
    with caplog.at_level(logging.WARNING, "mmspec"):
        trainer(tmp_path / "run", examples=Answers(tmp_path / "answers"), held_out=2)
    assert caplog.text.count("were given by another target") == 1


def test_answers_in_another_vocabulary_are_refused(given):
    smaller = SimpleNamespace(model=tiny_training.target().model, vocab_size=99, dtype=torch.float32)
    refused(lambda: check_author(given, smaller), "but the target ' ... ' has 99: answer with this target")


def test_answers_of_a_file_say_nothing_of_who_gave_them(tmp_path, caplog):
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": "What?", "answer": "A cat."}]))
    check_author(ConversationFile(tmp_path / "data.json"), tiny_training.target())
    assert not caplog.text
