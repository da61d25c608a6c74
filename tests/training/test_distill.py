"""Distillation: the answers are the target's, what cannot be asked is named, and the pictures are found again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from refusals import refused
from tiny_training import ANSWERS, INFO, OPTIONS, SAMPLED, SKIPPED, SOURCE, lines, small_model

import mmspec
from mmspec import Target, zoo
from mmspec.data import ConversationFile, Example, MediaFolder, open_image
from mmspec.drafters import NGramDrafter
from mmspec.errors import MMSpecError
from mmspec.training.answers import Answers, open_source
from mmspec.training.distill import distill

# What is written


def test_answers_are_what_the_target_says(target, whole):
    records = lines(whole["greedy"])
    assert len({tuple(record["answer_ids"]) for record in records}) > 2  # the model looks at its prompt
    assert [record["id"] for record in records] == [example.id for example in SOURCE]
    for number, record in enumerate(records):
        image, prompt, _ = zoo.sample(record["task"], "train", number // 2)
        alone = mmspec.generate(target, prompt=prompt, images=[image], max_new_tokens=4)
        assert (record["prompt"], record["answer"]) == (prompt, alone.text[0])
        assert (record["answer_ids"], record["finish_reason"]) == (alone.token_ids[0], alone.finish_reason[0])
        assert record["index"] == number


def test_training_reads_what_was_written(whole):
    answers = Answers(whole["greedy"])
    assert len(answers) == len(SOURCE)
    for example, record, asked in zip(answers, lines(whole["greedy"]), SOURCE, strict=True):
        assert replace(example, answer=None, answer_ids=None) == asked
        assert (example.answer, list(example.answer_ids)) == (record["answer"], record["answer_ids"])
        assert open_image(example.images[0]).size == (96, 96)
    assert answers.settings["target"]["model_type"] == "llava" and answers.settings["max_new_tokens"] == 4
    assert [example.id for example in open_source(whole["greedy"])] == [example.id for example in answers]


def test_the_end_token_is_part_of_the_ids_and_not_of_the_text(target, tmp_path, whole):
    end = lines(whole["greedy"])[0]["answer_ids"][2]
    model = target.model
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, end
    try:
        distill(target, SOURCE, tmp_path, **OPTIONS)
    finally:
        model.generation_config.eos_token_id = before
    record = lines(tmp_path)[0]
    assert record["finish_reason"] == "eos" and record["answer_ids"][-1] == end and end not in record["answer_ids"][:-1]


def test_a_drafter_changes_nothing(target, whole, tmp_path):
    for kind, options in (("greedy", OPTIONS), ("sampled", SAMPLED)):
        distill(target, SOURCE, tmp_path / kind, drafter=NGramDrafter(target), **options)
        assert (tmp_path / kind / ANSWERS).read_bytes() == (whole[kind] / ANSWERS).read_bytes()


def test_samples_follow_from_the_seed(target, whole, tmp_path):
    distill(target, SOURCE, tmp_path, **SAMPLED | {"seed": 2})
    ids = [[record["answer_ids"] for record in lines(folder)] for folder in (whole["sampled"], tmp_path)]
    assert all(first != second for first, second in zip(*ids, strict=True))
    # Batches do not repeat each other's noise either: one prompt about one picture, asked again and again.
    same = [replace(SOURCE[0], id=str(number)) for number in range(6)]
    distill(target, same, tmp_path / "same", **SAMPLED)
    assert len({tuple(record["answer_ids"]) for record in lines(tmp_path / "same")}) == 6


def test_prompts_with_several_pictures_one_and_none_share_a_batch(target, tmp_path):
    pictures = ("tiny:scenes/train/0", "tiny:charts/train/1")
    source = [
        Example("two", "Compare.", pictures),
        Example("none", "Hello!"),
        Example("one", "Describe.", pictures[:1]),
    ]
    distill(target, source, tmp_path, **OPTIONS)
    assert [record["id"] for record in lines(tmp_path)] == ["two", "none", "one"]
    alone = mmspec.generate(target, prompt="Hello!", max_new_tokens=4)
    assert lines(tmp_path)[1]["answer_ids"] == alone.token_ids[0]


# Examples that cannot be asked


def test_what_cannot_be_asked_is_skipped_and_named(target, tmp_path, asked):
    limit = target.family.text_config.max_position_embeddings
    good, bad = (
        "tiny:scenes/train/0",
        {
            "gone": Example("gone", "What?", ("gone.png",)),
            "long": Example("long", "word " * limit),
            "empty": Example("empty", "  "),
            "marked": Example("marked", "What is <image>?"),
        },
    )
    source = [Example("first", "What?", (good,)), *bad.values(), Example("last", "What?", (good,))]
    result = distill(target, source, tmp_path, **OPTIONS)
    assert (result.total, result.answers, result.skipped) == (6, 2, 4)
    assert [record["id"] for record in lines(tmp_path)] == ["first", "last"]
    reasons = {record["id"]: record["reason"] for record in lines(tmp_path, SKIPPED)}
    assert reasons.keys() == bad.keys()
    assert "'gone.png' does not exist" in reasons["gone"] and f"the model's limit is {limit}" in reasons["long"]
    assert "is empty" in reasons["empty"] and all("\n" not in reason for reason in reasons.values())
    assert json.loads((tmp_path / INFO).read_text())["complete"] is True
    assert len(Answers(tmp_path)) == 2
    asked.clear()
    distill(target, source, tmp_path, **OPTIONS)
    assert asked == []


def test_a_run_with_skipped_examples_resumes_to_the_same_files(target, tmp_path):
    source = [Example(f"{n}", "What?", ("gone.png" if n in (1, 4) else f"tiny:scenes/train/{n}",)) for n in range(7)]
    distill(target, source, tmp_path / "whole", **SAMPLED)
    contents = {name: (tmp_path / "whole" / name).read_bytes() for name in (ANSWERS, SKIPPED)}
    for name, content in contents.items():
        for cut in range(0, len(content), 97):
            folder = tmp_path / f"{name} {cut}"
            shutil.copytree(tmp_path / "whole", folder)
            (folder / name).write_bytes(content[:cut])
            distill(target, source, folder, **SAMPLED)
            assert {name: (folder / name).read_bytes() for name in contents} == contents


def test_too_many_failures_stop_the_run(target, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    source = [Example(f"{n}", "What?", (str(tmp_path / ("gone.png" if n % 2 else "good.png")),)) for n in range(12)]
    folder = tmp_path / "answers"
    refused(lambda: distill(target, source, folder, max_failures=2, **OPTIONS), "3 examples could not be ... skipped-")
    assert [record["id"] for record in lines(folder)] == ["0", "2"]
    refused(lambda: distill(target, source, folder, max_failures=2, **OPTIONS), "3 examples could not be asked")
    (folder / SKIPPED).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "gone.png")
    distill(target, source, folder, max_failures=0, **OPTIONS)
    assert [example.id for example in Answers(folder)] == [str(n) for n in range(12)]


def test_an_error_that_is_not_the_prompts_is_heard(target, tmp_path):
    with pytest.raises(MMSpecError, match="made for another target"):
        distill(target, SOURCE, tmp_path, drafter=NGramDrafter(Target(*small_model())), **OPTIONS)
    assert not (tmp_path / SKIPPED).exists()


# Pictures


def test_a_data_set_moves_together_with_its_pictures(target, tmp_path):
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "elsewhere"
    (here / "pictures").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(here / "pictures" / "a.png")
    distill(target, MediaFolder(here / "pictures"), here / "answers", **OPTIONS)
    assert lines(here / "answers")[0]["images"] == ["a.png"]
    here.rename(there)
    (example,) = Answers(there / "answers")
    assert open_image(example.images[0]).size == (9, 9)
    (there / "pictures").rename(elsewhere)
    refused(lambda: open_image(example.images[0]), "does not exist")
    (example,) = Answers(there / "answers", images=elsewhere)
    assert open_image(example.images[0]).size == (9, 9)


def test_pictures_that_are_not_files_are_kept_with_the_answers(target, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture = Image.effect_noise((9, 8), 50).convert("RGB")
    table = {"image": [picture] * 3, "prompt": ["What?", "Why?", "How?"]}
    datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    distill(target, ConversationFile(tmp_path / "data.parquet"), tmp_path / "answers", **OPTIONS)
    (tmp_path / "data.parquet").unlink()
    (tmp_path / "answers").rename(tmp_path / "moved")
    assert len(list((tmp_path / "moved" / "pictures").iterdir())) == 1
    for example in Answers(tmp_path / "moved"):
        assert open_image(example.images[0]).tobytes() == picture.tobytes()


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard": 1}, "shard=1 of shards=1"),
        ({"shards": 0}, "shards=0"),
        ({"max_failures": -1}, "max_failures=-1"),
        ({"compared": -1}, "compared=-1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(change, message, target, tmp_path):
    refused(lambda: distill(target, SOURCE, tmp_path / "answers", **OPTIONS | change), message)
    assert not (tmp_path / "answers").exists()
