"""What the rows of a batch ask, questions or conversations, and how a processor writes it down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import MMSpecError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from .target import Target

Prompt = str | tuple[str, ...]
"""What one row asks: a question, or a conversation `(question, answer, question, ...)` that ends with a question."""

MARKER = "<image>"
"""Says where in a question a picture stands, for models of every family: `Is <image> older than <image>?` A row has as
many as it has pictures, or none; without any, the pictures come first. A row without pictures may have it as a text
like any other, but for models that have such a token of their own, which are refused."""

Part = str | None
"""A piece of a text, or None for a picture."""


def check_prompt(row: int, asked: Any) -> None:
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
        if not text.strip() and turn % 2 == 0:  # a model may have had nothing to say, a user must ask something
            raise MMSpecError(f"{where} is empty: {text!r}; say what you want to know")


def apply_template(target: Target, prompts: list[Prompt], rows: list[list[Image]]) -> Mapping[str, Any]:
    """Chat template where there is one, else the bare text with the pictures' placeholders in it.

    Raises:
        MMSpecError: for a row whose markers and pictures differ in number, or which the template or the processor
            refuses.
    """
    with _WRITING:
        return _written(target, prompts, rows)


_WRITING = threading.Lock()
"""Tokenizers keep on themselves how the rows at hand are padded, so two threads must not use one at once."""


def _written(target: Target, prompts: list[Prompt], rows: list[list[Image]]) -> Mapping[str, Any]:
    processor, tokenizer = target.processor, target.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
    multimodal = processor is not tokenizer
    if any(rows) and not multimodal:
        raise MMSpecError(
            f"images were given, but the target has a {type(processor).__name__} for a processor, which reads text "
            "alone: give Target(model, processor) the model's own processor"
        )
    reserved = _reserved(target) if multimodal else set()
    turns = [
        _placed(f"prompt {row}", asked, len(images), reserved)
        for row, (asked, images) in enumerate(zip(prompts, rows, strict=True))
    ]
    write = _writer(processor, tokenizer)
    if write is None:
        if talks := [row for row, parts in enumerate(turns) if len(parts) > 1]:
            raise MMSpecError(
                f"prompt {talks[0]} is a conversation, but {type(processor).__name__} has no chat template to write it "
                "with: set processor.chat_template, or pass the whole conversation as one text"
            )
        texts = [_inline(parts, processor) for (parts,) in turns]
    else:
        texts = []
        for row, parts in enumerate(turns):
            try:
                texts.append(write(parts))
            except Exception as error:  # templates are programs of others
                raise MMSpecError(
                    f"prompt {row}: the chat template of {type(processor).__name__} does not take it: "
                    f"{first_line(error)}"
                ) from error
        # Most templates begin with the start token, which the tokenizer would add once more.
        bos = tokenizer.bos_token
        options["add_special_tokens"] = bos is None or not texts[0].startswith(bos)
    if not multimodal:
        return processor(texts, **options)
    try:
        return processor(text=texts, images=rows if any(rows) else None, **options)
    except Exception as error:  # they raise what they like, such as IndexError for pictures that do not fit the text
        if isinstance(error, MemoryError):
            raise
        raise _refusal(processor, texts, rows, options, error) from error


def end_of_answer(target: Target) -> int | None:
    """The token with which the model ends what it says; None if it has none.

    That is one at which its own `generate` stops: of several the one that its chat template writes behind an answer,
    else the tokenizer's own end token, else the first.
    """
    ends, tokenizer = target.eos_token_ids, target.tokenizer
    if len(ends) > 1 and (write := _writer(target.processor, tokenizer)) is not None:
        said = "An answer"
        try:
            rest = write([["A question"], [said]]).rpartition(said)[2]
        except Exception:  # templates are programs of others
            rest = ""
        texts = {end: tokenizer.convert_ids_to_tokens(end) for end in ends if end < len(tokenizer)}
        places = {rest.index(text): end for end, text in texts.items() if text and text in rest}
        if places:
            return places[min(places)]
    if not ends or tokenizer.eos_token_id in ends:
        return tokenizer.eos_token_id if ends else None
    return ends[0]


def _reserved(target: Target) -> set[str]:
    """The texts that the processor takes for pictures and videos."""
    ids = [token for token in target.family.placeholders if token < len(target.tokenizer)]
    own = (getattr(target.processor, name, None) for name in ("image_token", "boi_token", "video_token"))
    texts = [*own, *(target.tokenizer.convert_ids_to_tokens(ids) if ids else ())]
    return {text.strip() for text in texts if isinstance(text, str) and text.strip()}


def _placed(where: str, asked: Prompt, images: int, reserved: set[str]) -> list[list[Part]]:
    """The parts of every text of a row, with its pictures where the markers are, or first."""
    texts = [asked] if isinstance(asked, str) else list(asked)
    for number, text in enumerate(texts):
        forbidden = reserved if number % 2 else reserved - {MARKER}
        if found := next((token for token in sorted(forbidden) if token in text), None):
            what = "an answer of the conversation" if number % 2 else "it"
            raise MMSpecError(
                f"{where}: {what} has {found!r}, which this model takes for a picture or a video: leave it out; in a "
                f"question {MARKER} says where a picture of images= stands"
            )
    marked = sum(text.count(MARKER) for text in texts[::2])
    if images and marked == images:
        turns = [_split(text) if number % 2 == 0 else [text] for number, text in enumerate(texts)]
        if not all(any(parts) for parts in turns[::2]):
            raise MMSpecError(f"{where} has a question of pictures alone: say what you want to know")
        return turns
    if marked and (images or MARKER in reserved):
        raise MMSpecError(
            f"{where} has {marked} {MARKER} but {images} pictures: give as many pictures as markers, or leave the "
            "markers out, and the pictures come first"
        )
    first, *others = texts
    return [[*[None] * images, first], *([text] for text in others)]


def _split(text: str) -> list[Part]:
    """A text cut at its markers; spaces and line breaks around pictures at its ends are left out."""
    pieces = text.strip().split(MARKER)
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if not any(part is not None for part in parts):
            piece = piece.lstrip()
        if not any(rest.strip() for rest in pieces[number + 1 :]):
            piece = piece.rstrip()
        parts += ([None] if number else []) + ([piece] if piece else [])
    return parts


def _writer(processor, tokenizer) -> Callable[[list[list[Part]]], str] | None:
    """What writes a conversation down; None where neither the processor nor its tokenizer has a chat template."""

    def applied(by, turns: Sequence[Any]) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(turns)]
        return by.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def in_parts(turns: list[list[Part]]) -> list[list[dict[str, str]]]:
        return [
            [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts] for parts in turns
        ]

    def by_tokenizer(turns: list[list[Part]]) -> str:
        # Such a template may know parts of a message, or texts alone.
        image, pictures = getattr(processor, "image_token", None) or "", sum(parts.count(None) for parts in turns)
        plain = [_inline(parts, processor) for parts in turns]
        failure: Exception = ValueError("what it writes lacks a part of the text or of the pictures")
        for content in (in_parts(turns), plain) if pictures else (plain, in_parts(turns)):
            try:
                text = applied(tokenizer, content)
            except Exception as error:
                failure = error
                continue
            said = all(part.strip() in text for parts in turns for part in parts if part)
            if said and (not image or text.count(image) == pictures):
                return text
        raise failure

    if getattr(processor, "chat_template", None) is not None:
        if processor is tokenizer:
            return lambda turns: applied(processor, [_inline(parts, processor) for parts in turns])
        return lambda turns: applied(processor, in_parts(turns))
    if processor is not tokenizer and getattr(tokenizer, "chat_template", None) is not None:
        return by_tokenizer
    return None


def _inline(parts: list[Part], processor) -> str:
    """A text with the processor's own token for every picture."""
    image = getattr(processor, "image_token", None) or ""
    return "".join(image if part is None else part for part in parts)


def _refusal(processor, texts: list[str], rows: list[list[Image]], options: dict, error: Exception) -> MMSpecError:
    """What a processor says of a batch, with the row that it is about."""
    name, where = type(processor).__name__, "the prompts"
    for row, (text, images) in enumerate(zip(texts, rows, strict=True)):
        try:
            processor(text=[text], images=[images] if images else None, **options)
        except Exception as own:
            where, error = f"prompt {row}", own
            break
    pictures = "" if not any(rows) else " or its pictures"
    return MMSpecError(f"{where}: {name} does not take it{pictures}: {first_line(error)}")
