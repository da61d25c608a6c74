"""Text from tokens as they come."""

from __future__ import annotations


class TextStream:
    """Turns a growing list of token ids into text, piece by piece.

    A token may hold half a character, and some tokenizers write a token differently after another one; so each piece is
    the difference of two decodings of a short window, and is held back while it ends in the middle of a character.
    Nothing is decoded before somebody asks.

    Args:
        tokenizer: of the tokens; without one there is no text.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._texts: list[str] = []
        self._window = 0
        self._done = 0

    def text(self, number: int) -> str:
        """The text that token `number` completes (possibly none)."""
        while len(self._texts) <= number:
            self._texts.append(self._next(len(self._texts) + 1))
        return self._texts[number]

    def rest(self) -> str:
        """The text held back, once all tokens are there."""
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
        return whole_text(self.tokenizer, self.ids[start:end])


def whole_text(tokenizer, ids: list[int]) -> str | None:
    """The text of all tokens at once: the same as the pieces, so without the clean-up of spaces that a tokenizer may
    do afterwards, when a stream has printed them already. None without a tokenizer."""
    if tokenizer is None:
        return None
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
