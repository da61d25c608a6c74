"""Request: a batch of prompts as a target reads them, right-padded, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..chat import Conversation, media_of
from ..errors import MMSpecError, shown
from ..media import KINDS
from ..models.masks import padding_mask

TYPES = "token_type_ids"
OF_TOKENS = ("input_ids", TYPES, "mm_token_type_ids")
"""Processor outputs that say what a token is, `[batch, length]`."""
PER_TOKEN = (*OF_TOKENS, "attention_mask", "position_ids")
"""Processor outputs with an entry per token, `[..., batch, length]`."""


@dataclass
class Request:
    """A batch of prompts.

    Args:
        inputs: what a Hugging Face processor returns, on the target's device, right-padded, with an attention mask.
        lengths: tokens per row.
        conversations: what was asked per row, its media loaded; None for a request that was made from `inputs=`.
        extras: whatever else drafters want to know, such as a reference text: name to one entry per row.
        template_settings: further arguments that the chat template was given.
        appended_type: see `Family.appended_type`.
        copies: so many rows in succession are about the same media, and mostly of the same text (`of_one_text`).
        once: where there are copies, the request in which every row stands once. What `inputs` has of media is that
            request's: it is not repeated, so that a medium is held and encoded once.

    Generating only reads a request, so one request may be answered any number of times.
    """

    inputs: dict[str, Any]
    lengths: list[int]
    conversations: list[Conversation] | None = None
    extras: dict[str, list[Any]] = field(default_factory=dict)
    template_settings: dict[str, Any] = field(default_factory=dict)
    appended_type: int = 0
    copies: int = 1
    once: Request | None = None

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """The tokens of the longest row."""
        return max(self.lengths)

    @property
    def media(self) -> dict[str, list[list[Any]]]:
        """Kind (`"image"`, `"video"`, `"audio"`) to the loaded media of each row; nothing without `conversations`."""
        if self.conversations is None:
            return {}
        return {kind: [media_of(row, kind) for row in self.conversations] for kind in KINDS}

    @property
    def images(self) -> list[list[Any]] | None:
        """The pictures of each row; None without `conversations`."""
        return self.media.get("image")

    def token_ids(self) -> list[list[int]]:
        """Return the prompts as lists, without padding."""
        return [ids[:n] for ids, n in zip(self.inputs["input_ids"].tolist(), self.lengths, strict=True)]

    @property
    def distinct(self) -> Request:
        """The request without copies: itself, if there are none."""
        return self.once or self

    @property
    def of_one_text(self) -> bool:
        """True if rows that share their media are copies of one another; False for questions about one medium."""
        if self.copies == 1 or self.conversations is None:
            return True
        first = self.conversations[:: self.copies]
        return all(row is first[number // self.copies] for number, row in enumerate(self.conversations))

    def showing(self, media: Mapping[str, Any]) -> Request:
        """Return the same prompts with other inputs of media, of every distinct row."""
        once = None if self.once is None else self.once.showing(media)
        return replace(self, inputs={**self.inputs, **media}, once=once)

    def repeated(self, copies: int) -> Request:
        """Return a request in which every row stands so many times in succession, for independent answers to each."""
        if copies == 1:
            return self
        inputs = {
            name: value.repeat_interleave(copies, -2) if name in PER_TOKEN else value
            for name, value in self.inputs.items()
        }
        rows = self.conversations
        return replace(
            self,
            inputs=inputs,
            lengths=_each(self.lengths, copies),
            conversations=None if rows is None else _each(rows, copies),
            extras={name: _each(entries, copies) for name, entries in self.extras.items()},
            copies=self.copies * copies,
            once=self.distinct,
        )


def append(request: Request, answers: Sequence[Sequence[int]], multiple: int = 1) -> Request:
    """Return a request whose rows go on with an answer each, for the same media, right-padded again.

    Args:
        request: the prompts, whose conversations are not in the result.
        answers: token ids per row; a row may get none.
        multiple: `length` is padded to a multiple of it.
    """
    inputs = dict(request.inputs)
    lengths = [n + len(answer) for n, answer in zip(request.lengths, answers, strict=True)]
    ids, width = inputs["input_ids"], -(-max(lengths) // multiple) * multiple
    for name in PER_TOKEN:
        if name in inputs:
            old = inputs[name]
            inputs[name] = old.new_zeros(*old.shape[:-1], width)
            inputs[name][..., : old.shape[-1]] = old
    inputs.pop("position_ids", None)
    for row, (start, answer) in enumerate(zip(request.lengths, answers, strict=True)):
        inputs["input_ids"][row, start : lengths[row]] = torch.tensor(answer, device=ids.device)
        if TYPES in inputs:
            inputs[TYPES][row, start:] = request.appended_type
    mask = padding_mask(lengths, width, ids.device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return replace(request, inputs=inputs, lengths=lengths, conversations=None)


def _each(entries: Sequence[Any], copies: int) -> list[Any]:
    return [entry for entry in entries for _ in range(copies)]


def stack(first: Request, second: Request) -> Request:
    """Return one request of the rows of two, right-padded to one length. The media, if any, are the first one's.

    Positions must be given with both or with neither.
    """
    width = max(first.max_length, second.max_length)
    inputs = {name: value for name, value in first.inputs.items() if name not in PER_TOKEN}
    for name in PER_TOKEN:
        given = [request.inputs.get(name) for request in (first, second)]
        if like := [part for part in given if part is not None]:
            axes = max((part.shape[:-2] for part in like), key=len)
            parts = []
            for part, request in zip(given, (first, second), strict=True):
                table = like[0].new_zeros(*axes, request.batch_size, width)
                if part is not None:
                    table[..., : part.shape[-1]] = part
                parts.append(table)
            inputs[name] = torch.cat(parts, dim=-2)
    return Request(inputs, first.lengths + second.lengths, appended_type=first.appended_type)


def extras_of(given: Mapping[str, Sequence[Any]] | None, rows: int) -> dict[str, list[Any]]:
    """Return what drafters are told per row.

    Args:
        given: name to one entry per row.
        rows: how many the batch has.

    Raises:
        MMSpecError: for anything else.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise MMSpecError(
            f'extras={shown(given, 60)} must be a dict of names, such as {{"reference": ["a text per row"]}}'
        )
    for name, entries in given.items():
        listed = hasattr(entries, "__len__") and hasattr(entries, "__getitem__")  # an array has both
        if isinstance(entries, (str, bytes, Mapping)) or not listed:
            kind = type(entries).__name__
            raise MMSpecError(f"extras[{name!r}] is a {kind}: give a list with one entry for each of the {rows} rows")
        if len(entries) != rows:
            raise MMSpecError(f"extras[{name!r}] has {len(entries)} entries for {rows} rows: give one per row")
    return {name: list(entries) for name, entries in given.items()}
