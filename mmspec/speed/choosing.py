"""Choose the fastest shape for given costs and acceptance."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from .acceptance import Acceptance, RankNode
from .costs import Costs
from .prediction import Prediction, predict
from .shapes import Ranks, Shape

STATIC_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BUDGETS = (4, 8, 12, 16, 24, 32, 48, 64)
DYNAMIC_DEPTHS, DYNAMIC_SIZES = (2, 3, 4, 5, 6, 8), (8, 16, 24, 32, 48, 64)
TOP_K = (2, 4, 8)


@dataclass(frozen=True)
class Candidate:
    """A tree that could be drafted, with its prediction.

    Args:
        shape: shape of the tree, which the costs depend on.
        prediction: predicted round with this tree.
        paths: nodes of a static tree.
        settings: depth, top_k and total of a dynamic tree.
        ranked: mean number of accepted tokens that its ranks alone explain.
    """

    shape: Shape
    prediction: Prediction
    paths: tuple[Ranks, ...] = field(default=(), repr=False)
    settings: tuple[int, int, int] | None = None
    ranked: float = 0.0


def candidates(
    costs: Costs,
    acceptance: Acceptance,
    *,
    max_depth: int = 8,
    max_nodes: int = 32,
    kinds: Collection[str] = ("chain", "static", "dynamic"),
) -> list[Candidate]:
    """Return chains, the best static trees, dynamic trees, and the likeliest paths, each with its prediction.

    A static tree of n nodes consists of the n nodes that are most likely reached (the optimum for its size, as in
    Sequoia, arXiv 2402.12374, which finds it by dynamic programming). A dynamic tree is taken to accept as much as the
    best rank tree within its bounds, although it chooses anew each round, by the drafter's own probabilities. So is a
    best-first tree, for drafters whose levels below the first cost no pass (`Drafter.cheap_levels`).

    Args:
        costs: costs on this machine.
        acceptance: acceptance by level and rank.
        max_depth: largest number of levels.
        max_nodes: largest number of drafted nodes.
        kinds: which of the four kinds to return; `best_first` is the fourth.
    """
    found: list[Candidate] = []
    if "chain" in kinds:
        found += _chains(costs, acceptance, min(max_depth, max_nodes))
    if {"static", "dynamic", "best_first"} & set(kinds):
        width = max(map(len, acceptance.chances))
        # Every part of this list is a tree, and so is what it holds within a depth and a width, in the same order.
        # Dynamic trees take what is within their bounds, for which the likeliest of all are not enough.
        nodes = acceptance.likeliest((4 if "dynamic" in kinds else 1) * max_nodes, max_depth, width)
        if "static" in kinds:
            found += _statics(costs, nodes, max_nodes)
        if "dynamic" in kinds:
            found += _dynamics(costs, nodes, max_depth, max_nodes, width)
        if "best_first" in kinds:
            found += _best_firsts(costs, nodes, max_depth, max_nodes)
    return found


def _chains(costs: Costs, acceptance: Acceptance, longest: int) -> Iterator[Candidate]:
    for length in range(1, longest + 1):
        shape, accepted = Shape.chain(length), acceptance.chain(length)
        yield Candidate(shape, predict(costs, shape, accepted), ranked=accepted)


def _statics(costs: Costs, nodes: list[RankNode], max_nodes: int) -> Iterator[Candidate]:
    for size in (size for size in STATIC_SIZES if size <= min(max_nodes, len(nodes))):
        paths = tuple(node.path for node in nodes[:size])
        if all(path[-1] == 0 for path in paths):
            continue  # that is a chain
        shape, accepted = Shape.static(paths), sum(node.probability for node in nodes[:size])
        yield Candidate(shape, predict(costs, shape, accepted), paths, ranked=accepted)


def _dynamics(costs: Costs, nodes: list[RankNode], max_depth: int, max_nodes: int, width: int) -> Iterator[Candidate]:
    for depth in (depth for depth in DYNAMIC_DEPTHS if depth <= max_depth):
        for top_k in (k for k in TOP_K if k <= width):
            bounded = [node.probability for node in nodes if len(node.path) <= depth and max(node.path) < top_k]
            for size in DYNAMIC_SIZES:
                settings = (depth, top_k, size + 1)
                shape = Shape.dynamic(*settings)
                if size > max_nodes or shape.nodes < size:
                    continue
                accepted = sum(bounded[:size])
                yield Candidate(shape, predict(costs, shape, accepted), settings=settings, ranked=accepted)


def _best_firsts(costs: Costs, nodes: list[RankNode], max_depth: int, max_nodes: int) -> Iterator[Candidate]:
    for size in (size for size in BUDGETS if size <= min(max_nodes, len(nodes))):
        shape, accepted = Shape.best_first(size, max_depth), sum(node.probability for node in nodes[:size])
        yield Candidate(shape, predict(costs, shape, accepted), ranked=accepted)


def fastest(found: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the most tokens per second; of equals the smallest."""
    return max(found, key=lambda one: (one.prediction.tokens_per_second, -one.shape.nodes, -one.shape.passes))
