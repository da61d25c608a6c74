"""What the rows of a batch ask, questions or conversations, and how a processor writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import MMSpecError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .target import Target

Prompt = str | tuple[str, ...]
"""What one row asks: a question, or a conversation `(question, answer, question, ...)` that ends with a question."""


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
    """Chat template where there is one, else the bare text with the pictures' placeholders before it."""
    processor, tokenizer = target.processor, target.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
    multimodal = processor is not tokenizer
    if getattr(processor, "chat_template", None) is None:
        turns = [[asked] if isinstance(asked, str) else asked for asked in prompts]
        if talks := [row for row, texts in enumerate(turns) if len(texts) > 1]:
            raise MMSpecError(
                f"prompt {talks[0]} is a conversation, but {type(processor).__name__} has no chat template to write it "
                "with: set processor.chat_template, or pass the whole conversation as one text"
            )
        image = getattr(processor, "image_token", "")
        texts = [image * len(row) + text for (text,), row in zip(turns, rows, strict=True)]
    else:
        texts = []
        for asked, row in zip(prompts, rows, strict=True):
            messages = _messages(asked, len(row), multimodal)
            texts.append(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        # Most templates begin with the start token, which the tokenizer would add once more.
        bos = tokenizer.bos_token
        options["add_special_tokens"] = bos is None or not texts[0].startswith(bos)
    if not multimodal:
        return processor(texts, **options)
    return processor(text=texts, images=rows if any(rows) else None, **options)


def _messages(asked: Prompt, images: int, multimodal: bool) -> list[dict[str, Any]]:
    """A row as chat templates take it: users' and assistant's texts in turns, all pictures in the first message."""
    messages = []
    for turn, text in enumerate([asked] if isinstance(asked, str) else asked):
        content: Any = text
        if multimodal:
            content = [{"type": "image"} for _ in range(0 if turn else images)] + [{"type": "text", "text": text}]
        messages.append({"role": "assistant" if turn % 2 else "user", "content": content})
    return messages
