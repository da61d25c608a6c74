"""Text from tokens as they come."""

from __future__ import annotations


class TextStream:
    """Turns a growing list of token ids into text, piece by piece.

    A token may hold half a character, and some tokenizers write a token differently after another one; so each piece is
    the difference of two decodings of a short window, and is held back while it ends in the middle of a character.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._window = 0
        self._done = 0

    def push(self, token: int) -> str:
        """Add a token; return the text that it completes (possibly none)."""
        if self.tokenizer is None:
            return ""
        self.ids.append(token)
        before = self._decode(self.ids[self._window : self._done])
        after = self._decode(self.ids[self._window :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._window, self._done = self._done, len(self.ids)
        return after[len(before) :]

    def flush(self) -> str:
        """The text held back, at the end."""
        if self.tokenizer is None:
            return ""
        before = self._decode(self.ids[self._window : self._done])
        after = self._decode(self.ids[self._window :])
        self._window = self._done = len(self.ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return whole_text(self.tokenizer, ids)


def whole_text(tokenizer, ids: list[int]) -> str | None:
    """The text of all tokens at once: the same as the pieces, so without the clean-up of spaces that a tokenizer may
    do afterwards, when a stream has printed them already. None without a tokenizer."""
    if tokenizer is None:
        return None
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
