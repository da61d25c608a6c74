"""Rows and folders with videos and sounds: where they stand in the text, and the target's answers about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_processors
import torch
from media_files import pictures, write_video, write_wave
from PIL import Image
from refusals import refused
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.data import ConversationFile, Example, FolderPrompts, MediaFolder, from_record, open_media, to_record
from mmspec.data.opening import batched
from mmspec.evaluation.questions import QuestionGroup, Questions
from mmspec.inputs import prepare
from mmspec.models.states import LAST
from mmspec.training.answers import open_source
from mmspec.training.data import Loader
from mmspec.training.distill import distill
from mmspec.training.feature_cache import CachedTeacher
from mmspec.training.teacher import Teacher


def human(text: str) -> dict:
    return {"from": "human", "value": text}


@pytest.mark.parametrize(
    ("row", "prompt", "media"),
    [
        ({"video": "a.mp4", "prompt": "What?"}, "What?", {"videos": ("a.mp4",)}),
        ({"videos": ["a.mp4", "b.mp4"], "question": "<video> or <video>?"}, "<video> or <video>?", None),
        ({"videos": [["1.png", "2.png"]], "prompt": "<video>\nWhat?"}, "What?", {"videos": (("1.png", "2.png"),)}),
        ({"audio": {"path": "a.wav", "bytes": None}, "prompt": "Who?"}, "Who?", {"audio": ("a.wav",)}),
        ({"sound": {"bytes": b"RIFF", "path": "a.wav"}, "prompt": "Who?"}, "Who?", {"audio": (b"RIFF",)}),
        (
            {"image": "a.png", "video": "a.mp4", "audio": "a.wav", "prompt": "<image><video><audio>What?"},
            "What?",
            {"images": ("a.png",), "videos": ("a.mp4",), "audio": ("a.wav",)},
        ),
        (
            {"image": "a.png", "video": "a.mp4", "prompt": "<video><image>What?"},
            "<video><image>What?",
            {"images": ("a.png",), "videos": ("a.mp4",)},
        ),
    ],
)
def test_media_of_a_question(row, prompt, media, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    source = ConversationFile.__new__(ConversationFile)
    source.path, source.rows, source._row, source._turn, source._repeated = tmp_path, [row], [0], [0], set()
    example = source[0]
    assert example.prompt == prompt
    found = {name: getattr(example, name) for name in ("images", "videos", "audio") if getattr(example, name)}
    assert found == (media or {"videos": ("a.mp4", "b.mp4")})


def test_every_turn_sees_what_was_shown_so_far(tmp_path):
    parts = [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "And this?"}]
    row = {"id": "a", "video": "a.mp4", "image": "a.png"}
    row["messages"] = [
        {"role": "user", "content": "<video>What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": parts},
        {"role": "user", "content": "<image> too?"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert list(ConversationFile(tmp_path / "a.jsonl")) == [
        # One of a kind is the subject of the whole conversation.
        Example("a", "What is it?", ("a.png",), answer="A cat.", videos=("a.mp4",)),
        Example("a#2", "And this?", ("a.png",), videos=("a.mp4", "b.mp4")),
        Example("a#3", "too?", ("a.png",), videos=("a.mp4", "b.mp4")),
    ]
    row["messages"][2]["content"] = parts[::-1]  # behind its text, so that all have markers
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    prompts = [example.prompt for example in ConversationFile(tmp_path / "a.jsonl")]
    assert prompts == ["What is it?", "<image><video>And this?<video>", "too?"]


def test_records_keep_videos_and_sounds():
    example = Example("a", "What?", videos=("a.mp4", ("1.png", "2.png")), audio=("a.wav",))
    assert from_record(json.loads(json.dumps(to_record(example)))) == example
    assert "videos" not in to_record(Example("a", "What?"))
    for field in ({"videos": (np.zeros((1, 2, 2, 3)),)}, {"audio": (b"RIFF",)}):
        with pytest.raises(MMSpecError, match="in memory: save it to a file"):
            to_record(Example("a", "What?", **field))
    refused(lambda: from_record({"id": "a", "prompt": "?", "videos": [3]}), "videos must be a list of paths, or of")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, a picture and a sound, each with its question."""
    here = tmp_path_factory.mktemp("media")
    (here / "clips").mkdir()
    write_video(here / "clips" / "a.mp4", pictures(6, 32, 16))
    write_video(here / "clips" / "b.mp4", pictures(4, 32, 16)[::-1])
    write_wave(here / "c.wav", np.sin(np.arange(4000) / 9) / 2)
    Image.new("RGB", (8, 8)).save(here / "d.png")
    for name in ("clips/a", "clips/b", "c", "d"):
        (here / f"{name}.txt").write_text(f"what is {name[-1]}?")
    return here


def test_a_folder_of_media(folder):
    a, b = "clips/a.mp4", "clips/b.mp4"
    assert list(FolderPrompts(folder)) == [
        Example("c.wav", "what is c?", audio=("c.wav",)),
        Example(a, "what is a?", task="clips", videos=(a,)),
        Example(b, "what is b?", task="clips", videos=(b,)),
        Example("d.png", "what is d?", ("d.png",)),
    ]
    assert [e.videos for e in MediaFolder(folder / "clips", ["What?"])] == [("a.mp4",), ("b.mp4",)]
    opened = [open_media(example, folder) for example in FolderPrompts(folder)]
    assert opened[1] == {"videos": [folder / a]} and opened[3]["images"][0].size == (8, 8)
    rows = batched(opened)
    assert rows["videos"] == [[], [folder / a], [folder / b], []] and rows["audio"][0] == [folder / "c.wav"]
    frames = Example("f", "?", videos=(("1.png", "2.png"), "https://host/a.mp4"))
    assert open_media(frames, "x") == {"videos": [[Path("x/1.png"), Path("x/2.png")], "https://host/a.mp4"]}


@pytest.fixture(scope="module")
def target():
    return Target(target_of("qwen2_5_vl", "sdpa").model, tiny_processors.Patches())


def test_the_benchmark_asks_about_videos_and_says_what_it_could_not(folder, target):
    source = FolderPrompts(folder)
    questions = Questions(target, source, batches=(4,))
    asked = {}
    for group in questions.groups:
        request, examples = questions.request(group, 0)
        if examples:
            out = mmspec.generate(target, None, inputs=request, max_new_tokens=4)
            asked |= {example.id: ids for example, ids in zip(examples, out.token_ids, strict=True)}
    assert asked.keys() == {"clips/a.mp4", "clips/b.mp4"}
    for example in source:
        if example.id in asked:
            alone = mmspec.generate(
                target, None, prompt=example.prompt, **open_media(example, folder), max_new_tokens=4
            )
            assert alone.token_ids == [asked[example.id]]
    assert "takes none" in questions.skipped["c.wav"] and set(questions.skipped) == {"c.wav", "d.png"}
    assert isinstance(questions.groups[0], QuestionGroup)


def test_answers_about_videos_are_distilled_and_learnt_from(folder, target, tmp_path):
    source = FolderPrompts(folder / "clips", None)
    progress = distill(target, source, tmp_path / "answers", max_new_tokens=6, batch_size=2)
    assert (progress.answers, progress.skipped) == (2, 0)
    answers = open_source(tmp_path / "answers")
    assert [example.videos for example in answers] == [(str(folder / "clips" / f"{n}.mp4"),) for n in "ab"]
    written = [
        mmspec.generate(target, None, prompt=e.prompt, **open_media(e), max_new_tokens=6).token_ids[0] for e in answers
    ]
    assert [list(example.answer_ids) for example in answers] == written
    # What drafters learn from, from the target and from the cache of its states.
    loader, teacher = Loader(target, answers), Teacher(target, [LAST])
    lesson = teacher.lesson_of(loader.prepare([0, 1]))
    cached = CachedTeacher(teacher, loader, tmp_path / "cache")
    cached.fill()
    again = cached.lesson_of(loader.prepare([0, 1]))
    assert lesson.vision.kinds == again.vision.kinds == ["video"] * 2
    for name in ("embeds", "features"):
        for one, other in zip(getattr(lesson.vision, name), getattr(again.vision, name), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    grids = target.family.grids(again.request.inputs, again.vision)
    assert grids == [(3, 2, 4), (2, 2, 4)]


def test_a_sound_that_a_row_holds_is_saved_with_the_answers(folder, tmp_path):
    listener = Target(target_of("qwen2_audio", "sdpa").model, tiny_processors.qwen2_audio())
    content = (folder / "c.wav").read_bytes()
    distill(listener, [Example("a", "what is c?", audio=(content,))], tmp_path, max_new_tokens=4)
    (answer,) = open_source(tmp_path)
    assert Path(answer.audio[0]).read_bytes() == content and Path(answer.audio[0]).parent.name == "pictures"
    assert prepare(listener, answer.prompt, audio=answer.audio).max_length > len(answer.prompt) + 10
