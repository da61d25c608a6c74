"""Asked: a prompt as it is sent to a serving engine, before media are put in, and the media themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat import Conversation, Medium
from ..errors import MMSpecError
from ..inputs import Request
from ..inputs.processing import written_texts

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Args:
        ids: its token ids with one placeholder for every medium, as the target's own template and tokenizer write it.
        images: its pictures in order, as base64 of PNG files, in which no pixel is lost.
        conversation: what was said, with its media.
    """

    ids: list[int]
    images: list[str]
    conversation: Conversation

    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation in the layout of OpenAI's protocol, its pictures as data URLs."""
        pictures, messages = iter(self.images), []
        for message in self.conversation:
            parts: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, Medium):
                    url = f"data:image/png;base64,{next(pictures)}"
                    parts.append({"type": "image_url", "image_url": {"url": url}})
                else:
                    parts.append({"type": "text", "text": part})
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            messages.append({"role": message.role, "content": parts[0]["text"] if plain else parts})
        return messages


def asked_of(target: Target, request: Request) -> list[Asked]:
    """Return the prompts of a request, one per row.

    Raises:
        MMSpecError: for a request without its conversations, or with other media than pictures.
    """
    rows = request.conversations
    if rows is None:
        raise MMSpecError(
            "a serving engine is sent words and pictures, and this request was made from inputs=: give prompt= or "
            "messages="
        )
    for kind, media in request.media.items():
        if kind != "image" and any(media):
            raise MMSpecError(
                f"a serving engine is sent text and pictures here, and the prompt has media of kind {kind!r}"
            )
    texts, special = written_texts(target, rows, request.template_settings)
    ids = [target.tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    return [
        Asked(of_row, [png_of(image) for image in images], row)
        for of_row, images, row in zip(ids, request.images or [], rows, strict=True)
    ]


def png_of(image: Any) -> str:
    """Return a PIL picture as base64 of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def check_prompt(row: int, ours: Sequence[int], read: Sequence[int], who: str) -> None:
    """Refuse an engine that has read another prompt than the target would.

    Args:
        row: number of the prompt's row.
        ours: token ids of the prompt as the target reads it, placeholders of media included.
        read: those that the engine has read.
        who: names the engine in the error.

    Raises:
        MMSpecError: if they differ.
    """
    if list(read) != list(ours):
        raise MMSpecError(
            f"{who} has read row {row} as {len(read)} tokens, and this target reads {len(ours)}, or other ones: it "
            "serves another model, or the files of its tokenizer and processor are of another version"
        )


def check_room(who: str, room: int, max_new_tokens: int, way_out: str) -> None:
    """Refuse an engine in which no prompt leaves room for the longest answer that is asked for.

    Args:
        who: names the engine in the error.
        room: tokens that a prompt and its answer may have together.
        max_new_tokens: length of the longest answer.
        way_out: how the engine gets more room.

    Raises:
        MMSpecError: if there is none.
    """
    if max_new_tokens >= room:
        raise MMSpecError(
            f"{who} has room for {room} tokens, prompt and answer together, and max_new_tokens={max_new_tokens}: "
            f"{way_out}, or lower max_new_tokens"
        )


def cut_short(who: str, room: int | None, written: int, max_new_tokens: int, way_out: str) -> str:
    """Return the reason why an answer is none that ended for want of room, before its end and before
    `max_new_tokens`."""
    has = "" if room is None else f", having room for {room}, prompt and answer together"
    return (
        f"{who} has cut the answer after {written} of max_new_tokens={max_new_tokens} tokens{has}: {way_out}, or lower "
        "max_new_tokens"
    )
