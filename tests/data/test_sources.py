"""Sources of prompts: the embedded generator, conversation files in three formats, folders of pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from media_files import jpeg
from PIL import Image
from refusals import refused

from mmspec import zoo
from mmspec.data import ConversationFile, EmbeddedSource, Example, MediaFolder, open_image
from mmspec.media.pictures import load_image
from mmspec.training.answers import open_source


def turn(role: str, text: str) -> dict:
    return {"from": role, "value": text}


def said(*parts: dict, role: str = "user") -> dict:
    return {"role": role, "content": list(parts)}


ROWS = [
    {"id": "a", "image": "a.jpg", "conversations": [turn("human", "<image>\nWhat is this?"), turn("gpt", "A cat.")]},
    {
        "id": "b",
        "image": "deep/ü.jpg",
        "conversations": [
            turn("human", "Describe the <image>."),
            turn("gpt", "Zwei\nZeilen, 漢."),
            turn("human", "Why?\n<image>"),
            turn("human", "And now?"),
            turn("gpt", "Because."),
        ],
    },
]
ROLES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
]
EXAMPLES = [
    Example("a", "What is this?", ("a.jpg",), answer="A cat."),
    Example("b", "Describe the.", ("deep/ü.jpg",), answer="Zwei\nZeilen, 漢."),
    Example("b#2", "Why?", ("deep/ü.jpg",)),
    Example("b#3", "And now?", ("deep/ü.jpg",), answer="Because."),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Hugging Face `datasets` keeps its copies of what the tests write elsewhere than a user's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict], ascii: bool = False) -> Path:
    """A file of rows in the format that its suffix tells."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=ascii, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, rows: list[dict], **options) -> list[Example]:
    return list(ConversationFile(write(path, rows), **options))


# Conversations


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_every_human_turn_becomes_an_example(name, tmp_path):
    source = ConversationFile(write(tmp_path / name, ROWS))
    assert list(source) == EXAMPLES
    assert len(source) == 4 and source[-1] == EXAMPLES[-1] and source.folder == tmp_path
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_a_file_that_has_changed_is_read_anew(name, tmp_path):
    assert read(tmp_path / name, ROWS) == EXAMPLES
    assert read(tmp_path / name, ROWS[:1]) == EXAMPLES[:1]


def test_rows_may_differ_in_their_keys_and_types(tmp_path):
    asked = [turn("human", "<image>\nWhat?")]
    rows = [
        {"id": "text", "conversations": [turn("human", "What?")]},
        {"id": "none", "image": None, "conversations": [turn("human", "What?")]},
        {"id": 5, "image": "a.jpg", "conversations": asked},
        {"image": ["a.jpg", "b.jpg"], "conversations": asked},
        {"id": "x", "images": ["c.jpg"], "messages": [{"role": "system", "content": "Be brief."}, *ROLES]},
    ]
    expected = [
        Example("text", "What?"),
        Example("none", "What?"),
        Example("5", "What?", ("a.jpg",)),
        Example("row-4", "What?", ("a.jpg", "b.jpg")),
        Example("x", "What is it?", ("c.jpg",), answer="A dog."),
    ]
    for name in ("data.json", "data.jsonl"):
        assert read(tmp_path / name, rows) == expected


def test_an_id_that_occurs_twice_is_made_unique(tmp_path):
    rows = [ROWS[0], ROWS[1], ROWS[1]]
    ids = [example.id for example in read(tmp_path / "data.json", rows)]
    assert ids == ["a", "b", "b#2", "b#3", "b@3", "b@3#2", "b@3#3"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_single_questions_are_read_too(name, tmp_path):
    rows = [
        {"id": "1", "prompt": "What?", "images": ["a.jpg"], "task": "t", "answer": "A cat.", "answer_ids": [3, 1]},
        {"id": "2", "prompt": "Why?", "images": [], "task": None, "answer": None, "answer_ids": None},
    ]
    assert read(tmp_path / name, rows) == [
        Example("1", "What?", ("a.jpg",), "t", "A cat.", (3, 1)),
        Example("2", "Why?"),
    ]
    assert read(tmp_path / name, [{"question": "Where?"}]) == [Example("row-1", "Where?")]


def test_count_takes_the_first_questions(tmp_path):
    assert read(tmp_path / "data.json", ROWS, count=3) == EXAMPLES[:3]
    assert read(tmp_path / "data.json", ROWS, count=99) == EXAMPLES
    refused(lambda: ConversationFile(tmp_path / "data.json", count=0), "count=0 must be a positive number")


def test_pictures_may_be_in_another_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "pictures" / "a.jpg")
    source = ConversationFile(write(tmp_path / "data.json", ROWS), images=tmp_path / "pictures")
    assert open_image(source[0].images[0], source.folder).size == (5, 4)
    refused(lambda: ConversationFile(tmp_path / "data.json", images=tmp_path / "absent"), "absent' does not exist")


def test_a_parquet_file_may_hold_the_pictures(tmp_path):
    stored = {"bytes": jpeg(6, 5), "path": "a.jpg"}
    asked = [turn("human", "<image>\nWhat?")]
    rows = [
        {"id": "a", "images": [stored, stored], "conversations": asked},
        {"id": "b", "images": [{"bytes": None, "path": "b.jpg"}], "conversations": asked},
        {"id": "c", "images": [{"bytes": b"no picture", "path": None}], "conversations": asked},
    ]
    source = ConversationFile(write(tmp_path / "data.parquet", rows))
    assert [open_image(image).size for image in source[0].images] == [(6, 5), (6, 5)]
    assert source[1].images == ("b.jpg",)
    refused(lambda: source[2], "row 3: image in the row is not in a picture format")


def test_pictures_that_datasets_wrote_are_read(tmp_path):
    import datasets

    table = {"image": [Image.new("RGB", (6, 5))], "question": ["What?"]}
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "data.parquet")
    (example,) = ConversationFile(tmp_path / "data.parquet")
    assert open_image(example.images[0]).size == (6, 5) and example.prompt == "What?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": "hello"}, "row 2: the conversation must be a list of messages, not 'hello'"),
        ({"conversations": [{"from": "human"}]}, "row 2: a message must hold text, not None"),
        ({"prompt": 3}, "row 2: prompt must be text, not 3"),
        ({"prompt": "?", "image": 3}, "row 2: a picture must be a path, not 3"),
        ({"prompt": "?", "image": [{"file": "x"}]}, "row 2: a picture must be a path, not None"),
        ({"prompt": "<image> What?"}, "row 2: the text has 1 places for pictures (<image>) but the row names 0: name"),
        ({"conversations": [turn("human", "<image>\nWhat?")]}, "1 places for pictures (<image>) but the row names 0"),
        ({"prompt": "?", "video": 3}, "row 2: a video must be a path, not 3"),
        ({"prompt": "?", "audio": [{"path": ""}]}, "row 2: a sound must be a path, not ''"),
        ({"conversations": [turn("human", "<sound>\nWhat?")]}, "the text has '<sound>'; a sound stands at <audio>"),
        ({"prompt": "<audio> or <audio>?", "audio": "a.wav"}, "2 places for sounds (<audio>) but the row names 1"),
        ({"messages": [said({"type": "image", "base64": "*"})]}, "row 2: image in a message is not base64"),
        ({"messages": [said({"type": "image", "image": "data:image/png;base64,AA=="})]}, "not in a picture format"),
        ({"messages": [{"role": "system", "content": [{"type": "image", "path": "a"}]}]}, None),
        ({"prompt": "?", "answer": ["yes"]}, "row 2: answer must be text or null"),
    ],
)
def test_a_malformed_row_is_refused_when_it_is_asked_for(row, message, tmp_path):
    source = ConversationFile(write(tmp_path / "data.jsonl", [ROWS[0], row]))
    assert source[0] == EXAMPLES[0]
    if message is None:  # there is nothing to ask
        assert len(source) == 1
        return
    refused(lambda: source[1], message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", "[{}, {]", "data.json is not JSON: Expecting property name"),
        ("data.json", "[3]", "row 1 must be an object with keys, not 3"),
        ("data.json", "{\n", "row 1 is not JSON"),
        ("data.jsonl", '{"id": 1}\nhello\n', "row 2 is not JSON"),
        ("data.jsonl", b'{"id": "\xff"}\n', "row 1 is not JSON"),
        ("data.json", "", "has no question in its 0 rows"),
        ("data.jsonl", '{"id": 1}\n', "has no question in its 1 rows: it needs one of"),
        ("data.parquet", "hello", "cannot be read as Parquet"),
        ("data.csv", "a,b", "is none of .json, .jsonl, .ndjson, .parquet"),
    ],
)
def test_a_file_that_is_no_data_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: ConversationFile(tmp_path / name), message)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_marks_and_blank_lines_do_not_matter(name, tmp_path):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf\n  \n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\n ")
    assert list(ConversationFile(path)) == EXAMPLES


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    refused(lambda: ConversationFile(tmp_path / "absent.json"), "absent.json' does not exist")
    refused(lambda: ConversationFile(tmp_path), "is a folder, not a file")


# Pictures among the texts


CONTENT = jpeg(6, 5)
ENCODED = base64.b64encode(CONTENT).decode()
TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.jpg"},
        {"type": "image", "image": "FOLDER/a.jpg"},
        {"type": "image", "image": "file://FOLDER/a.jpg"},
        {"type": "image", "image": f"data:image;base64,{ENCODED}"},
        {"type": "image", "image": ENCODED},
        {"type": "image", "image": {"path": "a.jpg"}},
        {"image": "a.jpg"},
        {"type": "image", "url": "a.jpg"},
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "base64": ENCODED},
        {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{ENCODED}"}},
        {"type": "image_url", "image_url": "a.jpg"},
        {"type": "input_image", "image_url": f"data:image/jpeg;base64,{ENCODED}"},
    ],
)
def test_a_picture_may_be_a_part_of_a_message(part, tmp_path):
    (tmp_path / "a.jpg").write_bytes(CONTENT)
    part = json.loads(json.dumps(part).replace("FOLDER", str(tmp_path)))
    (example,) = read(tmp_path / "data.jsonl", [{"messages": [said(part, TEXT)]}])
    assert example.prompt == "What?" and len(example.images) == 1
    wanted = np.asarray(load_image(CONTENT))
    assert np.array_equal(np.asarray(open_image(example.images[0], tmp_path)), wanted)


def test_parts_of_messages_in_parquet(tmp_path):
    """A table gives every part all keys, those of others with null; `datasets` keeps pictures as bytes."""
    row = {"messages": [said({"type": "image", "image": {"bytes": CONTENT, "path": None}}, TEXT)]}
    (example,) = read(tmp_path / "data.parquet", [row])
    assert example.prompt == "What?" and open_image(example.images[0]).size == (6, 5)


def place(name: str | None = None) -> dict:
    return {"type": "image", "image": name} if name else {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        # In the order of the parts, each at its place; no markers where all pictures come first.
        ({"messages": [said(place("a"), place("b"), TEXT)]}, [("What?", ("a", "b"))]),
        ({"messages": [said(text("Is "), place("a"), text(" older than "), place("b"), text("?"))]},
         [("Is <image> older than <image>?", ("a", "b"))]),
        ({"messages": [said(TEXT, place("a"))]}, [("What?<image>", ("a",))]),
        # A later question sees what was shown before, and an earlier one not what comes later.
        ({"messages": [said(place("a"), TEXT), said(text("A cat."), role="assistant"), said(text("And "), place("b"))]},
         [("What?", ("a",)), ("<image>And <image>", ("a", "b"))]),
        # The row names the files, the messages their places.
        ({"images": ["a", "b"], "messages": [said(place(), TEXT), said(place(), text("Why?"))]},
         [("What?", ("a",)), ("Why?", ("a", "b"))]),
        ({"images": ["a", "b"], "messages": [said(text("Is "), place(), text("="), place("c"), text("="), place())]},
         [("Is <image>=<image>=<image>", ("a", "c", "b"))]),
        ({"image": ["a", "b"], "conversations": [turn("human", "One: <image>\nTwo: <image>\nWhich?")]},
         [("One: <image>\nTwo: <image>\nWhich?", ("a", "b"))]),
        ({"image": ["a", "b"], "conversations": [turn("human", "<image>\nWhat?"), turn("human", "<image>\nWhy?")]},
         [("What?", ("a",)), ("Why?", ("a", "b"))]),
        ({"image": ["a", "b"], "conversations": [turn("human", "What?"), turn("human", "Why?")]},
         [("What?", ("a", "b")), ("Why?", ("a", "b"))]),
        ({"image": ["a", "b"], "conversations": [turn("human", "<image>\n<image>\nWhich?")]}, [("Which?", ("a", "b"))]),
        # A single picture is before the text, as LLaVA has it.
        ({"image": "a", "conversations": [turn("human", "What?\n<image>"), turn("human", "Why?")]},
         [("What?", ("a",)), ("Why?", ("a",))]),
        ({"image": "a", "question": "What is in <image>?"}, [("What is in <image>?", ("a",))]),
    ],
)  # fmt: skip
def test_pictures_are_read_in_order_with_their_places(row, asked, tmp_path):
    examples = read(tmp_path / "data.jsonl", [row])
    assert [(example.prompt, example.images) for example in examples] == asked


# The embedded generator


def test_embedded_tasks_take_turns():
    source = EmbeddedSource(tasks=["charts", "questions"], split="validation", count=3, start=5)
    places = [f"{task}/validation/{number}" for number in (5, 6, 7) for task in ("charts", "questions")]
    assert [example.id for example in source] == places
    _, prompt, reference = zoo.sample("questions", "validation", 6)
    assert source[3] == Example(places[3], prompt, (f"tiny:{places[3]}",), "questions", references=(reference,))


def test_more_embedded_examples_leave_the_first_where_they_are():
    small, large = EmbeddedSource(count=1), EmbeddedSource(count=2)
    assert list(large)[: len(small)] == list(small) and large.describe() == small.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["scene"]}, "task 'scene' is unknown. Did you mean 'scenes'?"),
        ({"tasks": []}, "must name at least one task"),
        ({"tasks": ["scenes", "scenes"]}, "none twice"),
        ({"split": "training"}, "split 'training' is unknown. Did you mean 'train'?"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"start": -1}, "start=-1 at least 0"),
    ],
)
def test_embedded_settings_are_checked(options, message):
    refused(lambda: EmbeddedSource(**options), message)


# Folders of pictures


def test_every_picture_is_asked_every_prompt(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/c.webp", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    source = MediaFolder(tmp_path, ["What?", "Why?"])
    assert [example.id for example in source] == [
        "a.jpg",
        "a.jpg#2",
        "b.PNG",
        "b.PNG#2",
        "deep/c.webp",
        "deep/c.webp#2",
    ]
    assert source[5] == Example("deep/c.webp#2", "Why?", ("deep/c.webp",))
    assert open_image(source[5].images[0], source.folder).size == (2, 2)
    before = source.describe()
    Image.new("RGB", (2, 2)).save(tmp_path / "aa.png")
    assert MediaFolder(tmp_path, ["What?", "Why?"]).describe() != before


def test_an_image_folder_needs_pictures_and_prompts(tmp_path):
    refused(lambda: MediaFolder(tmp_path), "holds no picture, video or sound whose ... .png")
    refused(lambda: MediaFolder(tmp_path / "absent"), "absent' does not exist")
    refused(lambda: MediaFolder(tmp_path, [" "]), "must be a list of texts, at least one")


# What a path holds


def test_a_path_tells_what_it_holds(tmp_path):
    assert list(open_source(write(tmp_path / "data.json", ROWS))) == EXAMPLES
    refused(lambda: open_source(tmp_path), "no answers in ... : run `mmspec distill --output ... ` first")
    refused(lambda: open_source(tmp_path / "absent"), "which does not exist: run `mmspec distill")
