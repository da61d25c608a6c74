"""Turns tokens into text as they arrive."""

from __future__ import annotations

from typing import Any


class TextStream:
    """Turns a growing list of token ids into text, piece by piece.

    A token may hold half a character, and some tokenizers write a token differently after another one. So each piece is
    the difference of two decodings of a short window, and is held back while it ends in the middle of a character.
    Nothing is decoded before it is asked for.

    Args:
        tokenizer: decodes the tokens; without one there is no text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._texts: list[str] = []
        self._window = 0
        self._done = 0

    def text(self, number: int) -> str:
        """Return the text that token `number` completes (possibly none)."""
        while len(self._texts) <= number:
            self._texts.append(self._next(len(self._texts) + 1))
        return self._texts[number]

    def rest(self) -> str:
        """Return the text that was held back, once all tokens are there."""
        if self.tokenizer is None or not self.ids:
            return ""
        self.text(len(self.ids) - 1)
        before, after = self._decode(self._window, self._done), self._decode(self._window, len(self.ids))
        return after[len(before) :]

    def _next(self, end: int) -> str:
        if self.tokenizer is None:
            return ""
        before, after = self._decode(self._window, self._done), self._decode(self._window, end)
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._window, self._done = self._done, end
        return after[len(before) :]

    def _decode(self, start: int, end: int) -> str:
        return _decoded(self.tokenizer, self.ids[start:end])


def whole_text(tokenizer: Any, ids: list[int]) -> str | None:
    """Return the text of all tokens at once; None without a tokenizer. It equals the joined pieces: a tokenizer's
    clean-up of spaces is left out, because a stream has printed them already."""
    return None if tokenizer is None else _decoded(tokenizer, ids)


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
