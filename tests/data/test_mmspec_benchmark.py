"""The MMSpec benchmark's data: a folder in its layout, written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from refusals import refused

from mmspec.data import Example, MMSpecBenchmark, open_image

VQA, TALK, CHARTS = "general vqa", "multi-turn conversation", "chart understanding"
ROWS = [
    {"id": "mmspec_301", "image": "mmspec_301.png", "turns": ["How many?"], "category": "chart", "topic": CHARTS},
    {"id": "mmspec_001", "image": "mmspec_001.png", "turns": ["Black? <image 1>"], "category": "default", "topic": VQA},
    {"id": "mmspec_002", "image": "mmspec_002.png", "turns": ["Open?"], "category": "default", "topic": VQA},
    {"id": "mmspec_501", "image": "deep/a.png", "turns": ["What?", "Why?", "How?"], "category": "Art", "topic": TALK},
]


def write(folder: Path, rows: list, split: str = "test") -> Path:
    """The data's folder, `dataset/MMSpec` of the benchmark's repository."""
    (folder / split / "images" / "deep").mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / split / "mmspec.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def save(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), colour).save(path)


def test_items_come_in_the_order_of_the_file(tmp_path):
    source = MMSpecBenchmark(write(tmp_path, ROWS))
    assert list(source) == [
        Example("mmspec_301", "How many?", ("images/mmspec_301.png",), CHARTS),
        Example("mmspec_001", "Black? <image 1>", ("images/mmspec_001.png",), VQA),
        Example("mmspec_002", "Open?", ("images/mmspec_002.png",), VQA),
        Example("mmspec_501", "What?", ("images/deep/a.png",), TALK, follow_ups=("Why?", "How?")),
    ]
    assert len(source) == 4 and source[-1].id == "mmspec_501"
    with pytest.raises(IndexError):
        source[4]


def test_pictures_are_found_and_a_missing_one_is_no_matter_until_it_is_opened(tmp_path):
    names = {"a.png": "test/images/a.png", "b.png": "test/b.png", "images/c.png": "test/images/c.png"}
    names["test/images/d.png"] = "test/images/d.png"
    for path in names.values():
        save(tmp_path / path)
    names[str(tmp_path / "e.png")] = "e.png"
    save(tmp_path / "e.png")
    source = MMSpecBenchmark(write(tmp_path, [{"image": name, "turns": ["?"]} for name in [*names, "absent.png"]]))
    for index in range(len(names)):
        assert open_image(source[index].images[0], source.folder).size == (3, 2)
    assert source[0].id == "row-1" and source[0].task == ""
    refused(lambda: open_image(source[len(names)].images[0], source.folder), "test/images/absent.png' does not exist")
    (tmp_path / "test" / "images" / "absent.png").write_text("no picture")
    refused(lambda: open_image(source[len(names)].images[0], source.folder), "not in a picture format")


def test_a_row_may_have_several_pictures_or_none(tmp_path):
    rows = [
        {"id": 1, "image": ["a.png", "b.png"], "turns": "Which?", "category": "two"},
        {"id": 2, "image": None, "turns": ["What?"], "topic": "none"},
        {"id": 3, "images": ["a.png"], "turns": ["What?"], "topic": "one"},
    ]
    assert list(MMSpecBenchmark(write(tmp_path, rows))) == [
        Example("1", "Which?", ("images/a.png", "images/b.png"), "two"),
        Example("2", "What?", (), "none"),
        Example("3", "What?", ("images/a.png",), "one"),
    ]


def test_subtasks_and_count_choose_items(tmp_path):
    folder = write(tmp_path, ROWS)

    def ids(**options) -> list[str]:
        return [example.id[-3:] for example in MMSpecBenchmark(folder, **options)]

    assert ids(count=1) == ["301", "001", "501"]
    assert ids(subtasks=[VQA]) == ["001", "002"]
    assert ids(subtasks=["Multi-turn_conversation", "general_vqa"], count=1) == ["001", "501"]
    refused(lambda: ids(subtasks=["general_vga"]), "Did you mean 'general vqa'? Available: chart")
    refused(lambda: ids(subtasks=[]), "subtasks=[] must be a list of names")
    refused(lambda: ids(subtasks=VQA), "subtasks='general vqa' must be a list")
    refused(lambda: ids(count=0), "count=0 must be a positive number")


def test_the_repository_the_data_and_the_split_are_all_good_folders(tmp_path):
    data = write(tmp_path / "dataset" / "MMSpec", ROWS)
    write(data, ROWS[:1], "testmini")
    for folder in (tmp_path, data, data / "test"):
        assert len(MMSpecBenchmark(folder)) == 4
    assert len(MMSpecBenchmark(tmp_path, "testmini")) == len(MMSpecBenchmark(data / "testmini", "testmini")) == 1
    refused(lambda: MMSpecBenchmark(tmp_path, "testmin"), "split 'testmin' is unknown in ... Did you mean 'testmini'")
    refused(lambda: MMSpecBenchmark(data / "test", "testmini"), "split 'testmini' is unknown in ... Available: test")


def test_a_folder_without_the_data_is_refused(tmp_path):
    refused(lambda: MMSpecBenchmark(tmp_path / "absent"), "absent' does not exist")
    refused(lambda: MMSpecBenchmark(tmp_path), "holds no test/mmspec.jsonl: give the folder dataset/MMSpec")


def test_the_description_changes_with_what_is_chosen_and_not_with_the_place(tmp_path):
    first, second = write(tmp_path / "a", ROWS), write(tmp_path / "b", ROWS)
    described = MMSpecBenchmark(first).describe()
    assert described == MMSpecBenchmark(second).describe() == json.loads(json.dumps(described))
    assert MMSpecBenchmark(first, subtasks=[VQA]).describe() != described
    assert MMSpecBenchmark(first, count=1).describe() != described
    assert MMSpecBenchmark(write(second, ROWS[::-1])).describe() != described


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": None}, "row 2: turns must be a list of questions, not None"),
        ({"turns": []}, "row 2: turns must be a list of questions, not []"),
        ({"turns": ["What?", " "]}, "row 2: turns must be a list of questions, not ['What?', ' ']"),
        ({"image": 3}, "row 2: images must be a list of paths, not 3"),
    ],
)
def test_a_malformed_row_is_refused_when_it_is_asked_for(change, message, tmp_path):
    source = MMSpecBenchmark(write(tmp_path, [ROWS[0], ROWS[1] | change]))
    assert source[0].id == "mmspec_301"
    refused(lambda: source[1], message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[1], ROWS[0]], "row 3: id 'mmspec_301' occurs in row 1 too; delete one of them"),
        ([ROWS[0], "{"], "row 2 is not JSON"),
        ([{**ROWS[0], "topic": 3}], "row 1: topic must be text, not 3"),
        ([], "has no item"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(rows, message, tmp_path):
    refused(lambda: MMSpecBenchmark(write(tmp_path, rows)), message)
