"""The candidates of a round: all nodes that were added so far, and the tree of those that are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from ..tree import DraftTree
from .proposals import IMPOSSIBLE, Children, doubt


class Level:
    """The nodes that one call of `Growth.expand` has added.

    Args:
        first: number of the first new node.
        nodes: `[batch, n]` the nodes that were expanded.
        visible: `[batch, n, expanded]`, which expanded nodes (the root not counted) each of them sees.
        below: depth of all new nodes; None if that is not known without looking at tensors.
        depth: `[batch, n]` depth of the children of each expanded node.
        children: the new nodes.
        above: function that gives `[batch, n]` log-probabilities of the whole paths to the expanded nodes.
    """

    def __init__(
        self,
        first: int,
        nodes: Tensor,
        visible: Tensor,
        below: int | None,
        depth: Tensor,
        children: Children,
        above: Callable[[], Tensor],
    ):
        self.first, self.nodes, self.visible, self.below, self.children = first, nodes, visible, below, children
        self.tokens, self.count = children.tokens.flatten(1), children.tokens.shape[-1]
        self.depth = depth[..., None].expand(-1, -1, self.count).flatten(1)
        self._above = above

    @property
    def end(self) -> int:
        """The number behind that of the last new node."""
        return self.first + self.tokens.shape[1]

    @property
    def parents(self) -> Tensor:
        """`[batch, nodes]` numbers of the parents of the new nodes."""
        return self.nodes.repeat_interleave(self.count, dim=1)

    @property
    def log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probabilities of the new nodes given their parents."""
        return cleaned(self._log_probs).flatten(1)

    @cached_property
    def path_log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probabilities of the whole paths to the new nodes."""
        return cleaned(self.path)

    @cached_property
    def path(self) -> Tensor:
        """`[batch, nodes]` log-probabilities of the whole paths, NaN where logits on the path are no distribution."""
        return (self._above()[..., None] + self._log_probs).flatten(1)

    @cached_property
    def _log_probs(self) -> Tensor:
        """`[batch, expanded, children]` log-probabilities given the parents, NaN where the logits are no
        distribution."""
        return self.children.log_probs()


class Candidates:
    """All nodes of a round, in the order in which they were added; the root has number 0.

    Args:
        root: `[batch]` newest token of every row.
    """

    def __init__(self, root: Tensor):
        self._root = root[:, None]
        self._grown: list[Level] = []
        self._known: dict[str, tuple[int, Tensor]] = {}

    @property
    def levels(self) -> int:
        """The number of expansions so far."""
        return len(self._grown)

    @cached_property
    def root(self) -> Tensor:
        """`[batch, 1]` the number of the root, 0."""
        return torch.zeros_like(self._root)

    # All nodes, `[batch, nodes]`; put together when somebody asks.

    @property
    def tokens(self) -> Tensor:
        """`[batch, nodes]` token ids."""
        return self._all("tokens", self._root, lambda level: level.tokens)

    @property
    def parents(self) -> Tensor:
        """`[batch, nodes]` numbers of the parents, -1 for the root."""
        return self._all("parents", self.root - 1, lambda level: level.parents)

    @property
    def depth(self) -> Tensor:
        """`[batch, nodes]` distances from the root."""
        return self._all("depth", self.root, lambda level: level.depth)

    @property
    def log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probability of each node given its parent."""
        return self._all("log_probs", self._certain, lambda level: level.log_probs)

    @property
    def path_log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probability of the whole path to each node."""
        return self._all("path_log_probs", self._certain, lambda level: level.path_log_probs)

    @property
    def newest_path_log_probs(self) -> Tensor:
        """`[batch, new]` log-probability of the whole path to each node that the last call of `expand` has added."""
        return self._grown[-1].path_log_probs

    @property
    def expansion(self) -> Tensor:
        """`[batch, nodes]` the serial number of each node that was expanded, -1 of all others."""
        none = torch.full_like(self.tokens, -1)
        if not self._grown:
            return none
        expanded = torch.cat([level.nodes for level in self._grown], dim=1)
        return none.scatter_(1, expanded, torch.arange(expanded.shape[1], device=none.device).expand_as(expanded))

    @cached_property
    def _certain(self) -> Tensor:
        """`[batch, 1]` log-probability of the root, 0."""
        return torch.zeros(self._root.shape, dtype=torch.float32, device=self._root.device)

    def _all(self, name: str, first: Tensor, of: Callable[[Level], Tensor]) -> Tensor:
        """Return a property of the root and of every level, along the nodes."""
        count, values = self._known.get(name, (0, first))
        if count < self.levels:
            values = torch.cat([values, *map(of, self._grown[count:])], dim=1)
            self._known[name] = self.levels, values
        return values

    @property
    def _visible(self) -> Tensor:
        """`[batch, expanded, expanded - 1]`, which expanded nodes (the root not counted) each of them sees."""
        count, seen = self._known.get("visible", (1, self._grown[0].visible))
        for level in self._grown[count:]:
            seen = torch.cat([functional.pad(seen, (0, level.nodes.shape[1])), level.visible], dim=1)
        self._known["visible"] = self.levels, seen
        return seen

    def keep(self, nodes: Tensor, valid: Tensor | None = None) -> DraftTree:
        """Return the tree of the `[batch, n]` nodes given (ascending, the root first, ancestors included).

        Rows may keep different numbers of nodes: `valid`, `[batch, n]`, is then False behind a row's own, whatever
        numbers stand there.
        """
        steps = torch.arange(nodes.shape[1], device=nodes.device)
        place = steps.expand_as(nodes)
        if valid is not None:  # padding repeats the root, below the root
            nodes, place = nodes.masked_fill(~valid, 0), place.masked_fill(~valid, 0)
        table = torch.stack([self.tokens, self.parents, self.depth, self.expansion])
        tokens, parents, depth, expansion = table.gather(2, nodes.expand(4, -1, -1))
        parents = torch.full_like(self.tokens, -1).scatter_(1, nodes, place).gather(1, parents.clamp(min=0))
        # A builder of somebody's may have cut the parent of what it keeps. To ask here would wait for the device.
        lost = (parents < 0) | (parents >= steps)
        lost[:, 0] = nodes[:, 0] != 0
        parents[:, 0] = -1
        if valid is not None:
            depth, expansion = depth.masked_fill(~valid, 1), expansion.masked_fill(~valid, -1)
            lost &= valid
        return DraftTree(
            tokens,
            parents,
            max_depth=self.levels,
            valid=valid,
            lost=lost,
            _cache={"depth": depth},
            **self._fields(nodes, expansion),
        )

    def keep_likeliest(self, count: int, wanted: Tensor) -> DraftTree:
        """Return the tree of the `count` nodes below the root whose paths are likeliest, of rows that have so many.

        The host reads one number per row.

        Args:
            count: number of nodes at most.
            wanted: `[batch, nodes]` True for all nodes that may be kept, whose parents are among them.
        """
        end = wanted.shape[1]
        # A stable sort puts a parent before a child of equal probability (one that the drafter is certain of).
        scores = self.path_log_probs.masked_fill(~wanted, IMPOSSIBLE)[:, 1:]
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count] + 1
        kept = wanted.gather(1, order)
        counts = kept.sum(-1).tolist()
        nodes = order.masked_fill(~kept, end).sort(-1).values[:, : max(counts)]
        nodes = torch.cat([self.root, nodes], dim=1)
        return self.keep(nodes, None if min(counts) == max(counts) else nodes < end)

    def keep_all(self) -> DraftTree:
        """Return the tree of all nodes."""
        nodes = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        if nodes.shape[1] == self.levels + 1:  # one node per level
            return DraftTree.chain(self.tokens, **self._fields(nodes, self.expansion))
        return self.keep(nodes)

    def _fields(self, nodes: Tensor, expansion: Tensor) -> dict:
        """Return the further fields of the tree of these nodes."""
        return {
            "likelihood": lambda: self.log_probs.gather(1, nodes),
            "expansion": expansion,
            "draft_probs": drawn_from([level.children for level in self._grown]),
            "unusable": self._unusable if self._grown else None,
            "grown": True,
        }

    def _unusable(self) -> Tensor:
        """Return `[batch, candidates]`, True where the logits that a candidate, or an ancestor of it, was chosen from
        are no distribution."""
        if "path" in vars(self._grown[-1]):  # then those of all levels are known
            return torch.cat([level.path for level in self._grown], dim=1).isnan()
        own = doubt(torch.cat([level.children.best for level in self._grown], dim=1))
        spoilt = (own[:, :1] + torch.where(self._visible, own[:, None, 1:], 0.0).sum(-1)).isnan()
        parts = spoilt.split([level.nodes.shape[1] for level in self._grown], dim=1)
        counts = (level.count for level in self._grown)
        return torch.cat(
            [part.repeat_interleave(count, dim=1) for part, count in zip(parts, counts, strict=True)], dim=1
        )

    def _paths(self, nodes: Tensor) -> list[list[list[int]]]:
        """Return, per row and node, the drafted tokens from below the root down to the node."""
        result = []
        for tokens, parents, wanted in zip(self.tokens.tolist(), self.parents.tolist(), nodes.tolist(), strict=True):
            row = []
            for node in wanted:
                path = []
                while node:
                    path.append(tokens[node])
                    node = parents[node]
                row.append(path[::-1])
            result.append(row)
        return result


def drawn_from(levels: list[Children]) -> Tensor | None:
    """Return the distributions that children were drawn from, `[batch, nodes, vocab]`; None if they were not drawn."""
    probs = [children.probs for children in levels if children.probs is not None]
    return torch.cat(probs, dim=1) if probs else None


def cleaned(log_probs: Tensor) -> Tensor:
    """Return log-probabilities with -inf in place of NaN."""
    return log_probs.nan_to_num(nan=IMPOSSIBLE, neginf=IMPOSSIBLE)
