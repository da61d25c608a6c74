"""The shape of a round's tree, as far as its cost is concerned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import MMSpecError
from ..trees import BestFirstTree, Chain, DynamicTree, StaticTree, TreeBuilder

Ranks = tuple[int, ...]
"""Path of a node: the rank of the child to take at every level."""


@dataclass(frozen=True)
class Shape:
    """The numbers of nodes drafted and scored in a round.

    Args:
        kind: `plain` if nothing is drafted, `chain`, `static`, `dynamic`, `best_first`, or `block` for a drafter that
            proposes whole trees at once.
        levels: number of nodes that the drafter expands in each of its passes: the first one expands the root alone.
            Empty for a `block`.
        nodes: number of drafted nodes that the target scores, without the root.
        depth: number of levels of drafted nodes; None where it equals the number of the drafter's passes.
    """

    kind: str
    levels: tuple[float, ...]
    nodes: float
    depth: float | None = None

    @property
    def passes(self) -> int:
        """Number of passes of the drafter."""
        return len(self.levels)

    @property
    def deepest(self) -> float:
        """Largest number of tokens that a round can accept."""
        return self.passes if self.depth is None else self.depth

    @classmethod
    def plain(cls) -> Shape:
        """Return the shape of a round that drafts nothing."""
        return cls("plain", (), 0)

    @classmethod
    def chain(cls, length: int) -> Shape:
        """Return the shape of `Chain(length)`."""
        return cls("chain", (1,) * length, length)

    @classmethod
    def static(cls, paths: Iterable[Sequence[int]]) -> Shape:
        """Return the shape of `StaticTree(paths)`: inner nodes are expanded, all nodes are scored."""
        nodes = {tuple(path) for path in paths}
        inner = {path[:-1] for path in nodes}
        levels = tuple(sum(len(path) == level for path in inner) for level in range(max(map(len, nodes))))
        return cls("static", levels, len(nodes))

    @classmethod
    def dynamic(cls, depth: int, top_k: int, total: int) -> Shape:
        """Return the shape of `DynamicTree(depth, top_k, total)`: `top_k` nodes are expanded per level."""
        candidates = top_k + (depth - 1) * top_k**2
        return cls("dynamic", (1,) + (top_k,) * (depth - 1), min(total - 1, candidates))

    @classmethod
    def best_first(cls, budget: int, depth: int) -> Shape:
        """Return the shape of `BestFirstTree(budget, depth=depth)` from the marginals of one pass."""
        return cls("best_first", (1,), budget, depth)

    @classmethod
    def of(cls, builder: TreeBuilder) -> Shape:
        """Return the shape of a `Chain`, a `StaticTree`, a `DynamicTree`, or a `BestFirstTree` of marginals.

        Raises:
            MMSpecError: if the builder's trees do not have the same size in every round.
        """
        if isinstance(builder, Chain):
            return cls.chain(builder.length)
        if isinstance(builder, StaticTree):
            return cls.static(builder.paths)
        if isinstance(builder, DynamicTree):
            return cls.dynamic(builder.depth, builder.top_k, builder.total)
        if isinstance(builder, BestFirstTree):
            return cls.best_first(builder.budget, builder.depth)
        raise MMSpecError(
            f"the shape of a {type(builder).__name__} is known only when it has drafted: predict with a Chain, a "
            "StaticTree, a DynamicTree or a BestFirstTree, or describe its mean round as a Shape"
        )
