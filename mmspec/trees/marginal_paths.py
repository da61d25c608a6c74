"""The likeliest paths through levels that do not depend on each other: the best tree that marginals give, without a
heap."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SPANS = 3
"""Spans that the levels are split into at most: each takes three operations on the device."""

LEVELS = 4
"""Levels of a span at least: fewer make no table noticeably smaller."""


class Paths(NamedTuple):
    """Nodes of a tree, the root first, then the likeliest first.

    Args:
        parents: `[batch, nodes]` place of each node's parent among the nodes, -1 for the root.
        depth: `[batch, nodes]` distances from the root.
        guesses: `[batch, nodes]` place of each node's token among the `levels * ranks` guesses; `levels * ranks` for
            the root.
    """

    parents: Tensor
    depth: Tensor
    guesses: Tensor


class Span(NamedTuple):
    """Candidates at a few levels below the best paths that the levels above have handed down (the anchors).

    Args:
        begin, end: which candidates of the plan they are.
        deepest: the first one at the deepest level of the span.
        anchors: `[end - begin]` the anchor of each; unused above the first span, where all hang below the root.
        handed: number of paths to the deepest level that are the anchors of the next span; 0 for the last one.
    """

    begin: int
    end: int
    deepest: int
    anchors: Tensor
    handed: int


class Plan(NamedTuple):
    """Everything that does not depend on probabilities.

    Args:
        spans: spans of levels, from the top.
        steps: `[longest span * candidates]` guesses that the steps of each candidate from its anchor are, those of the
            first level first; a guess of probability 1 where it has fewer.
        table: `[candidates + 1, 3]` what `Paths` says of every candidate and of the root, which stands last: the place
            of its parent among all candidates, the root, no node, and the anchors; its depth; its guess.
        places: `[1, candidates + 2]` for every candidate and the root 0, then -1.
        kept: number of candidates that are kept.
        numbers: `[1, kept]` 1, 2, 3 and so on.
        root: `[1, 1]` the number of the root in `table`.
        offsets: `[1, anchors]` first candidate of the level that each anchor comes from.
    """

    spans: tuple[Span, ...]
    steps: Tensor
    table: Tensor
    places: Tensor
    kept: int
    numbers: Tensor
    root: Tensor
    offsets: Tensor


def likeliest(log_probs: Tensor, budget: int) -> Paths:
    """Return the `budget` paths of largest probability through independent levels: a tree, for no path is likelier than
    what it begins with.

    A path takes a guess at the first level, one at the second, and so on, and ends anywhere; its score is the sum of
    the log-probabilities. Of equal scores the shallower path comes first. A heap finds the same paths one by one
    (DDTree, arXiv 2604.12989, algorithm 1). Here nothing is done one by one [OUR]: a path whose steps have the ranks
    a, b, c (from 1) comes behind a + ab + abc - 1 others that are surely as likely, so that few paths can be among the
    best, the same ones whatever the probabilities (for 63 nodes and seven levels about 2 800). They are scored and
    sorted at once. Deep trees are taken in up to three spans of levels, of which the next one begins at the best paths
    of the last one. The number of operations depends on neither the budget nor the batch, and nothing is read back.

    Args:
        log_probs: `[batch, levels, ranks]` log-probabilities of the guesses at every level, falling with the rank; 0 or
            less, and never NaN.
        budget: number of paths, unless there are fewer.
    """
    batch, levels, ranks = log_probs.shape
    plan = _plan(levels, ranks, budget, log_probs.device)
    total = len(plan.table) - 1
    # Rounding leaves sums in order as long as all of them are added up from the top: a sum of a further number that is
    # 0 or less is no larger.
    guesses = functional.pad(log_probs.flatten(1), (0, 1))
    steps = guesses.index_select(1, plan.steps).view(batch, -1, total).cumsum(1)[:, -1]
    found: list[Tensor] = []
    handed: list[Tensor] = []
    anchors = steps
    for span in plan.spans:
        scores = steps[:, span.begin : span.end]
        if found:
            scores = scores + anchors.index_select(1, span.anchors)
        found.append(scores)
        if span.handed:
            best = scores[:, span.deepest - span.begin :].sort(dim=1, descending=True, stable=True)
            anchors = best.values
            handed.append(best.indices[:, : span.handed])
    scores = torch.cat(found, dim=1) if handed else found[0]
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : plan.kept]
    places = plan.places.expand(batch, -1).scatter(1, order, plan.numbers.expand(batch, -1))
    if handed:
        anchors = torch.cat(handed, dim=1) + plan.offsets
        places = torch.cat([places, places.gather(1, anchors)], dim=1)
    above, depth, guesses = plan.table[torch.cat([plan.root.expand(batch, 1), order], dim=1)].unbind(-1)
    return Paths(places.gather(1, above), depth, guesses)


@lru_cache(maxsize=64)
def _plan(levels: int, ranks: int, budget: int, device: torch.device) -> Plan:
    """Return the plan of a tree."""
    length, certain = max(LEVELS, math.ceil(levels / SPANS)), levels * ranks
    spans, parts = [], []
    offsets: list[int] = []
    end, handed = 0, 1
    for top in range(0, levels, length):
        # An anchor and all before it precede every path from it, and one path at least ends at every level above.
        room = (budget - top + 1) // torch.arange(1, handed + 1) - 1 if top else torch.tensor([budget])
        # Below zero until the number of candidates is known: -1 is the root, -3 the first anchor.
        parents = -3 - torch.arange(len(offsets) - handed, len(offsets)) if top else torch.tensor([-1])
        anchors, steps, begin = torch.arange(handed), torch.full((handed, length), certain), end
        for level in range(top, min(top + length, levels)):
            above, rank = _children(room.clamp(max=ranks))
            room = room[above] // (rank + 1) - 1
            guesses, anchors, steps = level * ranks + rank, anchors[above], steps[above]
            steps[:, level - top] = guesses
            depth = torch.full_like(rank, level + 1)
            parts.append((anchors, steps, torch.stack([parents[above], depth, guesses], dim=1)))
            deepest, end = end, end + len(rank)
            parents = torch.arange(deepest, end)
        own = torch.cat([part[0] for part in parts])[begin:].to(device)
        handed = max(min(end - deepest, (budget - level) // 2), 0) if level + 1 < levels else 0
        spans.append(Span(begin, end, deepest, own, handed))
        offsets += [deepest] * handed
        if not handed:
            break
    table = torch.cat([part[2] for part in parts] + [torch.tensor([[end + 1, 0, certain]])])
    table[:, 0] = torch.where(table[:, 0] < 0, end - 1 - table[:, 0], table[:, 0])
    kept = min(budget, end)
    return Plan(
        tuple(spans),
        torch.cat([part[1] for part in parts]).T.flatten().to(device),
        table.to(device),
        torch.tensor([[0] * (end + 1) + [-1]], device=device),
        kept,
        torch.arange(1, kept + 1, device=device)[None],
        torch.tensor([[end]], device=device),
        torch.tensor([offsets], dtype=torch.long, device=device),
    )


def _children(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parent and the rank of every child, from the number of children of every parent."""
    counts = counts.clamp(min=0)
    above = torch.arange(len(counts)).repeat_interleave(counts)
    return above, torch.arange(len(above)) - (counts.cumsum(0) - counts)[above]
