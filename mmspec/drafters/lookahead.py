"""Lookahead decoding: n-grams that the target itself writes on the side, while it verifies."""

from __future__ import annotations

import random
from collections.abc import Sequence
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

Pool = dict[int, dict[tuple[int, ...], None]]
"""Token to the continuations that were found behind it, the newest last."""


class LookaheadDrafter(Drafter):
    """Lookahead decoding (Fu et al., arXiv 2402.02057): Jacobi iterations of a window of places go on in every pass,
    and the n-grams that come out of them are the guesses of later passes.

    Every pass has two branches below the newest token. The look-ahead branch is a chain of `window` guessed tokens, and
    below each of them the tokens that earlier passes have made of that place, `ngram - 2` at most: the target names the
    next one of each. Then the oldest guess, those after it and the new token are an n-gram, which enters the pool of
    the request; the oldest guesses leave. The verification branch holds the continuations that the pool has of the
    newest token.

    Faithful: the window, its levels that fill up one a pass, the pool by first token with its newest `candidates`, and
    a beginning with random tokens of the prompt. Ours: both branches are one tree, for what a token of the look-ahead
    branch sees is the path above it; so the verifier may accept tokens of that branch too. N-grams of the prompt enter
    the pool at the beginning (an option of the release), without image placeholders. Above temperature 0 the look-ahead
    branch goes on with the likeliest tokens.

    Lossless with every lossless verifier. Needs no training. It pays where the target's pass over many tokens costs no
    more than over one.

    Args:
        target: the model to draft for, and with.
        window: places that are looked ahead at, in tokens (W).
        ngram: length of the n-grams, in tokens, at least 2 (N).
        candidates: continuations that are verified in a pass, and kept for a token (G).

    Raises:
        MMSpecError: for sizes out of range.
    """

    def __init__(self, target: Target, window: int = 8, ngram: int = 4, candidates: int = 8):
        super().__init__(target)
        positive(self, window=window, ngram=ngram, candidates=candidates)
        if ngram < 2:
            raise MMSpecError(f"LookaheadDrafter: ngram={ngram} must be at least 2, a token and one that follows it")
        self.window, self.ngram, self.candidates = window, ngram, candidates

    @property
    def max_nodes(self) -> int:
        """Tokens of both branches."""
        return (self.window + self.candidates) * (self.ngram - 1)

    def start(self, context: Context) -> None:
        """Take up a request: fill the pool from the prompt, and the window at random."""
        self.context = context
        placeholders = set(context.target.family.placeholders)
        chance = random.Random(0)
        self._pools: list[Pool] = [{} for _ in context.history]
        self._levels: list[list[list[int]]] = []  # per row: level, place
        self._ends: list[list[int]] = []  # per row: the nodes of the last level
        for history, pool in zip(context.history, self._pools, strict=True):
            for end in range(self.ngram, len(history) + 1):
                found = history[end - self.ngram : end]
                if placeholders.isdisjoint(found):
                    self._enter(pool, found)
            words = [token for token in history if token not in placeholders]
            self._levels.append([[chance.choice(words or history) for _ in range(self.window)]])

    def draft(self, root: Tensor) -> DraftTree:
        """Propose both branches below `[batch]` roots."""
        context, self._ends = self.context, []
        rows = []
        for row, history in enumerate(context.history):
            tree, ends = Branches(history[-1]), []
            if context.active[row]:
                ends = self._grow(tree, self._pools[row], self._levels[row])
            rows.append(tree)
            self._ends.append(ends)
        return padded(rows, root.device, self.window + self.ngram - 2)

    def rest(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Wait: the look-ahead branch was not in that tree."""

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Let the look-ahead branch go on by a token, and take the n-grams that it completes into the pool."""
        if scores is None:
            return
        assert scores.processed is not None, "the verifier has judged the tree"
        said = scores.processed.argmax(-1).tolist()
        for tokens, ends, levels, pool in zip(said, self._ends, self._levels, self._pools, strict=True):
            if not ends:
                continue
            levels.append([tokens[node] for node in ends])
            if len(levels) == self.ngram:
                for found in zip(*levels, strict=True):
                    self._enter(pool, found)
                levels.pop(0)

    def _grow(self, tree: Branches, pool: Pool, levels: list[list[int]]) -> list[int]:
        """Add both branches to the root of a row; return the nodes at which the look-ahead branch goes on.

        Args:
            tree: the row's tree, which holds the root.
            pool: n-grams that were found.
            levels: the guesses at every place of the window, the oldest first.
        """
        for found in [*pool.get(tree.tokens[0], ())][::-1]:
            tree.add(found)
        parents = [0]
        for number, level in enumerate(levels):
            first = len(tree.tokens)
            ends = [first + place for place in range(self.window)]
            tree.append(level, parents=[0, *ends[:-1]] if number == 0 else parents)
            parents = ends
        return parents

    def _enter(self, pool: Pool, found: Sequence[int]) -> None:
        """Put an n-gram into a pool as the newest of its first token, of which the oldest leaves."""
        known = pool.setdefault(found[0], {})
        behind = tuple(found[1:])
        known.pop(behind, None)
        known[behind] = None
        if len(known) > self.candidates:
            del known[next(iter(known))]
