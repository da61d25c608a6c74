"""Static trees: a fixed template of child ranks, the same in every round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..errors import MMSpecError, did_you_mean, shown
from ..tree import DraftTree
from .base import TreeBuilder
from .growth import Growth

# fmt: off
PRESETS: dict[str, tuple[str, ...]] = {
    # The tree that Medusa (arXiv 2401.10774) was released with, `mc_sim_7b_63`: 63 drafted nodes, depth 4.
    "medusa": (
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9",
        "00", "01", "02", "03", "04", "05", "06", "07", "08", "09",
        "10", "11", "12", "13", "14", "15", "16",
        "20", "21", "22", "30", "31", "40", "50", "60", "70", "80", "90",
        "000", "001", "002", "003", "004", "005", "006", "007", "008", "009",
        "010", "011", "012", "020", "021", "030", "040", "050", "060", "070", "100", "101", "200",
        "0000", "0001",
    ),
    # The tree of EAGLE-1 (arXiv 2401.15077): 25 drafted nodes, depth 5.
    "eagle1": (
        "0", "1", "2", "3",
        "00", "01", "02", "10", "11", "20", "21", "30",
        "000", "001", "002", "010", "011", "020", "021", "100",
        "0000", "0001", "0002",
        "00000", "00001",
    ),
    # The tree of V5e-0: five continuations of the root with three each, 20 drafted nodes.
    "v5e0": (
        "0", "1", "2", "3", "4",
        "00", "01", "02", "10", "11", "12", "20", "21", "22", "30", "31", "32", "40", "41", "42",
    ),
}
# fmt: on


class StaticTree(TreeBuilder):
    """A fixed tree, given as paths of child ranks: `(0, 1)` is the second child of the root's first child.

    Ranks are by drafter probability, or by order of draw when children are sampled.

    Args:
        paths: the name of a preset (`"eagle1"`, `"medusa"` or `"v5e0"`), or the paths of all nodes but the root:
            sequences of ranks, or strings of digits. What lies deeper than the drafter drafts is left out.

    Raises:
        MMSpecError: for an unknown preset, a node without its parent, or a rank without the ranks before it.
    """

    def __init__(self, paths: str | Iterable[Sequence[int] | str] = "eagle1"):
        if isinstance(paths, str):
            if paths not in PRESETS:
                raise MMSpecError(f"StaticTree preset {paths!r} is unknown.{did_you_mean(paths, PRESETS)}")
            paths = PRESETS[paths]
        if not isinstance(paths, Iterable):
            raise MMSpecError(
                f"StaticTree: paths={shown(paths)} must be a preset ({', '.join(PRESETS)}) or paths of child ranks, "
                "such as [[0], [0, 0], [1]]"
            )
        nodes = {_ranks(path) for path in paths}
        if not nodes:
            raise MMSpecError("StaticTree needs at least one path, such as [[0], [0, 0], [1]]")
        for node in nodes:
            if len(node) > 1 and node[:-1] not in nodes:
                raise MMSpecError(f"StaticTree: path {list(node)} has no parent; add {list(node[:-1])}")
            if node[-1] > 0 and (*node[:-1], node[-1] - 1) not in nodes:
                raise MMSpecError(f"StaticTree: path {list(node)} skips a rank; add {[*node[:-1], node[-1] - 1]}")
        self.paths = sorted(nodes, key=lambda node: (len(node), node))
        self._levels = self._plan()

    @property
    def max_nodes(self) -> int:
        """The number of drafted nodes."""
        return len(self.paths)

    def _plan(self) -> list[tuple[list[int], int, list[int]]]:
        """Return, per level: which of the level's nodes to expand, how many children each gets, and which of those to
        keep."""
        depth = max(map(len, self.paths))
        levels: list[tuple[list[int], int, list[int]]] = []
        current: list[tuple[int, ...]] = [()]
        for level in range(1, depth + 1):
            below = [path for path in self.paths if len(path) == level]
            inner = [node for node in current if any(path[:-1] == node for path in below)]
            width = 1 + max(path[-1] for path in below)
            levels.append(
                (
                    [current.index(node) for node in inner],
                    width,
                    [inner.index(path[:-1]) * width + path[-1] for path in below],
                )
            )
            current = below
        return levels

    def build(self, growth: Growth) -> DraftTree:
        """Grow the template, as deep as the drafter drafts."""
        nodes, kept = growth.root, [growth.root]
        for expand, width, keep in self._levels[: growth.limit_depth(len(self._levels))]:
            children = growth.expand(nodes[:, expand], width)
            if children.shape[1] < len(expand) * width:
                raise MMSpecError(f"StaticTree asks for {width} children but the drafter's vocabulary is smaller")
            nodes = children[:, keep]
            kept.append(nodes)
        return growth.keep(torch.cat(kept, dim=1))


def _ranks(path: Sequence[int] | str) -> tuple[int, ...]:
    """Return a path as numbers, or refuse it."""
    try:
        ranks = tuple(int(rank) for rank in path)
    except (TypeError, ValueError):
        ranks = ()
    if not ranks or min(ranks) < 0:
        raise MMSpecError(f'StaticTree: {path!r} is not a path of child ranks, such as [0, 1] or "01"')
    return ranks
