"""Parse a conversation in a data file turn by turn: texts, media at their places in them, answers.

A message's text may say `<image>`, `<video>` or `<audio>` where a medium stands. Or it comes in parts, in the layouts
of transformers (`{"type": "image", "url": ...}`, also `path`, `base64` or `image`), of Qwen (`{"type": "image",
"image": ...}`), or of OpenAI (`{"type": "image_url", "image_url": {"url": ...}}`). Media that the row names beside its
conversation belong to the places that have none of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..chat import MARKERS, Medium, parts_of, source_of
from ..errors import MMSpecError, shown
from ..media import KINDS
from ..media.pictures import held_image
from ..media.places import data_url, decoded

if TYPE_CHECKING:
    from PIL.Image import Image

    Reference = str | Image

ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")
KIND_OF = {marker: kind for kind, marker in MARKERS.items()}
MARKER = re.compile("|".join(map(re.escape, KIND_OF)))
LEADING = re.compile(rf"(?:(?:{MARKER.pattern})\s*)*")
OTHER_MARKERS = re.compile("<(speech|sound)>")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
LONGEST_NAME = 255
"""Longest name of a file in characters. A longer text without a dot is a picture in base64."""
PLURALS = {"image": "pictures", "video": "videos", "audio": "sounds"}

Media = Mapping[str, Sequence[Any]]
"""Kind to media or references to them."""


@dataclass(frozen=True)
class Place:
    """The place of a medium in a text.

    Args:
        kind: `"image"`, `"video"` or `"audio"`.
        medium: the medium or a reference to it; None for one that the row names elsewhere.
        marker: True if the place is a marker in a text.
    """

    kind: str
    medium: Any = None
    marker: bool = False


@dataclass
class Turn:
    """A question, its texts and places of media in order, and the text of the answer if there is one."""

    parts: list[str | Place]
    answer: str | None = None

    def empty(self, kind: str) -> list[Place]:
        """Return the places of a kind whose medium the row names elsewhere."""
        places = (part for part in self.parts if isinstance(part, Place))
        return [place for place in places if place.kind == kind and place.medium is None]


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


def questions_of(turns: Sequence[Turn], named: Media, where: str) -> list[tuple[str, dict[str, tuple], str | None]]:
    """Make every turn a question of its own: its text, all media shown so far by kind, and the answer.

    The text has a marker for every medium, or none where all media come before the text, in the order of the kinds.

    Args:
        turns: the turns of one conversation.
        named: media that the row names beside the conversation.
        where: name of the row in errors.

    Raises:
        MMSpecError: if there are more places than media.
    """
    waiting, first_shown = {}, []
    for kind in KINDS:
        media = list(named.get(kind, ()))
        in_place = _in_place(turns, kind, media, where)
        waiting[kind] = iter(media if in_place else ())
        first_shown += [] if in_place else [(kind, medium) for medium in media]
    seen: list[tuple[str, Any]] = first_shown
    asked = []
    for turn in turns:
        before, text = "".join(MARKERS[kind] for kind, _ in seen), ""
        for part in turn.parts:
            if isinstance(part, str):
                text += part
                continue
            medium = part.medium if part.medium is not None else next(waiting[part.kind], None)
            if medium is not None:
                seen.append((part.kind, medium))
                text += MARKERS[part.kind]
            else:
                text = text.removesuffix(" ")  # of a marker that stands for nothing
        text = text.strip()
        leading = found[0] if (found := LEADING.match(text)) else ""
        order = [KINDS.index(kind) for kind, _ in seen]
        first_of_all = MARKER.findall(before + leading) == [MARKERS[kind] for kind, _ in seen] and order == sorted(
            order
        )
        text = text.removeprefix(leading) if first_of_all else before + text
        asked.append((text, {kind: tuple(one for k, one in seen if k == kind) for kind in KINDS}, turn.answer))
    return asked


def _in_place(turns: Sequence[Turn], kind: str, media: Sequence[Any], where: str) -> bool:
    """Return True if the media of a kind belong to the places in the texts, and False if they come before them."""
    places = [place for turn in turns for place in turn.empty(kind)]
    # One picture is the subject of the whole conversation, wherever its marker is, as in LLaVA's own training.
    subject = len(media) == 1 and all(place.marker for place in places) and all(len(t.empty(kind)) < 2 for t in turns)
    if len(places) > len(media) and not subject:
        raise MMSpecError(
            f"{where}: the text has {len(places)} places for {PLURALS[kind]} ({MARKERS[kind]}) but the row names "
            f"{len(media)}: name the files, or leave the row out"
        )
    return len(places) == len(media) and not subject


def question(text: Any, where: str) -> Turn:
    """Return the turn of a question that stands alone; the markers in it are the places of its media."""
    return Turn([replace(part, marker=False) if isinstance(part, Place) else part for part in _parts(text, where)])


def medium(value: Any, kind: str, where: str) -> Any:
    """Return a reference to a medium, or the medium itself where the row holds it.

    Args:
        value: a path, a URL, the bytes of a file, or `{"bytes", "path"}` or `{"url"}`; of a picture also base64, of a
            video also a list of paths of its frames, of a sound also `{"array", "sampling_rate"}`.
        kind: `image`, `video` or `audio`.
        where: name of the row in errors.

    Raises:
        MMSpecError: for anything else.
    """
    if kind == "image":
        return picture(value, where)
    value = source_of(value, kind, where)
    if kind == "video" and isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    held = isinstance(value, Mapping) and "array" in value if kind == "audio" else False
    if held or isinstance(value, bytes) or (isinstance(value, str) and value):
        return value
    raise MMSpecError(f"{where}: {'a sound' if kind == 'audio' else 'a video'} must be a path, not {shown(value, 60)}")


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
            parts.append(Place(part.kind, None if part.value is None else medium(part.value, part.kind, where)))
            continue
        if found := OTHER_MARKERS.search(part):
            raise MMSpecError(f"{where}: the text has {found[0]!r}; a sound stands at {MARKERS['audio']}")
        if parts and isinstance(parts[-1], str):
            parts.append(" ")
        texts, markers = MARKER.split(part), MARKER.findall(part)
        parts.append(texts[0])
        for marker, text in zip(markers, texts[1:], strict=True):
            parts += [Place(KIND_OF[marker], marker=True), text]
    return parts


def _text(content: Any, where: str) -> str:
    """Return the text of a message that has no media."""
    texts = []
    for part in parts_of(content, where):
        if isinstance(part, Medium):
            raise MMSpecError(f"{where}: a message has a part of type {part.kind!r}, which is not supported here")
        texts.append(part)
    return " ".join(texts)
