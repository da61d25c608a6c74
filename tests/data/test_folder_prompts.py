"""Folders of pictures with a text file beside each."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from refusals import refused

from mmspec.data import Example, FolderPrompts, open_image
from mmspec.errors import MMSpecError


def picture(path: Path, text: str | bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path)
    if text is not None:
        path.with_suffix(".txt").write_bytes(text.encode() if isinstance(text, str) else text)


def test_every_picture_is_asked_its_own_question(tmp_path):
    picture(tmp_path / "b.PNG", "\ufeffWhat is\nthis? 漢\n")
    picture(tmp_path / "charts" / "deep" / "a.jpg", "Which bar?")
    picture(tmp_path / "charts" / "c.1.webp", "How many?")
    (tmp_path / "notes.txt").write_text("no picture")
    picture(tmp_path / ".hidden" / "d.png", "Why?")
    source = FolderPrompts(tmp_path)
    assert list(source) == [
        Example("b.PNG", "What is\nthis? 漢", ("b.PNG",)),
        Example("charts/c.1.webp", "How many?", ("charts/c.1.webp",), "charts"),
        Example("charts/deep/a.jpg", "Which bar?", ("charts/deep/a.jpg",), "charts"),
    ]
    assert source[-1].id == "charts/deep/a.jpg" and len(source) == 3
    assert open_image(source[1].images[0], source.folder).size == (3, 2)


def test_a_picture_without_a_question_gets_the_default_or_is_named(tmp_path):
    picture(tmp_path / "a.png", "What?")
    picture(tmp_path / "b.png")
    assert [example.prompt for example in FolderPrompts(tmp_path, "Describe it.")] == ["What?", "Describe it."]
    refused(lambda: FolderPrompts(tmp_path), "'b.png' has no question: write it to ' ... b.txt', or set prompt=")
    refused(lambda: FolderPrompts(tmp_path, " "), "prompt=' ' is empty")


@pytest.mark.parametrize(("text", "message"), [(" \n", "a.txt' is empty: write"), (b"\xff", "cannot be read: 'utf-8'")])
def test_a_question_that_cannot_be_read_is_named(text, message, tmp_path):
    picture(tmp_path / "a.png", text)
    refused(lambda: FolderPrompts(tmp_path, "Describe it."), message)


def test_a_picture_that_cannot_be_read_is_no_matter_until_it_is_opened(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", "What?")
    source = FolderPrompts(tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "b.png").unlink()
    examples = list(source)
    for example, message in zip(examples, ("not in a picture format", "does not exist"), strict=True):
        with pytest.raises(MMSpecError, match=message):
            open_image(example.images[0], source.folder)


def test_the_description_changes_with_the_questions_and_not_with_the_place(tmp_path):
    for folder in ("one", "two"):
        picture(tmp_path / folder / "a.png", "What?")
    described = FolderPrompts(tmp_path / "one").describe()
    assert FolderPrompts(tmp_path / "two").describe() == described
    picture(tmp_path / "two" / "a.png", "Why?")
    assert FolderPrompts(tmp_path / "two").describe() != described


def test_a_folder_without_pictures_is_refused(tmp_path):
    refused(lambda: FolderPrompts(tmp_path), "holds no picture, video or sound whose suffix is known")
    refused(lambda: FolderPrompts(tmp_path / "absent"), "absent' does not exist")
