"""Examples: their pictures, and their records on disk."""

from __future__ import annotations

import io
import json

import pytest
from media_files import jpeg
from PIL import Image
from refusals import refused

from mmspec import zoo
from mmspec.data import Example, from_record, open_image, to_record

ROTATED = 6  # EXIF orientation of a photograph that is stored lying on its side


# Pictures


def test_a_path_is_relative_to_the_folder_unless_absolute(tmp_path, monkeypatch):
    Image.new("L", (3, 2), 7).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for reference, folder in (("a.png", tmp_path), (str(tmp_path / "a.png"), "/elsewhere"), ("a.png", None)):
        picture = open_image(reference, folder)
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))


def test_an_embedded_picture_is_drawn():
    drawn = open_image("tiny:charts/validation/3", "/elsewhere")
    assert drawn.tobytes() == zoo.sample("charts", "validation", 3).image.tobytes()


def test_a_picture_in_memory_is_turned_upright_as_one_in_a_file_is(tmp_path):
    content = jpeg(orientation=ROTATED)
    (tmp_path / "a.jpg").write_bytes(content)
    in_memory, in_file = open_image(Image.open(io.BytesIO(content))), open_image("a.jpg", tmp_path)
    assert in_memory.size == in_file.size == (4, 8)
    assert in_memory.tobytes() == in_file.tobytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.png", "absent.png' does not exist"),
        ("tiny:scenes/train", "tiny:scenes/train' is not of the form tiny:TASK/SPLIT/INDEX"),
        ("tiny:scenes/train/x", "invalid literal"),
        ("tiny:scenes/train/-1", "must be 0 or more"),
        ("tiny:paintings/train/1", "unknown task 'paintings'"),
    ],
)
def test_a_picture_that_is_not_there_is_named(reference, message, tmp_path):
    refused(lambda: open_image(reference, tmp_path), message)


def test_a_picture_in_memory_may_be_damaged():
    content = jpeg(64, 64)
    refused(lambda: open_image(Image.open(io.BytesIO(content[: len(content) // 2]))), "image in memory cannot be read")


# Records


@pytest.mark.parametrize(
    "example",
    [
        Example("a", "What is this?"),
        Example("a#2", "Zwei\nZeilen 漢", ("a.png", "tiny:scenes/train/1"), "scenes", 'A "cat".', (5, 0, 2)),
        Example("odd name", "?", ("caf\udce9.png",), answer="", answer_ids=()),
        Example("talk", "?", follow_ups=("Why?", "And then?")),
        Example("judged", "?", references=("two", "2")),
    ],
)
def test_a_record_gives_the_same_example_back(example):
    line = json.dumps(to_record(example))
    assert from_record(json.loads(line)) == example


def test_what_may_be_left_out_of_a_record_may_be_null_and_other_keys_are_left_alone():
    bare = {"id": "a", "prompt": "?"}
    nulls = dict.fromkeys(("images", "task", "answer", "answer_ids", "follow_ups", "references"))
    assert from_record(bare) == from_record(bare | nulls | {"finish_reason": "eos"}) == Example("a", "?")


def test_a_picture_in_memory_has_no_record():
    refused(lambda: to_record(Example("a", "?", (Image.new("RGB", (1, 1)),))), "example 'a' has a picture in memory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "row 7 has no 'prompt', only 'id', 'prompt'"),
        ({"id": None}, "row 7 has no 'id'"),
        ({"prompt": ["?"]}, "row 7: prompt must be text, not ['?']"),
        ({"images": "a.png"}, "row 7: images must be a list of paths, not 'a.png'"),
        ({"images": [1]}, "row 7: images must be a list of paths, not [1]"),
        ({"answer": ["a"]}, "row 7: answer must be text or null"),
        ({"answer_ids": "12"}, "row 7: answer_ids must be a list of token ids or null, not"),
        ({"answer_ids": [1, -2]}, "answer_ids must be a list of token ids"),
        ({"answer_ids": [True]}, "answer_ids must be a list of token ids"),
        ({"answer_ids": [1.0] * 99}, "..."),
        ({"follow_ups": "Why?"}, "row 7: follow_ups must be a list of texts, not 'Why?'"),
    ],
)
def test_a_malformed_record_is_refused_by_name(change, message):
    refused(lambda: from_record({"id": "a", "prompt": "?"} | change, "row 7"), message)
