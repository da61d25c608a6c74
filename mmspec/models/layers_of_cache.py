"""LayersOfCache: the first layers of a cache, for passes that run through no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from .cache import TreeCache, TreeCacheLayer


class LayersOfCache(TreeCache):
    """The first layers of another cache: its storage and its committed entries, without a copy.

    Entries written through it are speculative until the round ends; the other cache overwrites them with its own when
    it reads the same tokens, and is the one that commits.

    Args:
        whole: the other cache.
        count: how many of its layers.
    """

    def __init__(self, whole: TreeCache, count: int):
        self.tree_layers = [TreeCacheLayer(self) for _ in range(count)]
        Cache.__init__(self, layers=[*self.tree_layers])
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

    def reserve(self, slots: int, used: int | None = None) -> None:
        """Make room in the other cache, and look at its layers; see `TreeCache.reserve`."""
        self.of.reserve(slots, self.longest + self.speculative if used is None else used)
        for own, theirs in zip(self.tree_layers, self.of.tree_layers, strict=False):
            own.keys, own.values = theirs.keys, theirs.values

    def commit(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """Forget what was written through it: only the whole cache commits."""
        if any(counts):
            raise ValueError("the first layers of a cache keep nothing by themselves")
        self._dropped += 1
        self._open()
