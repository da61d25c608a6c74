"""A chat template: conversations written down as a model's own template has them, and nothing of them left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, TemplateError, meta

from ..chat import Conversation, Medium, Message, media_of
from ..errors import MMSpecError, did_you_mean, first_line
from ..media import KINDS
from .reader import Reader

THOUGHT = "</think>"
"""Ends what a model thought before it answered, which templates leave out of earlier turns."""
SWITCH = "/"
"""Begins a word that some templates read as a switch and take out of a text, such as `/no_think`."""
RAW = "{'type': "
"""Begins a part of a message that a template has written as it is, instead of what it holds."""


class ChatTemplate:
    """The template of a processor, or of its tokenizer where only that one has one.

    Args:
        processor, tokenizer: those of the model.
        settings: further arguments of the template, such as `enable_thinking`.

    Raises:
        MMSpecError: for a setting that the template does not look at, as far as that can be told.
    """

    def __init__(self, processor: Any, tokenizer: Any, settings: Mapping[str, Any] | None = None):
        self.processor, self.settings = processor, dict(settings or {})
        holders = [one for one in (processor, tokenizer) if getattr(one, "chat_template", None) is not None]
        self.holder: Any = holders[0] if holders else None
        self.of_tokenizer = self.holder is tokenizer
        if self.holder is not None and self.settings:
            self._refuse_unknown()

    def __bool__(self) -> bool:
        """Return whether there is one."""
        return self.holder is not None

    def write(self, conversation: Conversation, whole: bool = True) -> str:
        """Return the conversation as a text, up to where the answer begins.

        Args:
            conversation: to be written.
            whole: whether it is an error if a part of it is left out.

        Raises:
            ValueError: for a part that is left out, whichever way the messages are given; and whatever the template
                raises.
        """
        failure: Exception | None = None
        for contents in self._contents(conversation):
            messages = [
                {"role": message.role, "content": said, **message.others}
                for message, said in zip(conversation, contents, strict=True)
            ]
            try:
                text = self.holder.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False, **self.settings
                )
                if whole and (lost := self._left_out(text, conversation)) is not None:
                    raise ValueError(
                        f"what it writes leaves out {lost}; leave that out yourself, or pass inputs= that hold it"
                    )
            except Exception as error:  # templates are programs of others
                failure = failure or error
                continue
            return text
        raise failure or ValueError("there is nothing to write")

    def _contents(self, conversation: Conversation) -> Iterator[list[Any]]:
        """Yield what may stand as the contents of the messages, the likeliest first.

        Most templates know parts, some texts alone, and some parts for users and texts for the system.
        """

        def parts(message: Message) -> list[dict[str, str]]:
            return [{"type": p.kind} if isinstance(p, Medium) else {"type": "text", "text": p} for p in message.parts]

        def plain(message: Message) -> str:
            return inline(message, self.processor)

        def as_given(message: Message) -> Any:
            return plain(message) if message.plain else parts(message)

        def texts_plain(message: Message) -> Any:
            return parts(message) if len(message.texts) < len(message.parts) else plain(message)

        shown = any(len(message.texts) < len(message.parts) for message in conversation)
        of_parts = shown or not self.of_tokenizer
        tried: list[list[Any]] = []
        for shape in (as_given, parts, texts_plain, plain) if of_parts else (plain, as_given, parts):
            contents = [shape(message) for message in conversation]
            if contents not in tried:
                tried.append(contents)
                yield contents

    def _left_out(self, text: str, conversation: Conversation) -> str | None:
        """Return what of a conversation is missing in the text that was written; None if nothing is."""
        written, texts = _words(text), [(message.role, part) for message in conversation for part in message.texts]
        if RAW in text and not any(RAW in part for _, part in texts):
            return "how parts of messages are read"
        for role, part in texts:
            said = _words(part.rpartition(THOUGHT)[2] if role == "assistant" else part)
            unswitched = _words(" ".join(word for word in said.split() if not word.startswith(SWITCH)))
            if said not in written and (unswitched not in written or not unswitched):
                return f"a text of the {role}"
        for kind in KINDS:
            count, tokens = len(media_of(conversation, kind)), tokens_for(self.processor, kind)
            found = [text.count(token) for token in tokens]
            # That of a processor may write tokens that it does not name; `prepare` looks at what arrives.
            if tokens and count not in found and (self.of_tokenizer or 0 < max(found) < count):
                return f"{count - max(found)} of {count} {kind}s"
        return None

    def _refuse_unknown(self) -> None:
        template: Any = self.settings.get("chat_template", self.holder.chat_template)
        template = template.get("default") if isinstance(template, Mapping) else template
        try:
            known = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
        except (TemplateError, TypeError, AttributeError):  # it has tags of its own, or is no text
            return
        for name in self.settings:
            if name not in known and name != "chat_template":
                raise MMSpecError(
                    f"chat_template_kwargs: the chat template of {type(self.holder).__name__} has no variable {name!r}."
                    f"{did_you_mean(name, known - {'messages', 'add_generation_prompt'})}"
                )


def end_of_answer(reader: Reader) -> int | None:
    """Return the token with which the model ends what it says; None if it has none.

    That is one at which its own `generate` stops: of several the one that its chat template writes behind an answer,
    else the tokenizer's own end token, else the first.
    """
    ends, tokenizer = reader.eos_token_ids, reader.tokenizer
    if len(ends) > 1 and (template := ChatTemplate(reader.processor, tokenizer)):
        said = "An answer"
        talk = [Message("user", ("A question",)), Message("assistant", (said,))]
        try:
            rest = template.write(talk, whole=False).rpartition(said)[2]
        except Exception:  # templates are programs of others
            rest = ""
        texts = {end: tokenizer.convert_ids_to_tokens(end) for end in ends if end < len(tokenizer)}
        places = {rest.index(text): end for end, text in texts.items() if text and text in rest}
        if places:
            return places[min(places)]
    if not ends or tokenizer.eos_token_id in ends:
        return tokenizer.eos_token_id if ends else None
    return ends[0]


def tokens_for(processor: Any, kind: str) -> list[str]:
    """Return a processor's own tokens for media of a kind, as templates and prompts have them."""
    names = (f"{kind}_token", "boi_token") if kind == "image" else (f"{kind}_token",)
    tokens = [getattr(processor, name, None) for name in names]
    return [token for token in tokens if isinstance(token, str) and token]


def inline(message: Message, processor: Any) -> str:
    """Return a message as one text, with the processor's own token for every medium."""
    tokens = {kind: next(iter(tokens_for(processor, kind)), "") for kind in KINDS}
    return "".join(tokens[part.kind] if isinstance(part, Medium) else part for part in message.parts)


def refusal_of(template: ChatTemplate, row: int, error: Exception) -> MMSpecError:
    """Return what a template says of a row, in one line."""
    name = type(template.processor).__name__
    return MMSpecError(f"prompt {row}: the chat template of {name} does not take it: {first_line(error)}")


def _words(text: str) -> str:
    """Return a text whose white space says nothing."""
    return " ".join(text.split())
