"""A reference text, prepared to be looked up by its tokens, and by its letters where those differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

ANCHOR = "\n"
"""Stands before a text that begins within another, so that a tokenizer adds no space there."""

LONGEST = 4000
"""Characters that are tokenized anew behind a place that was found by letters."""


class ReferenceText:
    """A text to draft from. It is only read, so that requests share it.

    Tokens are kept as characters of a string too: so both look-ups, of tokens and of letters, are `str.find`.

    Args:
        ids: its tokens, of the target's vocabulary.
        text: what they say; None for tokens whose text nobody knows.
        tokenizer: the target's; None without text.
        close: tokens that stand behind its end, such as an end token.
    """

    def __init__(self, ids: Sequence[int], text: str | None = None, tokenizer: Any = None, close: Sequence[int] = ()):
        self.ids, self.text, self.tokenizer, self.close = [*ids, *close], text, tokenizer, [*close]
        self.symbols = as_symbols(self.ids)

    def behind(self, window: str, most: int) -> list[int]:
        """Return the places in `ids` behind the first occurrences of some tokens (`as_symbols`), `most` of them."""
        return [place + len(window) for place in islice(occurrences(self.symbols, window), most)]

    def behind_letters(self, window: str, most: int) -> list[int]:
        """Return the places in `text` behind the first occurrences of some letters (`letters_of`), `most` of them."""
        letters, ends = self._letters
        return [ends[place + len(window) - 1] for place in islice(occurrences(letters, window), most)]

    def from_character(self, place: int) -> list[int]:
        """Return the tokens of the text from a character on, as they stand behind another text."""
        assert self.text is not None and self.tokenizer is not None, "only letters lead to characters"
        rest = self.text[place : place + LONGEST]
        closed = self.close if place + LONGEST >= len(self.text) else []
        return [*continued(self.tokenizer, rest), *closed]

    @cached_property
    def _letters(self) -> tuple[str, list[int]]:
        return ("", []) if self.text is None else letters_of(self.text)


def as_symbols(ids: Sequence[int]) -> str:
    """Return tokens as a string with one character each."""
    return "".join(map(chr, ids))


def letters_of(text: str) -> tuple[str, list[int]]:
    """Return the letters and digits of a text, in any script, without case, and for each the place behind it.

    What is left out: spaces, quotes, dashes and all other signs, whose kinds texts use at will.
    """
    letters, ends = [], []
    for place, character in enumerate(text):
        if character.isalnum():
            for letter in character.casefold():
                letters.append(letter)
                ends.append(place + 1)
    return "".join(letters), ends


def continued(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that goes on behind another one.

    Some tokenizers put a space before what they are given. They do not behind an anchor, whose tokens are left out;
    where the two melt into one token, the text has a break at its beginning, and no space is added.
    """
    alone = tokenizer.encode(ANCHOR, add_special_tokens=False)
    both = tokenizer.encode(ANCHOR + text, add_special_tokens=False)
    if both[: len(alone)] == alone:
        return both[len(alone) :]
    return tokenizer.encode(text, add_special_tokens=False)


def occurrences(text: str, window: str) -> Iterator[int]:
    """Yield where a window begins in a text, overlapping occurrences too."""
    place = text.find(window)
    while place >= 0:
        yield place
        place = text.find(window, place + 1)
