"""Suffix decoding: what followed the longest suffix of the text before, in this request or in earlier answers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..outcome import Scores, Verdict
from ..settings.arguments import flags, number, positive
from ..tree import DraftTree
from .base import Drafter
from .continuations import Branches, padded
from .suffix_store import Place, SuffixStore, SuffixTexts

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class SuffixDrafter(Drafter):
    """Suffix decoding (Oliaro et al., arXiv 2411.04975): the newest tokens are looked up in the request and in earlier
    answers, and what followed them there is proposed, likeliest first, the more of it the longer the match.

    Let p be the length of a suffix of the text that occurs before. Below it a tree is grown greedily, node by node: its
    `D` is the share of the continuations that go this way, `D(node) = D(parent) count(node) / (counts of the node and
    its siblings)`, and the node with the largest one is next, up to `alpha p` nodes. The score of a tree is the sum of
    D, the number of tokens that it expects to be right. The best tree of all p, in the request and in the store, is
    drafted.

    Faithful: both places to look, the estimate, the greedy growth, the length in proportion to the match, the score.
    As the release has it: answers are in the store while they are written, so rows of a batch see those of the others
    (`threshold` is the release's too). Ours: places in the texts are counted instead of a suffix tree being kept; an
    answer is stored behind the last words of its question, so that its first tokens can be found as well; `budget`
    bounds a tree. Placeholders of pictures are neither matched nor proposed.

    Lossless with every lossless verifier. Needs no training. The store is shared by all requests of this drafter.

    Args:
        target: the model to draft for.
        max_match: longest suffix to look up, in tokens.
        alpha: nodes to draft for each token of the match.
        budget: nodes to draft at most.
        threshold: nodes whose D is smaller are not drafted, from 0 to 1.
        branching: False to draft the likeliest chain instead of a tree.
        capacity: tokens of earlier answers to keep at most; 0 keeps none, then only the request is looked at.
        learn: False to leave the store as it is.
        store: a file that `SuffixStore.save` wrote, to begin with; None begins empty.

    Attributes:
        store: the `SuffixStore`; its `save`, `load`, `add` and `clear` may be called between requests.

    Raises:
        MMSpecError: for a value out of range, or a file that is no store of this target's tokens.
    """

    def __init__(
        self,
        target: Target,
        max_match: int = 32,
        alpha: float = 2.0,
        budget: int = 32,
        threshold: float = 0.1,
        branching: bool = True,
        capacity: int = 65536,
        learn: bool = True,
        store: str | Path | None = None,
    ):
        super().__init__(target)
        positive(self, max_match=max_match, budget=budget)
        flags(self, branching=branching, learn=learn)
        self.max_match, self.budget = max_match, budget
        self.branching, self.learn = branching, learn
        self.alpha = number(self, above=0, alpha=alpha)
        self.threshold = number(self, lowest=0, highest=1, threshold=threshold)
        self.store = SuffixStore(target, capacity)
        if store is not None:
            self.store.load(store)

    @property
    def max_nodes(self) -> int:
        """The budget."""
        return self.budget

    def start(self, context: Context) -> None:
        """Take up a request: index its prompts, and open a text in the store for every row."""
        self.context = context
        self.placeholders = frozenset(context.target.family.placeholders)
        self._own: list[SuffixTexts] = []
        self._stored: list[int | None] = []
        self._seen = [len(history) for history in context.history]
        for history in context.history:
            own = SuffixTexts()
            own.extend(own.open(), history)
            self._own.append(own)
            stored = self.store.open() if self.learn else None
            self._stored.append(stored)
            if stored is not None:
                self.store.extend(stored, self._suffix(history, self.max_match + 1))

    def draft(self, root: Tensor) -> DraftTree:
        """Propose what followed earlier occurrences below `[batch]` roots."""
        rows = [Branches(history[-1]) for history in self.context.history]
        for row, branches in enumerate(rows):
            if self.context.active[row]:
                branches.append(*self._best(row))
        return padded(rows, root.device, self.budget)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Index what was emitted."""
        for row, history in enumerate(self.context.history):
            new, self._seen[row] = history[self._seen[row] :], len(history)
            self._own[row].extend(0, new)
            if (stored := self._stored[row]) is None:
                continue
            end = next((place for place, token in enumerate(new, 1) if token in self.target.eos_token_ids), None)
            self.store.extend(stored, new[:end])
            if end is not None:  # what a pass has said behind the end is no answer
                self._stored[row] = None

    def _suffix(self, history: list[int], length: int) -> list[int]:
        """Return the newest tokens of a text, up to the last placeholder."""
        newest = history[-length:]
        cut = next((place for place in range(len(newest) - 1, -1, -1) if newest[place] in self.placeholders), -1)
        return newest[cut + 1 :]

    def _best(self, row: int) -> tuple[list[int], list[int]]:
        """Return tokens and parents of the nodes below a row's root that have the largest score."""
        suffix = self._suffix(self.context.history[row], self.max_match)
        best, nodes = 0.0, (list[int](), list[int]())
        for texts, but in ((self._own[row], None), (self.store, self._stored[row])):
            for length, places in matches(texts.places(suffix[-1], but) if suffix else [], suffix):
                room = min(int(self.alpha * length), self.budget)
                if room <= best:  # no D is above 1
                    break
                score, grown = self._grow(places, room)
                if score > best:
                    best, nodes = score, grown
        return nodes

    def _grow(self, places: list[Place], room: int) -> tuple[float, tuple[list[int], list[int]]]:
        """Return the score of the tree behind some places, and its nodes.

        Args:
            places: where it goes on.
            room: nodes at most.
        """
        tokens: list[int] = []
        parents: list[int] = []
        score, order = 0.0, count()
        waiting: list[tuple[float, int, int, int, list[Place]]] = []  # -D, order, parent, token, places behind it
        node, chance = 0, 1.0
        while True:
            following = continuations(places, self.placeholders)
            every = sum(map(len, following.values()))
            if not self.branching:
                waiting = []
            for token, behind in following.items():
                share = chance * len(behind) / every
                if share >= self.threshold:
                    heapq.heappush(waiting, (-share, next(order), node, token, behind))
            if not waiting or len(tokens) == room:
                return score, (tokens, parents)
            negative, _, parent, token, places = heapq.heappop(waiting)
            chance = -negative
            score += chance
            tokens.append(token)
            parents.append(parent)
            node = len(tokens)


def matches(places: list[Place], suffix: list[int]) -> Iterator[tuple[int, list[Place]]]:
    """Yield the lengths at which a suffix occurs, the longest first, with the places behind its occurrences.

    Args:
        places: all places behind its last token.
        suffix: the tokens.
    """
    found = []
    for length in range(1, len(suffix) + 1):
        if length > 1:
            token = suffix[-length]
            places = [place for place in places if place.after >= length and place.text[place.after - length] == token]
        if not places:
            break
        found.append((length, places))
    yield from reversed(found)


def continuations(places: list[Place], never: frozenset[int]) -> dict[int, list[Place]]:
    """Return what stands behind some places: token to the places behind it, in the order of the places.

    Args:
        places: the places; the ends of texts have nothing behind them.
        never: tokens at which a text ends, too.
    """
    following: dict[int, list[Place]] = {}
    for text, after in places:
        if after < len(text) and text[after] not in never:
            following.setdefault(text[after], []).append(Place(text, after + 1))
    return following
