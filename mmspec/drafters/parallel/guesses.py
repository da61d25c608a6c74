"""Guesses: what a drafter has written behind the text, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .writer import First, Stop, Written


class Writer(Protocol):
    """A `ChainWriter`, wherever it works."""

    @property
    def stop(self) -> Stop:
        """Set to have no further token written."""

    def follow(self, active: list[bool]) -> None:
        """Take another list of the rows that go on."""

    def correct(self, ends: Sequence[int], news: Sequence[Sequence[int]]) -> None:
        """Let the texts go another way."""

    def write(self, count: int, rows: Sequence[bool], told: Callable[[First], None] | None = None) -> Written:
        """Write tokens behind the texts."""


@dataclass
class Guesses:
    """Tokens that a drafter expects behind the text of a row, in order.

    Args:
        tokens: the tokens.
        bad: True for each that came from logits which are no distribution.
        probs: `[tokens, vocab]` what they were drawn from; None if they are the likeliest.
    """

    tokens: list[int] = field(default_factory=list)
    bad: list[bool] = field(default_factory=list)
    probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: list[int], bad: list[bool], probs: Tensor | None) -> None:
        """Append further guesses; `probs` is `[new, vocab]` or None."""
        self.tokens, self.bad = [*self.tokens, *tokens], [*self.bad, *bad]
        if probs is not None:
            self.probs = probs if self.probs is None else torch.cat([self.probs, probs])

    def agree_with(self, emitted: list[int]) -> int:
        """Return how many of the emitted tokens were foreseen, up to the first that was not."""
        right = 0
        for guess, token in zip(self.tokens, emitted, strict=False):
            if guess != token:
                break
            right += 1
        return right

    def behind(self, count: int) -> Guesses:
        """Return the guesses without the first ones, so many, which have come true."""
        return Guesses(self.tokens[count:], self.bad[count:], None if self.probs is None else self.probs[count:])


class Foresight:
    """The guesses behind the text of every row, as a writer has written them and the text grows.

    Attributes:
        rows: the guesses of every row.

    Args:
        writer: the writer.
        seen: per row, how many tokens its text has.
    """

    def __init__(self, writer: Writer, seen: Sequence[int]):
        self.writer, self._seen = writer, [*seen]
        self.rows = [Guesses() for _ in seen]

    def write(self, rows: Sequence[bool], count: int, told: Callable[[First], None] | None = None) -> float:
        """Have more written behind some rows; return the mean seconds of a token. See `ChainWriter.write`."""
        written = self.writer.write(count, rows, told)
        for row, tokens in enumerate(written.tokens):
            if tokens:
                probs = None if written.probs is None else written.probs[row, : len(tokens)]
                self.rows[row].extend(tokens, written.bad[row], probs)
        return written.seconds

    def go_on(self, texts: Sequence[list[int]]) -> None:
        """Compare how the texts have gone on with what was foreseen. Of a row of which all has come true the rest is
        kept; of every other row nothing, and the writer is told.

        Args:
            texts: per row, all its tokens.
        """
        ends, news = [], []
        for row, text in enumerate(texts):
            seen, guesses = self._seen[row], self.rows[row]
            new = text[seen:]
            right = guesses.agree_with(new)
            self.rows[row] = guesses.behind(right) if right == len(new) else Guesses()
            ends.append(seen + (len(guesses) if right == len(new) else right))
            news.append(new[right:])
            self._seen[row] = seen + len(new)
        if any(news):
            self.writer.correct(ends, news)

    def probs(self, width: int, vocab_size: int, device: torch.device) -> Tensor:
        """Return `[batch, width, vocab]` what the first guesses of every row were drawn from; zeros behind the last."""
        probs = torch.zeros(len(self.rows), width, vocab_size, device=device)
        for row, guesses in enumerate(self.rows):
            if guesses.probs is not None:
                known = guesses.probs[:width]
                probs[row, : len(known)] = known.to(probs)
        return probs

    def table(self, width: int) -> tuple[list[list[int]], list[list[bool]]]:
        """Return the first guesses of every row, and which of them are bad, filled up to `width`."""
        tokens = [[*guesses.tokens, *[0] * width][:width] for guesses in self.rows]
        return tokens, [[*guesses.bad, *[False] * width][:width] for guesses in self.rows]
