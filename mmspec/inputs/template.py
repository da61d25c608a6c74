"""Conversations written down for a model: by its chat template where it has one, and then by its processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..chat import Conversation, Medium, Message, media_of
from ..errors import MMSpecError, did_you_mean, first_line
from ..media import KINDS
from .media import arguments_of
from .prompts import refuse_reserved
from .reader import Reader

Write = Callable[[Conversation], str]

_WRITING = threading.Lock()
"""Tokenizers keep on themselves how the rows at hand are padded, so two threads must not use one at once."""

THOUGHT = "</think>"
"""Ends what a model thought before it answered, which templates leave out of earlier turns."""


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
    own = [token for kind in KINDS for token in _tokens(reader.processor, kind)]
    texts = [*own, *(reader.tokenizer.convert_ids_to_tokens(ids) if ids else ())]
    return {text.strip() for text in texts if isinstance(text, str) and text.strip()}


def end_of_answer(reader: Reader) -> int | None:
    """Return the token with which the model ends what it says; None if it has none.

    That is one at which its own `generate` stops: of several the one that its chat template writes behind an answer,
    else the tokenizer's own end token, else the first.
    """
    ends, tokenizer = reader.eos_token_ids, reader.tokenizer
    if len(ends) > 1 and (write := writer_of(reader.processor, tokenizer, whole=False)) is not None:
        said = "An answer"
        try:
            rest = write([Message("user", ("A question",)), Message("assistant", (said,))]).rpartition(said)[2]
        except Exception:  # templates are programs of others
            rest = ""
        texts = {end: tokenizer.convert_ids_to_tokens(end) for end in ends if end < len(tokenizer)}
        places = {rest.index(text): end for end, text in texts.items() if text and text in rest}
        if places:
            return places[min(places)]
    if not ends or tokenizer.eos_token_id in ends:
        return tokenizer.eos_token_id if ends else None
    return ends[0]


def writer_of(processor, tokenizer, settings: Mapping[str, Any] | None = None, whole: bool = True) -> Write | None:
    """Return what writes a conversation down; None where neither the processor nor its tokenizer has a chat template.

    Args:
        processor, tokenizer: those of the model.
        settings: further arguments of the template.
        whole: whether it is an error if the template leaves out a part.
    """
    by = template_holder(processor, tokenizer)
    if by is None:
        return None

    def write(conversation: Conversation) -> str:
        failure: Exception | None = None
        for content in _contents(conversation, processor, in_parts=by is not tokenizer):
            messages = [
                {"role": message.role, "content": said, **message.others}
                for message, said in zip(conversation, content, strict=True)
            ]
            try:
                text = by.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **(settings or {}))
            except Exception as error:
                failure = failure or error
                continue
            lost = _left_out(text, conversation, processor, sure=by is tokenizer) if whole else None
            if lost is None:
                return text
            failure = failure or ValueError(f"what it writes leaves out {lost}")
        raise failure or ValueError("it has nothing to write")

    return write


def template_holder(processor, tokenizer) -> Any:
    """Return which of the two has a chat template; None for neither."""
    return next((one for one in (processor, tokenizer) if getattr(one, "chat_template", None) is not None), None)


def _processed(reader: Reader, conversations: Sequence[Conversation], settings: dict[str, Any]) -> Mapping[str, Any]:
    processor, tokenizer = reader.processor, reader.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = reader.family.template_options
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True, **own}
    media = arguments_of(conversations)
    if own and processor is tokenizer:
        raise MMSpecError(
            f"a {type(processor).__name__} does not know {', '.join(own)}: give Target(model, processor) the model's "
            "own processor"
        )
    if media and processor is tokenizer:
        raise MMSpecError(
            f"{next(iter(media))} were given, but the target has a {type(processor).__name__} for a processor, which "
            "reads text alone: give Target(model, processor) the model's own processor"
        )
    write = writer_of(processor, tokenizer, settings)
    if write is not None:
        _refuse_unknown(processor, tokenizer, settings)
    if write is None:
        texts = [_bare(f"prompt {row}", said, processor, settings) for row, said in enumerate(conversations)]
    else:
        texts = []
        for row, conversation in enumerate(conversations):
            try:
                texts.append(write(conversation))
            except Exception as error:  # templates are programs of others
                raise MMSpecError(
                    f"prompt {row}: the chat template of {type(processor).__name__} does not take it: "
                    f"{first_line(error)}"
                ) from error
        # Most templates begin with the start token, which the tokenizer would add once more.
        bos = tokenizer.bos_token
        options["add_special_tokens"] = bos is None or not texts[0].startswith(bos)
    if processor is tokenizer:
        return processor(texts, **options)
    try:
        return processor(text=texts, **media, **options)
    except Exception as error:  # they raise what they like, such as IndexError for pictures that do not fit the text
        if isinstance(error, MemoryError):
            raise
        raise _refusal(processor, texts, conversations, options, error) from error


def _refuse_unknown(processor, tokenizer, settings: Mapping[str, Any]) -> None:
    """Refuse arguments that a chat template does not look at, as far as it can be told."""
    from jinja2 import Environment, TemplateError, meta

    by = template_holder(processor, tokenizer)
    template: Any = settings.get("chat_template", by.chat_template)
    template = template.get("default") if isinstance(template, Mapping) else template
    try:
        known = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    except (TemplateError, TypeError, AttributeError):  # it has tags of its own, or is no text
        return
    for name in settings:
        if name not in known and name != "chat_template":
            raise MMSpecError(
                f"chat_template_kwargs: the chat template of {type(by).__name__} has no variable {name!r}."
                f"{did_you_mean(name, known - {'messages', 'add_generation_prompt'})}"
            )


def _bare(where: str, conversation: Conversation, processor, settings: Mapping[str, Any]) -> str:
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
    return _inline(conversation[0], processor)


def _contents(conversation: Conversation, processor, in_parts: bool) -> Iterator[list[Any]]:
    """Yield what may stand as the content of every message, the likeliest first.

    Most templates know parts, some texts alone, and some parts for users and texts for the system.

    Args:
        conversation: to be written.
        processor: whose tokens stand for media within texts.
        in_parts: whether the template is a processor's, whose messages usually come in parts.
    """

    def parts(message: Message) -> list[dict[str, str]]:
        return [{"type": p.kind} if isinstance(p, Medium) else {"type": "text", "text": p} for p in message.parts]

    def plain(message: Message) -> str:
        return _inline(message, processor)

    def as_given(message: Message) -> Any:
        return plain(message) if message.plain else parts(message)

    def texts_plain(message: Message) -> Any:
        return parts(message) if len(message.texts) < len(message.parts) else plain(message)

    some = any(isinstance(part, Medium) for message in conversation for part in message.parts)
    shapes = (as_given, parts, texts_plain, plain) if in_parts or some else (plain, as_given, parts)
    tried: list[list[Any]] = []
    for shape in shapes:
        content = [shape(message) for message in conversation]
        if content not in tried:
            tried.append(content)
            yield content


def _left_out(text: str, conversation: Conversation, processor, sure: bool) -> str | None:
    """Return what of a conversation is missing in the text that a template has written; None if nothing is.

    Args:
        text: written.
        conversation: that was to be written.
        processor: whose tokens stand for media.
        sure: whether the template is known to write those tokens; that of a processor may write others, which its
            tokens are then counted by, see `prepare`.
    """
    written = _words(text)
    for message in conversation:
        for part in message.texts:
            said = part.rpartition(THOUGHT)[2] if message.role == "assistant" else part
            if _words(said) not in written:
                return f"a text of the {message.role}"
    for kind in KINDS:
        count, tokens = len(media_of(conversation, kind)), _tokens(processor, kind)
        found = [text.count(token) for token in tokens]
        if tokens and count not in found and (sure or 0 < max(found) < count):
            return f"{count - max(found)} of {count} {kind}s"
    return None


def _words(text: str) -> str:
    """Return a text whose white space says nothing."""
    return " ".join(text.split())


def _tokens(processor, kind: str) -> list[str]:
    """Return a processor's own tokens for media of a kind, as templates and prompts have them."""
    names = (f"{kind}_token", "boi_token") if kind == "image" else (f"{kind}_token",)
    tokens = [getattr(processor, name, None) for name in names]
    return [token for token in tokens if isinstance(token, str) and token]


def _inline(message: Message, processor) -> str:
    """Return a message as one text, with the processor's own token for every medium."""
    tokens = {kind: next(iter(_tokens(processor, kind)), "") for kind in KINDS}
    return "".join(tokens[part.kind] if isinstance(part, Medium) else part for part in message.parts)


def refuse_tokens(reader: Reader, conversation: Conversation, where: str) -> None:
    """Refuse messages whose texts have tokens that the processor takes for media."""
    reserved = reserved_texts(reader)
    for message in conversation:
        for text in message.texts:
            refuse_reserved(where, f"a text of the {message.role}", text, reserved)


def _refusal(
    processor, texts: list[str], conversations: Sequence[Conversation], options: dict, error: Exception
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
