"""LayersOfCache: some layers of a cache, for passes that run through no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from .cache import TreeCache
from .cache_layer import TreeCacheLayer


class LayersOfCache(TreeCache):
    """Some layers of another cache: its storage and its committed entries, without a copy.

    Entries written through it are speculative until the round ends; the other cache overwrites them with its own when
    it reads the same tokens, or puts them in order (`TreeCache.arrange`), and is the one that commits.

    Args:
        whole: the other cache.
        numbers: numbers of these layers, which they keep here. Passes write to no others.
    """

    def __init__(self, whole: TreeCache, numbers: Iterable[int]):
        self.tree_layers = [TreeCacheLayer(self) for _ in whole.tree_layers]
        Cache.__init__(self, layers=[*self.tree_layers])
        self.numbers = tuple(numbers)
        self.of, self.batch, self.compiled = whole, whole.batch, whole.compiled
        self._dropped = 0
        self._open()

    def __getattr__(self, name: str) -> Any:
        """Return what the other cache says of its committed entries, its rows and its capacity."""
        return getattr(vars(self)["of"], name)

    @property
    def commits(self) -> int:
        """The number of commits of the other cache, and of rounds whose entries were dropped here."""
        return self.of.commits + self._dropped

    def leave(self, active: Sequence[bool]) -> None:
        """Let rows of the other cache go that have ended; see `TreeCache.leave`."""
        self.of.leave(active)

    def end(self) -> None:
        """Close the pass; the other cache clears up what it has left."""
        super().end()
        self.of.written = max(self.of.written, self.speculative)

    def reserve(self, slots: int, used: int | None = None) -> None:
        """Make room in the other cache, and look at its layers; see `TreeCache.reserve`."""
        self.of.reserve(slots, self.longest + self.speculative if used is None else used)
        for number in self.numbers:
            own, theirs = self.tree_layers[number], self.of.tree_layers[number]
            own.keys, own.values = theirs.keys, theirs.values

    def commit(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """Forget what was written through it: only the whole cache commits."""
        if any(counts):
            raise ValueError("some layers of a cache keep nothing by themselves")
        self._dropped += 1
        self._open()
