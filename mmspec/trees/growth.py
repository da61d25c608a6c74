"""Growth: the candidates of a round while a builder expands them level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MMSpecError
from ..models.slots import pick
from ..tree import DraftTree
from .proposals import IMPOSSIBLE, Children, Proposals, doubt


class Expander(Protocol):
    """A drafter, as far as builders ask about it."""

    max_depth: int | None
    target: Any
    context: Any


@dataclass
class Block:
    """Nodes that a drafter is to expand in one pass.

    Args:
        tokens: `[batch, new]` token ids.
        parents: `[batch, new]` serial number of each node's parent among the expanded nodes (the root has number 0).
        visible: `[batch, new, earlier + new]`, which nodes expanded this round each one sees: its ancestors and
            itself. The root is not counted: it is committed.
        depth: `[batch, new]` distance from the root, minus one.
        extends_chain: True where a single node goes on with a chain, known without looking at the tensors.
        level: the depth of all nodes, if it is known without looking at the tensors.
    """

    tokens: Tensor
    parents: Tensor
    visible: Tensor
    depth: Tensor
    extends_chain: bool = False
    level: int | None = None

    @property
    def step(self) -> int | Tensor:
        """The distance from the root: a number, or `[batch, new, 1]`."""
        return self.depth[..., None] + 1 if self.level is None else self.level + 1


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


class Growth:
    """All candidates of a round. Nodes are numbered in the order of their creation, the root is 0.

    Args:
        root: `[batch]` the newest token.
        expand_root: function that gives `[batch, vocab]` logits after the root.
        expand: function that gives `[batch, new, vocab]` logits after the nodes of a `Block`.
        proposals: the way in which children are chosen.
        vocabulary: `[draft_vocab]` the tokens that the logits are about, if they are not about all of them.
        vocab_size: size of the target's vocabulary; needed with `vocabulary`.
        drafter: the drafter that expands, for builders that ask what it costs.
    """

    def __init__(
        self,
        root: Tensor,
        expand_root: Callable[[], Tensor],
        expand: Callable[[Block], Tensor],
        proposals: Proposals,
        vocabulary: Tensor | None = None,
        vocab_size: int | None = None,
        drafter: Expander | None = None,
    ):
        self.drafter = drafter
        self._expand_root, self._expand, self._proposals = expand_root, expand, proposals
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._root = root[:, None]
        self._grown: list[Level] = []
        self._known: dict[str, tuple[int, Tensor]] = {}
        self.logits: Tensor
        """`[batch, nodes, vocab]` logits of the last expansion, for builders that look at entropy or confidence (over
        the drafter's own vocabulary if that is smaller). Nothing is there before the first one."""
        self._eyes: dict[int, Tensor] = {}
        self._numbers = torch.zeros(0)

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

    def _all(self, name: str, first: Tensor, of: Callable[[Level], Tensor], levels: int | None = None) -> Tensor:
        """Return a property of the root and of every level (or of so many levels at least), along the nodes."""
        levels = self.levels if levels is None else levels
        count, values = self._known.get(name, (0, first))
        if count < levels:
            values = torch.cat([values, *map(of, self._grown[count:levels])], dim=1)
            self._known[name] = levels, values
        return values

    def limit_depth(self, depth: int) -> int:
        """Return the number of levels, out of `depth`, that the drafter can draft (`Drafter.max_depth`). Builders stop
        there."""
        limit = None if self.drafter is None else self.drafter.max_depth
        return depth if limit is None else min(depth, limit)

    def expand(self, nodes: Tensor, count: int, places: Tensor | None = None) -> Tensor:
        """Run the drafter on `[batch, n]` nodes and add `count` children to each.

        The root comes first, alone; after that any nodes whose parents were expanded, no deeper than `limit_depth`.

        Args:
            nodes: numbers of the nodes to expand.
            count: number of children per node.
            places: `[batch, n]` places of the nodes among those that the last call has added, if all of them do:
                less has to be looked up then.

        Returns:
            `[batch, n * count]` numbers of the new nodes, those of one parent side by side, the best first.
        """
        if self.limit_depth(self.levels + 1) <= self.levels:  # looked into only where it may be so: the device is asked
            self._check_depth(nodes)
        first, levels = (self._grown[-1].end, self.levels) if self._grown else (1, 0)
        below: int | None
        if not self._grown:
            logits, below = self._expand_root()[:, None], 1
            visible = torch.zeros(len(nodes), 1, 0, dtype=torch.bool, device=nodes.device)
            depth = self._number(1, nodes)
            above = lambda: self._certain  # noqa: E731
        elif places is not None:
            last = self._grown[-1]
            block = self._block_below(last, places)
            logits, visible = self._expand(block), block.visible
            below = None if block.level is None else block.level + 2
            depth = block.depth + 2 if below is None else self._number(below, nodes)
            above = lambda: last.path.gather(1, places)  # noqa: E731
        else:
            block = self._block_of(nodes)
            logits, visible, below, depth = self._expand(block), block.visible, None, block.depth + 2
            paths = lambda level: level.path  # noqa: E731
            above = lambda: self._all("path", self._certain, paths, levels).gather(1, nodes)  # noqa: E731
        self.logits = logits
        children = self._choose(logits, count, lambda: self._paths(nodes))
        self._grown.append(Level(first, nodes, visible, below, depth, children, above))
        return torch.arange(first, self._grown[-1].end, device=nodes.device).expand(len(nodes), -1)

    def _block_below(self, last: Level, places: Tensor) -> Block:
        """Return the block of some of the nodes that were added last."""
        parents = places // last.count
        inherited = pick(last.visible, parents)
        level = None if last.below is None else last.below - 1
        depth = last.depth.gather(1, places) - 1 if level is None else self._number(level, places)
        serial = sum(one.nodes.shape[1] for one in self._grown[:-1])
        return Block(
            last.tokens.gather(1, places),
            parents + serial if serial else parents,
            torch.cat([inherited, self._itself(places)], dim=2),
            depth,
            level=level,
        )

    def _block_of(self, nodes: Tensor) -> Block:
        """Return the block of any nodes whose parents were expanded."""
        parents = self.expansion.gather(1, self.parents.gather(1, nodes))
        # A node sees what its parent sees, and itself; children of the root (number 0) see only themselves.
        earlier = self._visible
        inherited = pick(earlier, parents)
        visible = torch.cat([inherited, self._itself(nodes)], dim=2)
        return Block(self.tokens.gather(1, nodes), parents, visible, self.depth.gather(1, nodes) - 1)

    @property
    def _visible(self) -> Tensor:
        """`[batch, expanded, expanded - 1]`, which expanded nodes (the root not counted) each of them sees."""
        count, seen = self._known.get("visible", (1, self._grown[0].visible))
        for level in self._grown[count:]:
            seen = torch.cat([functional.pad(seen, (0, level.nodes.shape[1])), level.visible], dim=1)
        self._known["visible"] = self.levels, seen
        return seen

    def _itself(self, nodes: Tensor) -> Tensor:
        """Return `[batch, n, n]`, True where a node of a block sees itself."""
        batch, n = nodes.shape
        if n not in self._eyes:
            self._eyes[n] = torch.eye(n, dtype=torch.bool, device=nodes.device)
        return self._eyes[n].expand(batch, n, n)

    def _number(self, number: int, like: Tensor) -> Tensor:
        """Return a tensor of this shape that holds a number everywhere."""
        if len(self._numbers) <= number:
            self._numbers = torch.arange(2 * number + 16, device=like.device)
        return self._numbers[number].expand_as(like)

    def chain(self, length: int, go_on: Callable[[list[float]], bool] | None = None) -> DraftTree:
        """Return the tree of `length` nodes (or as many as `limit_depth` allows), each the best (or the one drawn)
        child of the one before.

        What `expand` does for any tree is done here with less: of a chain everything but the tokens is known.

        Args:
            length: number of nodes at most.
            go_on: function that is told, after every level, each row's probability of the newest token given its
                parent (0 where the logits are no distribution), and returns False to end the chain there. The host
                waits for these numbers. Without it nothing is waited for.
        """
        length = self.limit_depth(length)
        batch, device = len(self._root), self._root.device
        steps = torch.arange(length + 1, device=device)
        everything = torch.ones(batch, 1, length, dtype=torch.bool, device=device)
        tokens, chosen = [self._root], []
        logits = self._expand_root()[:, None]
        for level in range(length):
            if level:
                past = steps[level - 1].expand(batch, 1)
                block = Block(tokens[-1], past, everything[..., :level], past, extends_chain=True, level=level - 1)
                logits = self._expand(block)
            child = self._choose(logits, 1, lambda: [[row] for row in torch.cat(tokens, 1)[:, 1:].tolist()])
            tokens.append(child.tokens[:, 0])
            chosen.append(child)
            if go_on is not None and not go_on(cleaned(child.log_probs()[:, 0, 0]).exp().tolist()):
                break
        self.logits = logits
        length, steps = len(chosen), steps[: len(chosen) + 1]
        return DraftTree.chain(
            torch.cat(tokens, dim=1),
            likelihood=lambda: torch.cat([self._certain, *(cleaned(one.log_probs()[:, 0]) for one in chosen)], dim=1),
            expansion=torch.where(steps < length, steps, -1).expand(batch, -1),
            draft_probs=_along(chosen),
            # What stands behind an unusable guess is none either.
            unusable=lambda: doubt(torch.cat([one.best for one in chosen], dim=1)).cumsum(-1).isnan(),
            grown=True,
        )

    def nothing(self) -> DraftTree:
        """Return the root alone. The drafter is not asked, and reads the tokens of the round in a later one."""
        return DraftTree.root_only(self._root[:, 0])

    def _choose(self, logits: Tensor, count: int, paths: Callable) -> Children:
        """Choose children as `Proposals.choose` does, in the target's tokens."""
        vocabulary = self._vocabulary
        if vocabulary is not None and self._proposals.sampled:  # q is a distribution over the target's tokens
            assert self._vocab_size is not None, "a reduced vocabulary needs vocab_size"
            everything = logits.new_full((*logits.shape[:-1], self._vocab_size), IMPOSSIBLE)
            logits, vocabulary = everything.index_copy(-1, vocabulary, logits), None
        children = self._proposals.choose(logits, count, paths, vocabulary)
        return children if vocabulary is None else children._replace(tokens=vocabulary[children.tokens])

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
            "draft_probs": _along([level.children for level in self._grown]),
            "unusable": self._unusable if self._grown else None,
            "grown": True,
        }

    def _check_depth(self, nodes: Tensor) -> None:
        """Refuse to expand nodes deeper than the drafter drafts."""
        deepest = int(self.depth.gather(1, nodes).max())
        if self.drafter is not None and self.limit_depth(deepest + 1) <= deepest:
            raise MMSpecError(
                f"{type(self.drafter).__name__} drafts {self.drafter.max_depth} levels, but the tree asks for level "
                f"{deepest + 1}: a builder goes no deeper than growth.limit_depth(depth)"
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


def _along(levels: list[Children]) -> Tensor | None:
    """Return the distributions that children were drawn from, `[batch, nodes, vocab]`; None if they were not drawn."""
    probs = [children.probs for children in levels if children.probs is not None]
    return torch.cat(probs, dim=1) if probs else None


def cleaned(log_probs: Tensor) -> Tensor:
    """Return log-probabilities with -inf in place of NaN."""
    return log_probs.nan_to_num(nan=IMPOSSIBLE, neginf=IMPOSSIBLE)
