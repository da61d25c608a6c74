"""Prompt lookup: what followed these words the last time will follow them again."""

from __future__ import annotations

from collections import defaultdict
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..settings.arguments import positive
from ..tree import DraftTree
from .base import Drafter
from .continuations import Branches, padded

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class NGramDrafter(Drafter):
    """A drafter that looks the newest n-gram up in the sequence so far and proposes what came after it.

    Prompt lookup decoding (Saxena 2023; `prompt_lookup_num_tokens` of transformers) proposes one continuation, that of
    the first match. Ours proposes those of the latest `branches` matches of the longest n-gram that has any, merged
    into a tree where they share a beginning. Needs no training and no model; look-ups cost the same at any length of
    the sequence, by an index that grows with it. Image placeholders are not indexed.

    Args:
        target: the model to draft for.
        max_ngram, min_ngram: longest and shortest n-gram to look up, in tokens.
        length: number of tokens to propose per continuation.
        branches: number of continuations to propose.
    """

    def __init__(self, target: Target, max_ngram: int = 4, min_ngram: int = 1, length: int = 8, branches: int = 4):
        super().__init__(target)
        positive(self, max_ngram=max_ngram, min_ngram=min_ngram, length=length, branches=branches)
        if min_ngram > max_ngram:
            raise MMSpecError(f"NGramDrafter: min_ngram={min_ngram} is larger than max_ngram={max_ngram}")
        self.max_ngram, self.min_ngram, self.length, self.branches = max_ngram, min_ngram, length, branches

    @property
    def max_nodes(self) -> int:
        """Tokens of all continuations together."""
        return self.length * self.branches

    def start(self, context: Context) -> None:
        """Index the prompt."""
        self.context = context
        self.placeholders = set(context.target.family.placeholders)
        # Per row: n-gram to the indices of the tokens that followed it, in order.
        self.index: list[dict[tuple[int, ...], list[int]]] = [defaultdict(list) for _ in context.history]
        self.indexed = [0] * len(context.history)
        self._update()

    def draft(self, root: Tensor) -> DraftTree:
        """Propose what followed earlier occurrences."""
        rows = []
        for history, index, active in zip(self.context.history, self.index, self.context.active, strict=True):
            row = Branches(history[-1])
            if active:
                self._grow(row, history, index)
            rows.append(row)
        return padded(rows, root.device, self.length)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Index the tokens that were emitted."""
        self._update()

    def _update(self) -> None:
        """Index every n-gram that now has a successor."""
        for row, history in enumerate(self.context.history):
            index = self.index[row]
            for after in range(max(self.indexed[row], self.min_ngram), len(history)):
                for n in range(self.min_ngram, min(self.max_ngram, after) + 1):
                    gram = tuple(history[after - n : after])
                    if not self.placeholders.isdisjoint(gram):
                        break
                    index[gram].append(after)
            self.indexed[row] = len(history)

    def _grow(self, row: Branches, history: list[int], index: dict[tuple[int, ...], list[int]]) -> None:
        """Add to one row's tree what followed the longest n-gram that occurred before."""
        for n in range(min(self.max_ngram, len(history)), self.min_ngram - 1, -1):
            matches = index.get(tuple(history[-n:]))
            if not matches:
                continue
            for after in matches[: -self.branches - 1 : -1]:
                row.add(takewhile(self._may_stand, history[after : after + self.length]))
            break

    def _may_stand(self, token: int) -> bool:
        """Return True for a token that is no placeholder of a medium."""
        return token not in self.placeholders
