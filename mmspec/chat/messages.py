"""Messages in the layouts of chats: content as a text or in parts, as transformers, Qwen and OpenAI write them.

A part is `{"type": "text", "text": ...}` or a medium: `{"type": "image", "image": ...}`, also with `url`, `path` or
`base64`; the same for `video` and `audio`; `{"type": "image_url", "image_url": {"url": ...}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MMSpecError, did_you_mean, shown
from ..media import KINDS
from ..media.places import decoded
from .conversation import Conversation, Medium, Message, Part

TEXTS = ("text", "input_text", "output_text")
TYPES = {name: kind for kind in KINDS for name in (kind, f"{kind}_url", f"input_{kind}")}
"""Type of a part to the kind of its medium."""
ANYWHERE = ("url", "path", "base64", "bytes")
"""Names of a medium's source, whatever its kind."""
IDLE = ("type", "detail", "cache_control", "id")
"""Entries of a part that change nothing here."""


def read_messages(messages: Any) -> list[Conversation]:
    """Return the conversations in `messages=`.

    Args:
        messages: a list of messages, `{"role": ..., "content": ...}`, or a list of such lists, one per row.

    Raises:
        MMSpecError: for what is no conversation, is empty, has nothing to answer at its end, or has a part that is not
            known or that names no medium.
    """
    if not _is_list(messages) or not messages:
        raise MMSpecError(
            f"messages={shown(messages, 60)} is no conversation; give a list of messages, such as "
            '[{"role": "user", "content": "What?"}], or a list of such lists, one per row'
        )
    rows = messages if all(_is_list(row) for row in messages) else [messages]
    return [_conversation(row, number) for number, row in enumerate(rows)]


def _conversation(row: Sequence[Any], number: int) -> Conversation:
    if not row:
        raise MMSpecError(f"row {number} of messages has no message: give at least one of the user")
    conversation = [_message(message, f"row {number}, message {place}") for place, message in enumerate(row, start=1)]
    last = conversation[-1]
    if last.role == "assistant":
        raise MMSpecError(
            f"row {number} of messages ends with what the assistant said, so there is nothing to answer: leave that "
            "message out, or add one of the user"
        )
    if not any(text.strip() for text in last.texts) and not any(isinstance(part, Medium) for part in last.parts):
        raise MMSpecError(f"row {number}, message {len(row)} is empty: say what you want to know")
    return conversation


def _message(message: Any, where: str) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise MMSpecError(f'{where} is {shown(message, 60)}; a message is {{"role": "user", "content": ...}}')
    content = message.get("content")
    others = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    if content is None and others:  # calls of tools, say
        return Message(message["role"], (), True, others)
    parts = parts_of(content, where)
    if nameless := next((part for part in parts if isinstance(part, Medium) and part.value is None), None):
        raise MMSpecError(
            f'{where} has a part of type {nameless.kind!r} without {_an(nameless.kind)}: give it as "{nameless.kind}", '
            '"url", "path" or "base64"'
        )
    return Message(message["role"], tuple(parts), isinstance(content, str), others)


def parts_of(content: Any, where: str) -> list[Part]:
    """Return the texts and media of a message.

    Args:
        content: a text, or a list of parts.
        where: names the message in errors.

    Raises:
        MMSpecError: for anything else, and for parts that are not known.
    """
    if isinstance(content, str):
        return [content]
    if not _is_list(content):
        raise MMSpecError(f"{where}: a message must hold text, not {shown(content, 60)}")
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise MMSpecError(f'{where} has the part {shown(part, 60)}; a part is {{"type": "text", "text": ...}}')
    given = {name: value for name, value in part.items() if value is not None}
    kind = given.get("type")
    if kind is not None and not isinstance(kind, str):
        raise MMSpecError(f"{where}: a message has a part of type {shown(kind, 60)}, which is not read here")
    medium = TYPES.get(kind) if kind is not None else next((TYPES[name] for name in given if name in TYPES), None)
    if medium is None:
        if kind not in (None, *TEXTS):
            hint = did_you_mean(kind, ("text", *KINDS))
            raise MMSpecError(f"{where}: a message has a part of type {shown(kind, 60)}, which is not read here.{hint}")
        if not isinstance(given.get("text"), str):
            raise MMSpecError(f"{where}: a message must hold text, not {shown(given.get('text'), 60)}")
        return given["text"]
    sources = (medium, f"{medium}_url", f"input_{medium}", *ANYWHERE)
    if unread := [name for name in given if name not in (*sources, *IDLE) and (name, given[name]) != ("text", "")]:
        raise MMSpecError(
            f"{where}: its part of type {medium!r} says {unread[0]!r}, which is not read here: set it on the "
            "processor, and leave it out"
        )
    name = next((name for name in sources if name in given), None)
    return Medium(medium, None if name is None else source_of(given[name], medium, where, name == "base64"))


def source_of(value: Any, kind: str, where: str, base64: bool = False) -> Any:
    """Return what the loader of a kind reads, out of what a part or a row has.

    Args:
        value: a path, a URL, a medium in memory, or a mapping that has one: `{"url"}`, `{"path"}`, `{"bytes"}`, or
            `{"data"}` in base64.
        kind: the kind of the medium.
        where: names the message in errors.
        base64: whether a text is the file itself.

    Raises:
        MMSpecError: for text that is not base64.
    """
    if isinstance(value, Mapping) and "array" not in value:
        name = next((name for name in ("bytes", "data", "base64", "path", "url") if value.get(name) is not None), None)
        return None if name is None else source_of(value[name], kind, where, name in ("data", "base64"))
    if not base64 or not isinstance(value, str):
        return value
    try:
        return decoded(value, "in a message")
    except MMSpecError as error:
        raise MMSpecError(f"{where}: {error}") from None


def _an(kind: str) -> str:
    return {"image": "a picture", "video": "a video", "audio": "a sound"}[kind]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
