"""`SuffixStore`: texts in which continuations are found and counted, in memory or in a file."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MMSpecError, shown
from ..files.storage import atomic_write_json, read_json_object
from ..memory import Memory
from ..settings.arguments import as_int, file_path, whole_number

if TYPE_CHECKING:
    from ..target import Target

FORMAT = "mmspec suffix store 1"


class Place(NamedTuple):
    """A place in a text.

    Args:
        text: the tokens.
        after: index of the token that stands behind the place, or the length of the text where it ends there.
    """

    text: list[int]
    after: int


class SuffixTexts:
    """Texts that grow, and where each of their tokens stands.

    What a suffix tree would tell is read off the texts themselves, see `mmspec.drafters.suffix`: the memory is a number
    per token, texts may grow in any order, and one that leaves costs no more than its own length.
    """

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}  # the oldest first
        self.size = 0
        self._places: dict[int, dict[int, list[int]]] = defaultdict(dict)  # token: text: indices behind the token
        self._next = 0

    def open(self) -> int:
        """Begin a text, and return its number."""
        number, self._next = self._next, self._next + 1
        self.texts[number] = []
        return number

    def extend(self, number: int, tokens: Iterable[int]) -> None:
        """Append tokens to a text; to one that has left, nothing."""
        if (text := self.texts.get(number)) is None:
            return
        for token in tokens:
            text.append(token)
            self._places[token].setdefault(number, []).append(len(text))
            self.size += 1

    def drop(self, number: int) -> None:
        """Forget a text."""
        text = self.texts.pop(number)
        self.size -= len(text)
        for token in set(text):
            del self._places[token][number]
            if not self._places[token]:
                del self._places[token]

    def places(self, token: int, but: int | None = None) -> list[Place]:
        """Return the places behind a token at which a text goes on, those in the newest text first and in each text the
        last one first.

        Args:
            token: the token.
            but: a text that is left out.
        """
        found = self._places.get(token, {})
        return [
            Place(text, after)
            for number in sorted(found, reverse=True)
            if number != but
            for text in [self.texts[number]]
            for after in reversed(found[number])
            if after < len(text)
        ]


class SuffixStore(Memory):
    """Earlier answers, which outlive their requests: at most so many tokens, the oldest answers leave first.

    One store may serve any number of requests and threads at once. It belongs to a vocabulary: a file of another one is
    refused.

    Args:
        target: the model whose tokens it holds.
        capacity: tokens to keep at most; 0 keeps none.

    Raises:
        MMSpecError: for what is no target, and a capacity below 0.
    """

    def __init__(self, target: Target, capacity: int = 65536):
        from ..target import expect_target  # which imports the drafters

        expect_target(target, "SuffixStore")
        self.capacity = whole_number(self, capacity=capacity, lowest=0)
        self.vocabulary = vocabulary_of(target)
        self._vocab_size = target.vocab_size
        self._texts, self._lock = SuffixTexts(), threading.Lock()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._texts.texts)

    @property
    def tokens(self) -> int:
        """Tokens of all texts together."""
        return self._texts.size

    def add(self, tokens: Iterable[int]) -> None:
        """Add a whole text, such as an answer from elsewhere.

        Raises:
            MMSpecError: for a token that the target does not have.
        """
        if isinstance(tokens, str) or not isinstance(tokens, Iterable):
            raise MMSpecError(
                f"SuffixStore: tokens={shown(tokens, 60)} must be a list of token ids: add what the target's tokenizer "
                "makes of a text"
            )
        given = list(tokens)
        ids = [number for token in given if (number := as_int(token)) is not None and 0 <= number < self._vocab_size]
        if len(ids) < len(given):
            strange = next(token for token in given if as_int(token) not in range(self._vocab_size))
            raise MMSpecError(
                f"SuffixStore: the token {shown(strange, 60)} is none of the target's, which go from 0 to "
                f"{self._vocab_size - 1}: add what its own tokenizer makes of the text"
            )
        self.extend(self.open(), ids)

    def open(self) -> int:
        """Begin a text that is being written, and return its number."""
        with self._lock:
            return self._texts.open()

    def extend(self, number: int, tokens: Iterable[int]) -> None:
        """Append what was written of a text, unless it had to leave; let the oldest texts leave where there is no
        room."""
        with self._lock:
            self._texts.extend(number, tokens)
            while self._texts.size > self.capacity:
                self._texts.drop(next(iter(self._texts.texts)))

    def places(self, token: int, but: int | None = None) -> list[Place]:
        """Return the places behind a token at which a text goes on, see `SuffixTexts.places`."""
        with self._lock:
            return self._texts.places(token, but)

    def clear(self) -> None:
        """Forget all texts."""
        with self._lock:
            for number in list(self._texts.texts):
                self._texts.drop(number)

    def state(self) -> SuffixTexts:
        """Return a copy of all texts."""
        with self._lock:
            return copy.deepcopy(self._texts)

    def restore(self, state: SuffixTexts) -> None:
        """Hold these texts, and no others."""
        with self._lock:
            self._texts = copy.deepcopy(state)

    def save(self, file: str | Path) -> None:
        """Write all texts to a file of plain JSON, the oldest first.

        Raises:
            MMSpecError: if it cannot be written.
        """
        with self._lock:
            texts = [list(text) for text in self._texts.texts.values() if text]
        path = file_path(file, "SuffixStore: file")
        try:
            atomic_write_json(path, {"format": FORMAT, "vocabulary": self.vocabulary, "texts": texts}, None)
        except OSError as error:
            raise MMSpecError(
                f"SuffixStore: {str(file)!r} cannot be written: {error.strerror}; name a file in a folder that is there"
            ) from error

    def load(self, file: str | Path) -> None:
        """Add the texts of a file that `save` wrote, as the newest ones.

        Raises:
            MMSpecError: if it cannot be read, is no such file, or is of another vocabulary.
        """
        path = file_path(file, "SuffixStore: file")
        try:
            found = read_json_object(path)
        except OSError as error:
            raise MMSpecError(
                f"SuffixStore: {str(file)!r} cannot be read: {error.strerror}; name a file that save() wrote"
            ) from error
        texts = None if found is None or found.get("format") != FORMAT else found.get("texts")
        if not isinstance(texts, list) or not all(map(_is_text, texts)):
            raise MMSpecError(f"SuffixStore: {str(file)!r} is no store of answers: name a file that save() wrote")
        assert found is not None, "it has texts"
        if found.get("vocabulary") != self.vocabulary:
            raise MMSpecError(
                f"SuffixStore: {str(file)!r} is of another vocabulary than the target's: name one that was saved with "
                "a target of the same tokenizer"
            )
        for text in texts:
            self.add(text)


def _is_text(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def vocabulary_of(target: Target) -> str:
    """Return what the tokens of a target mean, as a digest: two targets have the same one if they have the same
    vocabulary. Without a tokenizer that cannot be known, and the weights stand for it."""
    tokenizer = target.tokenizer
    known = target.fingerprint if tokenizer is None else sorted(tokenizer.get_vocab().items())
    about = json.dumps([target.family.writes, target.vocab_size, known])
    return hashlib.sha256(about.encode()).hexdigest()[:16]
