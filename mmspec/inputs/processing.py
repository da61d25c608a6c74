"""Conversations through a processor: written down, and their media made into what the model reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..chat import Conversation
from ..errors import MMSpecError, first_line
from ..media import KINDS
from .media import arguments_of
from .reader import Reader
from .template import ChatTemplate, inline, refusal_of, tokens_for

_WRITING = threading.Lock()
"""Tokenizers keep on themselves how the rows at hand are padded, so two threads must not use one at once."""


def apply_template(
    reader: Reader, conversations: Sequence[Conversation], settings: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Return what the processor makes of conversations: written by the chat template where there is one, else the bare
    text with the placeholders of its media in it.

    Args:
        reader: whose processor it is.
        conversations: one per row, with loaded media.
        settings: further arguments of the chat template, such as `enable_thinking`.

    Raises:
        MMSpecError: for a row which the template or the processor refuses, or of which the template leaves out a part.
    """
    with _WRITING:
        return _processed(reader, conversations, dict(settings or {}))


def reserved_texts(reader: Reader) -> set[str]:
    """Return the texts that the processor takes for media."""
    if reader.processor is reader.tokenizer:
        return set()
    ids = [token for token in reader.family.placeholders if token < len(reader.tokenizer)]
    own = [token for kind in KINDS for token in tokens_for(reader.processor, kind)]
    texts = [*own, *(reader.tokenizer.convert_ids_to_tokens(ids) if ids else ())]
    return {text.strip() for text in texts if isinstance(text, str) and text.strip()}


def written_texts(
    reader: Reader, conversations: Sequence[Conversation], settings: Mapping[str, Any] | None = None
) -> tuple[list[str], bool]:
    """Return conversations as texts, with the processor's placeholders for media, and whether the tokenizer has to add
    its special tokens to them.

    Args:
        reader, conversations, settings: see `apply_template`.

    Raises:
        MMSpecError: for a row which the template refuses, or of which it leaves out a part.
    """
    processor, tokenizer = reader.processor, reader.tokenizer
    template = ChatTemplate(processor, tokenizer, settings)
    texts = []
    for row, conversation in enumerate(conversations):
        if not template:
            texts.append(_bare(f"prompt {row}", conversation, processor, dict(settings or {})))
            continue
        try:
            texts.append(template.write(conversation))
        except Exception as error:  # templates are programs of others
            raise refusal_of(template, row, error) from error
    # Most templates begin with the start token, which the tokenizer would add once more.
    bos = tokenizer.bos_token
    return texts, not template or bos is None or not texts[0].startswith(bos)


def _processed(reader: Reader, conversations: Sequence[Conversation], settings: dict[str, Any]) -> Mapping[str, Any]:
    processor, tokenizer = reader.processor, reader.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own, media = reader.family.template_options, arguments_of(conversations)
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True, **own}
    if processor is tokenizer:
        _refuse_for_text_alone(processor, own, media)
    texts, special = written_texts(reader, conversations, settings)
    if not special or ChatTemplate(processor, tokenizer):
        options["add_special_tokens"] = special
    if processor is tokenizer:
        return processor(texts, **options)
    try:
        return processor(text=texts, **media, **options)
    except Exception as error:  # they raise what they like, such as IndexError for pictures that do not fit the text
        if isinstance(error, MemoryError):
            raise
        raise _refusal(processor, texts, conversations, options, error) from error


def _refuse_for_text_alone(tokenizer: Any, own: Mapping[str, Any], media: Mapping[str, Any]) -> None:
    """Refuse what a tokenizer does not know in place of a processor."""
    name = type(tokenizer).__name__
    if own:
        raise MMSpecError(
            f"a {name} does not know {', '.join(own)}: give Target(model, processor) the model's own processor"
        )
    if media:
        raise MMSpecError(
            f"{next(iter(media))} were given, but the target has a {name} for a processor, which reads text alone: "
            "give Target(model, processor) the model's own processor"
        )


def _bare(where: str, conversation: Conversation, processor: Any, settings: Mapping[str, Any]) -> str:
    """Return the one text of a conversation, for a processor without a chat template."""
    name = type(processor).__name__
    if len(conversation) > 1:
        raise MMSpecError(
            f"{where} is a conversation, but {name} has no chat template to write it with: set "
            "processor.chat_template, or pass the whole conversation as one text"
        )
    if settings:
        raise MMSpecError(
            f"chat_template_kwargs has {next(iter(settings))!r}, but {name} has no chat template to read it: leave it "
            "out, or set processor.chat_template"
        )
    return inline(conversation[0], processor)


def _refusal(
    processor: Any, texts: list[str], conversations: Sequence[Conversation], options: dict, error: Exception
) -> MMSpecError:
    """Return what a processor says of a batch, with the row that it is about."""
    name, where = type(processor).__name__, "the prompts"
    for row, (text, conversation) in enumerate(zip(texts, conversations, strict=True)):
        try:
            processor(text=[text], **arguments_of([conversation]), **options)
        except Exception as own:
            where, error = f"prompt {row}", own
            break
    media = " or its pictures" if arguments_of(conversations) else ""
    return MMSpecError(f"{where}: {name} does not take it{media}: {first_line(error)}")
