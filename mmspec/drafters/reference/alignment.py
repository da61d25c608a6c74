"""Where an answer stands in its references, and what may therefore follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .text import ReferenceText, as_symbols, letters_of

FORGET = 0.95
"""The share of the counts of a kind of guess that is left when it is judged again."""

PRIOR = {
    "kept": 0.95,  # the reference was right the last time
    "unique": 0.95,  # one window matches
    "start": 0.95,  # the answer so far begins one reference
    "letters": 0.8,  # one window of letters matches
    "resumed": 0.8,  # the answer has other tokens than the reference, as many
    "several": 0.5,  # one of several windows that match
    "shifted": 0.2,  # the answer has one token more than the reference, or one less
    "short": 0.1,  # one or two tokens match
    "next": 0.2,  # one reference has ended, and another may begin
}
"""Chances that a token of a guess is right, by the kind of the guess, before anything is known."""

WEIGHT = {"kept": 5.0, "unique": 5.0, "start": 5.0}
"""Guesses that a prior is worth, by kind; two of all others."""

ALONE = ("kept", "unique", "start", "letters", "resumed")
"""Kinds of guesses that may go on to the end of the reference: the others are some of several."""


class Guess(NamedTuple):
    """Tokens that may follow.

    Args:
        line: tokens, of which those before `at` are behind us.
        at: place of the first one that may follow.
        kind: how it was found, a key of `PRIOR`.
    """

    line: Sequence[int]
    at: int
    kind: str


@dataclass(frozen=True)
class Windows:
    """Sizes of what is looked up.

    Args:
        tokens: tokens of a window.
        longest: tokens of the longest window, which tells several matches apart.
        letters: letters of a window; 0 to look up none.
        branches: matches to go on from, where there are several.
    """

    tokens: int = 3
    longest: int = 10
    letters: int = 8
    branches: int = 8


class Odds:
    """The shares of guesses of each kind that were right, in one row. Later guesses count more."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}

    def chance(self, kind: str) -> float:
        """Return the estimated chance that a token of a guess is right, given that those before it are."""
        right, tried = self._counts.get(kind, (0.0, 0.0))
        weight = WEIGHT.get(kind, 2.0)
        return (right + weight * PRIOR[kind]) / (tried + weight)

    def reach(self, kind: str, least: float) -> float:
        """Return how many tokens of a guess have a chance of at least `least` to be emitted."""
        if least == 0:
            return math.inf
        return math.log(least) / math.log(min(self.chance(kind), 1 - 1e-9))

    def learn(self, kind: str, right: int, tried: int) -> None:
        """Take note of how far a guess was right, whether it was drafted or not."""
        before = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = before[0] * FORGET + right, before[1] * FORGET + tried


class Alignment:
    """Follows the answer of one row through its references.

    As long as the answer agrees with a reference, its place there is kept, and nothing is searched. Where they differ
    the place is kept for a few tokens more, as if the reference had other, more or fewer tokens there (ours), and the
    newest tokens are looked up: a window of them, which grows while there are several matches; then the newest letters;
    then ever shorter windows, whose matches are all taken.

    Args:
        references: texts, in their order.
        windows: what is looked up.
        spell: returns the text of the answer so far; None where tokens have none.
    """

    def __init__(self, references: Sequence[ReferenceText], windows: Windows, spell: Callable[[], str] | None = None):
        self.references, self.windows, self.spell = references, windows, spell
        self.odds = Odds()
        self._place: tuple[Sequence[int], int] | None = None
        self._lost = 0
        self._guesses: list[Guess] = []

    def guesses(self, answer: Sequence[int]) -> list[Guess]:
        """Return what may follow an answer, the likeliest first.

        Args:
            answer: all tokens that the row has written, at least one.
        """
        found = [guess for guess in self._kept() if guess.at < len(guess.line)]
        if not found or self._lost:
            found += self._looked_up(answer)
        places: dict[tuple[int, int], Guess] = {}
        for guess in found:
            places.setdefault((id(guess.line), guess.at), guess)
        self._guesses = sorted(places.values(), key=lambda guess: -self.odds.chance(guess.kind))
        return self._guesses

    def follow(self, emitted: Sequence[int]) -> None:
        """Hold the newest guesses against what was emitted after them, and move on."""
        best, place = -1, None
        counts: dict[str, tuple[int, int]] = {}
        for line, at, kind in self._guesses:
            right = _agreeing(line, at, emitted)
            tried = right + (at + right < len(line) and right < len(emitted))
            before = counts.get(kind, (0, 0))
            counts[kind] = before[0] + right, before[1] + tried
            if right > best and (right > 1 or kind in ALONE):  # one token that agrees may do so by chance
                best, place = right, (line, at)
        for kind, (right, tried) in counts.items():
            self.odds.learn(kind, right, tried)
        if place is not None and (best > 0 or self._place is None):
            self._place = place[0], place[1] + best
            self._lost = len(emitted) - best
        elif self._place is not None:
            self._lost += len(emitted)
            if self._lost > self.windows.tokens:
                self._place = None

    def _kept(self) -> list[Guess]:
        """Return the guesses from the place that was kept."""
        if self._place is None:
            return []
        line, at = self._place
        if at >= len(line):  # a reference has ended, and another may begin
            starts = [one.ids for one in self.references if one.ids is not line]
            return [Guess(ids, 0, "next") for ids in starts[: self.windows.branches]]
        if not self._lost:
            return [Guess(line, at, "kept")]
        here = at + self._lost
        return [Guess(line, here, "resumed"), Guess(line, here - 1, "shifted"), Guess(line, here + 1, "shifted")]

    def _looked_up(self, answer: Sequence[int]) -> list[Guess]:
        """Return the guesses from where the newest tokens stand, or the newest letters."""
        most, size = self.windows.branches, self.windows.tokens
        if len(answer) < size:
            newest = as_symbols(answer)
            starts = [one for one in self.references if one.symbols.startswith(newest)]
            if starts:
                kind = "start" if len(starts) == 1 else "several"
                return [Guess(one.ids, len(answer), kind) for one in starts[:most]]
        found = self._matches(answer, min(size, len(answer))) if len(answer) >= size else []
        while len(found) > 1 and size < min(self.windows.longest, len(answer)):
            size += 1
            closer = self._matches(answer, size)
            found = closer or found
            if not closer:
                break
        if found:
            kind = "unique" if len(found) == 1 else "several"
            return [Guess(line, at, kind) for line, at in found]
        if letters := self._by_letters():
            kind = "letters" if len(letters) == 1 else "several"
            return [Guess(line, 0, kind) for line in letters]
        for size in range(min(self.windows.tokens - 1, len(answer)), 0, -1):
            if found := self._matches(answer, size):
                return [Guess(line, at, "short") for line, at in found]
        return []

    def _matches(self, answer: Sequence[int], size: int) -> list[tuple[Sequence[int], int]]:
        """Return the line and the place behind each match of the newest tokens, that can go on."""
        window = as_symbols(answer[-size:])
        most = self.windows.branches
        found: list[tuple[Sequence[int], int]] = []
        for one in self.references:
            found += [(one.ids, at) for at in one.behind(window, most - len(found) + 1) if at < len(one.ids)]
            if len(found) >= most:
                break
        return found[:most]

    def _by_letters(self) -> list[list[int]]:
        """Return what follows each match of the newest letters, in the case in which the answer is written."""
        size = self.windows.letters
        if not size or self.spell is None:
            return []
        # Letters are searched from the end: what was written long ago does not matter.
        said = self.spell()[-8 * size :]
        letters, ends = letters_of(said)
        if len(letters) < size:
            return []
        window, since = letters[-size:], said[ends[-1] :]
        own = said[ends[-size] - 1 : ends[-1]]
        found: list[list[int]] = []
        for one in self.references:
            for place in one.behind_letters(window, self.windows.branches - len(found)):
                assert one.text is not None, "it has letters"
                at = _past(one.text, place, since)
                line = one.from_character(at) if at < len(one.text) else [*one.close]
                found.append(_in_case_of(own, one, at) or line)
        return [line for line in found if line]


def _agreeing(line: Sequence[int], at: int, emitted: Sequence[int]) -> int:
    """Return how many of the emitted tokens a line has, from a place on."""
    right = 0
    while right < len(emitted) and at + right < len(line) and line[at + right] == emitted[right]:
        right += 1
    return right


def _past(text: str, place: int, since: str) -> int:
    """Return the place in a text to go on from, where the answer has other signs behind its newest letter.

    Args:
        text: the reference.
        place: behind the letter in it.
        since: the signs that the answer has behind that letter.
    """
    if text.startswith(since, place):
        return place + len(since)
    while place < len(text) and not text[place].isalnum():
        place += 1
    return place


def _in_case_of(own: str, one: ReferenceText, at: int) -> list[int] | None:
    """Return the rest of a reference in the case of the answer's letters; None where it has that case."""
    assert one.text is not None and one.tokenizer is not None, "it has letters"
    before = one.text[max(at - 2 * len(own), 0) : at]
    for same, change in ((str.islower, str.lower), (str.isupper, str.upper)):
        if same(own) and not same(before):
            return ReferenceText([], change(one.text[at:]), one.tokenizer, one.close).from_character(0)
    return None
