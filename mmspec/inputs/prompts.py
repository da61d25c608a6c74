"""Prompts: conversations from texts, from tuples of texts in turns, and from markers in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..chat import MARKERS, Conversation, Medium, Message, Part
from ..errors import MMSpecError, shown
from ..media import KINDS
from .media import ARGUMENTS

Prompt = str | tuple[str, ...]
"""A row of `prompt=`: a question, or a conversation `(question, answer, question, ...)` that ends with a question."""

NAMES = {"image": "picture", "video": "video", "audio": "sound"}


def prompts_of(given: Any, may_be_empty: bool = False) -> list[Prompt]:
    """Return the rows of `prompt=`.

    Args:
        given: what the caller passed.
        may_be_empty: whether media may be shown without a word, see `Family.prompt_optional`.

    Raises:
        MMSpecError: for what is neither a text nor a list of texts and tuples of texts, and for an empty one.
    """
    if isinstance(given, (Mapping, Tensor)):
        kind = type(given).__name__
        raise MMSpecError(f"prompt is a {kind}, which is no text; what a processor returned goes into inputs=")
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise MMSpecError(f"prompt={given!r} is no text; pass a str, or a list of them with one per row")
    prompts = [given] if isinstance(given, str) else list(given)
    if not prompts:
        raise MMSpecError("prompt is an empty list; give at least one text")
    for row, asked in enumerate(prompts):
        if isinstance(asked, Mapping):
            raise MMSpecError(f"prompt {row} is {shown(asked, 60)}, which is no text; messages go into messages=")
        _check(row, asked, may_be_empty)
    return prompts


def systems_of(given: Any, rows: int) -> list[str | None]:
    """Return the system prompt of each row.

    Args:
        given: a text for all rows, or a list with a text or None per row.
        rows: how many the batch has.

    Raises:
        MMSpecError: for anything else, and for an empty text.
    """
    if not isinstance(given, str | None) and not (isinstance(given, (list, tuple)) and len(given) == rows):
        raise MMSpecError(f"system={shown(given, 60)} must be a text, or a list with one for each of the {rows} rows")
    systems = list(given) if isinstance(given, (list, tuple)) else [given] * rows
    for text in systems:
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise MMSpecError(f"system={shown(text, 60)} must be a text that says something; leave it out for none")
    return systems


def conversation_of(
    where: str,
    asked: Prompt,
    media: Mapping[str, Sequence[Any]],
    reserved: Collection[str] = (),
    system: str | None = None,
    media_alone: bool = False,
) -> Conversation:
    """Return a prompt as a conversation, with its media where the markers are, or first.

    Args:
        where: names the row in errors.
        asked: the prompt.
        media: kind to the row's media of it.
        reserved: texts that the processor takes for media, see `reserved_texts`.
        system: what is said before it.
        media_alone: whether a question may consist of media, see `Family.prompt_optional`.

    Raises:
        MMSpecError: if markers and media differ in number, or a text has a token of the processor's.
    """
    texts = [asked] if isinstance(asked, str) else list(asked)
    placed = {kind for kind in KINDS if media.get(kind) and _marked(texts, kind) == len(media[kind])}
    for number, text in enumerate(texts):
        own = {MARKERS[kind] for kind in KINDS} if number % 2 == 0 else set()
        what = "an answer of the conversation" if number % 2 else "it"
        refuse_reserved(where, what, text, set(reserved) - own)
    for kind in KINDS:
        marker, count, marked = MARKERS[kind], len(media.get(kind, ())), _marked(texts, kind)
        if marked and kind not in placed and (count or marker in reserved):
            raise MMSpecError(
                f"{where} has {marked} {marker} but {count} {NAMES[kind]}s: give as many {NAMES[kind]}s as markers, or "
                f"leave the markers out, and the {NAMES[kind]}s come first"
            )
    waiting = {kind: iter(media.get(kind, ())) for kind in KINDS}
    first = [Medium(kind, value) for kind in KINDS if kind not in placed for value in waiting[kind]]
    conversation = [] if system is None else [Message("system", (system,))]
    for number, text in enumerate(texts):
        if number % 2:
            conversation.append(Message("assistant", (text,)))
            continue
        parts = _split(text, placed) if placed else [text]
        if not media_alone and not any(isinstance(part, str) for part in parts):
            raise MMSpecError(f"{where} has a question of pictures alone: say what you want to know")
        parts = [Medium(p.kind, next(waiting[p.kind])) if isinstance(p, Medium) else p for p in parts]
        conversation.append(Message("user", (*first, *parts)))
        first = []
    return conversation


def refuse_reserved(where: str, what: str, text: str, reserved: Collection[str]) -> None:
    """Refuse a text that has a token which the model takes for a medium."""
    if found := next((token for token in sorted(reserved) if token in text), None):
        raise MMSpecError(
            f"{where}: {what} has {found!r}, which this model takes for a picture or a video: leave it out; in a "
            f"question {MARKERS['image']} says where a picture of {ARGUMENTS['image']}= stands"
        )


def _check(row: int, asked: Any, may_be_empty: bool) -> None:
    """Refuse what is neither a question nor a conversation."""
    if not isinstance(asked, (str, tuple)):
        raise MMSpecError(
            f"prompt {row} is {asked!r}, which is no text; pass a list of str, one per row, or of tuples of str for "
            "conversations"
        )
    if isinstance(asked, tuple) and len(asked) % 2 == 0:
        raise MMSpecError(
            f"prompt {row} is a conversation of {len(asked)} texts; it must be of odd length: a question, or "
            "(question, answer, question, ...) with a question at the end"
        )
    for turn, text in enumerate([asked] if isinstance(asked, str) else asked):
        where = f"prompt {row}" if isinstance(asked, str) else f"prompt {row}, text {turn + 1} of {len(asked)}"
        if not isinstance(text, str):
            raise MMSpecError(f"{where} is {text!r}, which is no text; a conversation is a tuple of str")
        if (
            not text.strip() and turn % 2 == 0 and not may_be_empty
        ):  # a model may have had nothing to say, a user must ask something
            raise MMSpecError(f"{where} is empty: {text!r}; say what you want to know")


def _marked(texts: Sequence[str], kind: str) -> int:
    """Return the number of markers of a kind in the questions of a conversation."""
    return sum(text.count(MARKERS[kind]) for text in texts[::2])


def _split(text: str, kinds: Collection[str]) -> list[Part]:
    """Return a text cut at its markers; spaces and line breaks around media at its ends are left out."""
    pieces: list[Part] = [text.strip()]
    for kind in kinds:
        cut: list[Part] = []
        for piece in pieces:
            if not isinstance(piece, str):
                cut.append(piece)
                continue
            head, *others = piece.split(MARKERS[kind])
            cut.append(head)
            for other in others:
                cut += [Medium(kind), other]
        pieces = cut
    said = [number for number, piece in enumerate(pieces) if isinstance(piece, str) and piece.strip()]
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            piece = piece.lstrip() if not said or number <= said[0] else piece
            piece = piece.rstrip() if not said or number >= said[-1] else piece
        if not isinstance(piece, str) or piece:
            parts.append(piece)
    return parts
