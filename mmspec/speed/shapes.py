"""The shape of a round's tree, as far as its cost is concerned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import MMSpecError
from ..trees import Chain, DynamicTree, StaticTree, TreeBuilder

Ranks = tuple[int, ...]
"""A node's path: at every level, the rank of the child to take."""


@dataclass(frozen=True)
class Shape:
    """How much is drafted and scored in a round.

    Args:
        kind: `chain`, `static`, `dynamic`, or `block` for a drafter that proposes whole trees at once.
        levels: nodes that the drafter expands in each of its passes: the first one expands the root alone. Empty for
            a `block`.
        nodes: drafted nodes that the target scores, the root not counted.
        depth: levels of drafted nodes; None where they are as many as the drafter's passes.
    """

    kind: str
    levels: tuple[float, ...]
    nodes: float
    depth: float | None = None

    @property
    def passes(self) -> int:
        """Passes of the drafter."""
        return len(self.levels)

    @property
    def deepest(self) -> float:
        """Most tokens that a round can accept."""
        return self.passes if self.depth is None else self.depth

    @classmethod
    def chain(cls, length: int) -> Shape:
        """Of `Chain(length)`."""
        return cls("chain", (1,) * length, length)

    @classmethod
    def static(cls, paths: Iterable[Sequence[int]]) -> Shape:
        """Of `StaticTree(paths)`: inner nodes are expanded, all nodes are scored."""
        nodes = {tuple(path) for path in paths}
        inner = {path[:-1] for path in nodes}
        levels = tuple(sum(len(path) == level for path in inner) for level in range(max(map(len, nodes))))
        return cls("static", levels, len(nodes))

    @classmethod
    def dynamic(cls, depth: int, top_k: int, total: int) -> Shape:
        """Of `DynamicTree(depth, top_k, total)`: `top_k` nodes are expanded per level."""
        candidates = top_k + (depth - 1) * top_k**2
        return cls("dynamic", (1,) + (top_k,) * (depth - 1), min(total - 1, candidates))

    @classmethod
    def of(cls, builder: TreeBuilder) -> Shape:
        """Of a `Chain`, a `StaticTree` or a `DynamicTree`.

        Raises:
            MMSpecError: for a builder whose trees are not the same size in every round.
        """
        if isinstance(builder, Chain):
            return cls.chain(builder.length)
        if isinstance(builder, StaticTree):
            return cls.static(builder.paths)
        if isinstance(builder, DynamicTree):
            return cls.dynamic(builder.depth, builder.top_k, builder.total)
        raise MMSpecError(
            f"the shape of a {type(builder).__name__} is known only when it has drafted: predict with a Chain, a "
            "StaticTree or a DynamicTree, or describe its mean round as a Shape"
        )
