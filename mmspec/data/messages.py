"""Parse a conversation in a data file turn by turn: texts, pictures at their places in them, answers.

A message's text may say `<image>` where a picture stands. Or it comes in parts, in the layouts of transformers
(`{"type": "image", "url": ...}`, also `path`, `base64` or `image`), of Qwen (`{"type": "image", "image": ...}`), or of
OpenAI (`{"type": "image_url", "image_url": {"url": ...}}`). Pictures that the row names beside its conversation belong
to the places that have none of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..chat import MARKERS, Medium, parts_of, source_of
from ..errors import MMSpecError, shown
from ..media.pictures import held_image
from ..media.places import data_url, decoded

if TYPE_CHECKING:
    from PIL.Image import Image

    Reference = str | Image

ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")
MARKER = MARKERS["image"]
LEADING = re.compile(rf"(?:{MARKER}\s*)*")
OTHER_MARKERS = re.compile("<(video|audio|speech|sound)>")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
LONGEST_NAME = 255
"""Longest name of a file in characters. A longer text without a dot is a picture in base64."""


@dataclass(frozen=True)
class Place:
    """The place of a picture in a text.

    Args:
        picture: the picture or a reference to it; None for a picture that the row names elsewhere.
        marker: True if the place is a marker in a text.
    """

    picture: Reference | None = None
    marker: bool = False


@dataclass
class Turn:
    """A question, its texts and places of pictures in order, and the text of the answer if there is one."""

    parts: list[str | Place]
    answer: str | None = None

    @property
    def empty(self) -> list[Place]:
        """Places whose picture the row names elsewhere."""
        return [part for part in self.parts if isinstance(part, Place) and part.picture is None]


def first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the first of some entries that is present."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def role_of(message: Mapping[str, Any]) -> Any:
    """Return the role of the speaker of a message."""
    return first(message, ("from", "role"))


def turns_of(messages: Any, where: str) -> list[Turn]:
    """Return the questions of a conversation, each with the answer that follows it.

    Args:
        messages: the messages, with `from` or `role` and `value` or `content` each.
        where: name of the row in errors.

    Raises:
        MMSpecError: if this is no conversation, or something in it is not supported.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise MMSpecError(f"{where}: the conversation must be a list of messages, not {shown(messages, 60)}")
    turns: list[Turn] = []
    asked = False
    for message in messages:
        role, content = role_of(message), first(message, ("value", "content"))
        if role in ASKING:
            turns.append(Turn(_parts(content, where)))
        elif role in ANSWERING and asked:
            turns[-1].answer = _text(content, where)
        elif isinstance(content, list):
            _text(content, where)  # a picture in a system message, say, would be missing without a word
        asked = role in ASKING
    return turns


def questions_of(
    turns: Sequence[Turn], pictures: Sequence[Reference], where: str
) -> list[tuple[str, tuple[Reference, ...], str | None]]:
    """Make every turn a question of its own: its text, all pictures shown so far, and the answer.

    The text has a marker for every picture, or none where all pictures come before the text.

    Args:
        turns: the turns of one conversation.
        pictures: pictures that the row names beside the conversation.
        where: name of the row in errors.

    Raises:
        MMSpecError: if there are more places than pictures.
    """
    places = [place for turn in turns for place in turn.empty]
    # One picture is the subject of the whole conversation, wherever its marker is, as in LLaVA's own training.
    subject = len(pictures) == 1 and all(place.marker for place in places) and all(len(t.empty) < 2 for t in turns)
    if len(places) > len(pictures) and not subject:
        raise MMSpecError(
            f"{where}: the text has {len(places)} places for pictures ({MARKER}) but the row names {len(pictures)}: "
            "name the files, or leave the row out"
        )
    in_place = len(places) == len(pictures) and not subject
    waiting = iter(pictures if in_place else ())
    seen: list[Reference] = [] if in_place else list(pictures)
    asked = []
    for turn in turns:
        before, text = len(seen), ""
        for part in turn.parts:
            if isinstance(part, str):
                text += part
            elif (picture := part.picture if part.picture is not None else next(waiting, None)) is not None:
                seen.append(picture)
                text += MARKER
            else:
                text = text.removesuffix(" ")  # of a marker that stands for nothing
        text = text.strip()
        leading = found[0] if (found := LEADING.match(text)) else ""
        first_of_all = leading.count(MARKER) == len(seen) - before
        asked.append((text.removeprefix(leading) if first_of_all else MARKER * before + text, tuple(seen), turn.answer))
    return asked


def question(text: Any, where: str) -> Turn:
    """Return the turn of a question that stands alone; the markers in it are the places of its pictures."""
    parts = _parts(text, where)
    return Turn([Place(part.picture) if isinstance(part, Place) else part for part in parts])


def picture(value: Any, where: str) -> Reference:
    """Return a reference to a picture, or the picture itself where the row holds it.

    Args:
        value: a path, a URL, base64, the bytes of a file, or `{"bytes", "path"}` or `{"url"}`.
        where: name of the row in errors.

    Raises:
        MMSpecError: if it is no picture, or on a network.
    """
    value = source_of(value, "image", where)
    if isinstance(value, bytes):
        return _held(value, where)
    if not isinstance(value, str) or not value:
        raise MMSpecError(f"{where}: a picture must be a path, not {shown(value, 60)}")
    long = len(value) > LONGEST_NAME and BASE64.fullmatch(value)
    return _held(value, where) if long or data_url(value) else value


def _held(content: bytes | str, where: str) -> Image:
    name = "in the row"
    try:
        return held_image(decoded(content, name) if isinstance(content, str) else content, name)
    except MMSpecError as error:
        raise MMSpecError(f"{where}: {error}") from None


def _parts(content: Any, where: str) -> list[str | Place]:
    """Return the texts and places of a message that asks."""
    parts: list[str | Place] = []
    for part in parts_of(content, where):
        if isinstance(part, Medium):
            _expect_picture(part, where)
            parts.append(Place(None if part.value is None else picture(part.value, where)))
            continue
        if found := OTHER_MARKERS.search(part):
            raise MMSpecError(f"{where}: the text has {found[0]!r}, and only text and pictures are read")
        if parts and isinstance(parts[-1], str):
            parts.append(" ")
        head, *others = part.split(MARKER)
        parts.append(head)
        for other in others:
            parts += [Place(marker=True), other]
    return parts


def _text(content: Any, where: str) -> str:
    """Return the text of a message that has no pictures."""
    texts = []
    for part in parts_of(content, where):
        if isinstance(part, Medium):
            _not_read(part, where)
        texts.append(part)
    return " ".join(texts)


def _expect_picture(medium: Medium, where: str) -> None:
    if medium.kind != "image":
        _not_read(medium, where)


def _not_read(medium: Medium, where: str) -> NoReturn:
    raise MMSpecError(f"{where}: a message has a part of type {medium.kind!r}, which is not read here")
