"""Conversation: what one row asks, whichever way it was given: messages whose parts are texts and media."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..media import KINDS

MARKERS = {kind: f"<{kind}>" for kind in KINDS}
"""Say where in a question a medium stands, for models of every family: `Is <image> older than <image>?` A row has as
many of a kind as it has media of that kind, or none; without any, the media come first, in the order of `KINDS`. A row
without media of a kind may have its marker as a text like any other, but for models that have such a token of their
own, which are refused."""


@dataclass(frozen=True)
class Medium:
    """A picture, a video or a sound among the texts.

    Args:
        kind: one of `mmspec.media.KINDS`.
        value: the medium, loaded or still a reference to it; None where it is named elsewhere.
    """

    kind: str
    value: Any = None


Part = str | Medium


@dataclass(frozen=True)
class Message:
    """A turn of a conversation: texts and media that one side says.

    Args:
        role: `"system"`, `"user"`, `"assistant"`, or whatever else the chat template knows.
        parts: texts and media, in order.
        plain: whether its content was given as a text and not in parts, which some chat templates tell apart.
        others: further entries of the message, which go to the chat template as they are, such as `tool_calls`.
    """

    role: str
    parts: tuple[Part, ...]
    plain: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The parts that are texts, in order."""
        return [part for part in self.parts if isinstance(part, str)]


Conversation = list[Message]
"""Messages, of which the last one is to be answered."""


def media_of(conversation: Conversation, kind: str) -> list[Any]:
    """Return the media of one kind, in order."""
    return [
        part.value
        for message in conversation
        for part in message.parts
        if isinstance(part, Medium) and part.kind == kind
    ]


def with_media(conversation: Conversation, change: Callable[[Medium], Any]) -> Conversation:
    """Return the same conversation with other values of its media."""
    return [
        replace(
            message,
            parts=tuple(replace(p, value=change(p)) if isinstance(p, Medium) else p for p in message.parts),
        )
        for message in conversation
    ]
