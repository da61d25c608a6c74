"""Distillation that is interrupted, continued and divided: the data set comes out the same."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch
from refusals import refused
from tiny_training import ANSWERS, INFO, OPTIONS, SAMPLED, SOURCE, lines, small_model

from mmspec import Target
from mmspec.data import EmbeddedSource
from mmspec.errors import MMSpecError
from mmspec.training import asking as module
from mmspec.training.answers import Answers
from mmspec.training.distill import distill
from mmspec.training.shards import ShardWriter

# Interruptions


def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(target, whole, tmp_path, asked):
    content = (whole["sampled"] / ANSWERS).read_bytes()
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    for cut in sorted({0, 1} | {end + shift for end in ends for shift in (-1, 0, 40)}):
        folder = tmp_path / str(cut)
        shutil.copytree(whole["sampled"], folder)
        (folder / ANSWERS).write_bytes(content[:cut])
        asked.clear()
        distill(target, SOURCE, folder, **SAMPLED)
        assert (folder / ANSWERS).read_bytes() == content
        kept = content[:cut].count(b"\n")
        assert sum(asked) == len(SOURCE) - kept // 3 * 3 if kept < len(SOURCE) else asked == []


def test_an_interrupted_run_keeps_its_batches_and_goes_on(target, whole, tmp_path, asked):
    def interrupt(progress):
        if progress.answers >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(target, SOURCE, tmp_path, progress=interrupt, **OPTIONS)
    assert len(lines(tmp_path)) == 3
    assert json.loads((tmp_path / INFO).read_text())["complete"] is False
    refused(lambda: Answers(tmp_path), "shards [0] of 1 are not complete; run `mmspec distill`")
    assert len(Answers(tmp_path, partial=True)) == 3

    seen = []
    result = distill(target, SOURCE, tmp_path, progress=seen.append, **OPTIONS)
    assert [(state.answers, state.new_tokens) for state in seen] == [(3, 0), (6, 12), (8, 20)]
    assert (result.total, result.answers, result.tokens, result.mean_tokens) == (8, 8, 32, 4)
    assert (tmp_path / ANSWERS).read_bytes() == (whole["greedy"] / ANSWERS).read_bytes()
    asked.clear()
    assert distill(target, SOURCE, tmp_path, **OPTIONS).new_tokens == 0
    assert asked == []


def test_a_source_may_grow(target, tmp_path):
    for count in (1, 4):
        distill(target, EmbeddedSource(tasks=["scenes", "documents"], count=count), tmp_path, **OPTIONS)
    assert [example.id for example in Answers(tmp_path)] == [example.id for example in SOURCE]


def test_another_batch_size_goes_on(target, whole, tmp_path):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    content = (tmp_path / ANSWERS).read_bytes()
    (tmp_path / ANSWERS).write_bytes(content[: len(content) // 2])
    distill(target, SOURCE, tmp_path, **OPTIONS | {"batch_size": 2})
    assert [example.answer_ids for example in Answers(tmp_path)] == [
        example.answer_ids for example in Answers(whole["greedy"])
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 1.0}, "temperature was 0.0, now 1.0"),
        ({"shards": 2}, "shards was 1, now 2"),
        ({"source": EmbeddedSource(tasks=["scenes", "documents"], start=1)}, "source.start was 0, now 1"),
        ({"target": 1}, "target.weights was"),
        ({"target": torch.bfloat16}, "target.dtype was 'float32', now 'bfloat16'"),
    ],
)
def test_other_settings_are_refused_by_name(change, message, target, whole, tmp_path):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".jsonl"}
    if isinstance(change.get("target"), int):
        change = {"target": Target(*small_model(seed=1))}
    elif "target" in change:
        change = {"target": Target(small_model()[0].to(change["target"]), target.processor)}
    said = refused(
        lambda: distill(**{"target": target, "source": SOURCE, "folder": tmp_path, **OPTIONS} | change), message
    )
    assert "go on with the same settings" in said
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_settings_that_have_no_effect_may_differ(target, whole, tmp_path, asked):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    distill(target, SOURCE, tmp_path, **OPTIONS | {"seed": 5, "top_k": 3})
    assert asked == []


def test_settings_are_free_until_there_is_an_answer(target, tmp_path):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(target, SOURCE, tmp_path, progress=interrupt, **OPTIONS)
    distill(target, SOURCE, tmp_path, **OPTIONS | {"max_new_tokens": 2})
    assert {len(example.answer_ids) for example in Answers(tmp_path)} == {2}


def test_answers_of_unknown_origin_are_not_continued(target, whole, tmp_path):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    (tmp_path / INFO).write_text('{"settings')
    refused(lambda: distill(target, SOURCE, tmp_path, **OPTIONS), "is damaged")
    (tmp_path / INFO).unlink()
    refused(lambda: distill(target, SOURCE, tmp_path, **OPTIONS), "is missing, so the settings of the answers beside")
    refused(lambda: Answers(tmp_path), "is missing: it belongs to the answers beside it")


def test_a_second_process_on_a_shard_is_refused(target, tmp_path):
    with (
        ShardWriter(tmp_path, 0, 1, {}, {"images": "."}),
        pytest.raises(MMSpecError, match="is being written by another process"),
    ):
        distill(target, SOURCE, tmp_path, **OPTIONS)


def test_a_full_disk_keeps_what_is_there(target, whole, tmp_path):
    content = (whole["greedy"] / ANSWERS).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) * 2 // 3, hard))
    try:
        refused(
            lambda: distill(target, SOURCE, tmp_path, **OPTIONS),
            f"{ANSWERS} cannot be written: ... ; all answers before are kept",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = (tmp_path / ANSWERS).read_bytes()
    assert len(left) == len(content) * 2 // 3 and content.startswith(left)
    distill(target, SOURCE, tmp_path, **OPTIONS)
    assert (tmp_path / ANSWERS).read_bytes() == content


def test_too_little_memory_names_the_way_out(target, tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "generate", exhausted)
    refused(lambda: distill(target, SOURCE, tmp_path, **OPTIONS), "cpu has too little memory for 3 prompts at once")


# Shards


def test_shards_together_are_the_whole(target, whole, tmp_path):
    for shard in (2, 0):
        distill(target, SOURCE, tmp_path, shard=shard, shards=3, **OPTIONS)
    refused(lambda: Answers(tmp_path), "shards [1] of 3 are missing")
    assert len(Answers(tmp_path, partial=True)) == 5
    distill(target, SOURCE, tmp_path, shard=1, shards=3, **OPTIONS)
    assert list(Answers(tmp_path)) == list(Answers(whole["greedy"]))


def test_what_is_not_one_data_set_is_refused(target, whole, tmp_path):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    for file in whole["greedy"].iterdir():
        shutil.copy(file, tmp_path / file.name.replace("00000-of-00001", "00001-of-00002"))
    refused(lambda: Answers(tmp_path), "under several settings")
    for file in whole["greedy"].iterdir():
        (tmp_path / file.name).rename(tmp_path / file.name.replace("of-00001", "of-00002"))
    refused(lambda: Answers(tmp_path), "id 'scenes/train/0' occurs in ... and again in")


def test_a_folder_without_an_answer_is_refused(target, whole, tmp_path):
    shutil.copytree(whole["greedy"], tmp_path, dirs_exist_ok=True)
    (tmp_path / ANSWERS).write_bytes(b"")
    refused(lambda: Answers(tmp_path), "has not given the first one yet")
