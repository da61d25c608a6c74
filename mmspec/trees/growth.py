"""Growth: the candidates of a round while a builder expands them level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..tree import DraftTree
from .proposals import IMPOSSIBLE, Children, Proposals


class Expander(Protocol):
    """A drafter, as far as builders ask about it."""

    max_depth: int | None
    target: Any
    context: Any


@dataclass
class Block:
    """Nodes that a drafter is to expand in one pass.

    Args:
        tokens: `[batch, new]`.
        parents: `[batch, new]` serial number of each node's parent among the expanded nodes (the root has number 0).
        visible: `[batch, new, earlier + new]`, which nodes expanded this round each one sees: its ancestors and
            itself. The root is not counted: it is committed.
        depth: `[batch, new]` distance from the root, minus one.
        sees_all: True where a single node goes on with a chain, known without looking at the tensors.
    """

    tokens: Tensor
    parents: Tensor
    visible: Tensor
    depth: Tensor
    sees_all: bool = False


class Growth:
    """All candidates of a round. Nodes are numbered in the order of their creation, the root is 0.

    Args:
        root: `[batch]` the newest token.
        expand_root: gives `[batch, vocab]` logits after the root.
        expand: gives `[batch, new, vocab]` logits after the nodes of a `Block`.
        proposals: how children are chosen.
        vocabulary: `[draft_vocab]` the tokens that the logits are about, if they are not about all of them.
        vocab_size: of the target; needed with `vocabulary`.
        drafter: who expands, for builders that ask what it costs.
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
        zero = torch.zeros_like(root)[:, None]
        self.root = zero
        self.tokens = root[:, None]
        self.parents = zero - 1
        self.depth = zero
        self._log_probs = torch.zeros(zero.shape, dtype=torch.float32, device=root.device)
        self._path_log_probs = self._log_probs
        self._unasked: list[tuple[Tensor, Callable[[], Tensor]]] = []  # parents of new nodes, and their log_probs
        self._expansions: list[tuple[Tensor, int, Callable[[], Tensor]]] = []  # nodes, children of each, `unusable`
        self.expansion = zero - 1
        self.levels = 0
        self.logits: Tensor | None = None
        """`[batch, nodes, vocab]` of the last expansion, for builders that look at entropy or confidence (over the
        drafter's own vocabulary if that is smaller)."""
        self._expanded = 0
        self._visible = torch.zeros(len(root), 0, 0, dtype=torch.bool, device=root.device)
        self._draft_probs: list[Tensor] = []

    def reach(self, depth: int) -> int:
        """How many of `depth` levels the drafter can draft (`Drafter.max_depth`). Builders stop there."""
        limit = None if self.drafter is None else self.drafter.max_depth
        return depth if limit is None else min(depth, limit)

    def expand(self, nodes: Tensor, count: int) -> Tensor:
        """Run the drafter on `[batch, n]` nodes and add `count` children to each.

        The root comes first, alone; after that any nodes whose parents were expanded, no deeper than `reach`.

        Returns:
            `[batch, n * count]` numbers of the new nodes, those of one parent side by side, the best first.
        """
        batch, n = nodes.shape
        if self.reach(self.levels + 1) <= self.levels:  # looked into only where it may be so: the device is asked
            self._check_reach(nodes)
        self.logits = self._run(nodes)
        tokens, log_probs, probs, unusable = self._choose(self.logits, count, lambda: self._paths(nodes))
        if probs is not None:
            self._draft_probs.append(probs)
        count = tokens.shape[-1]
        self._expansions.append((nodes, count, unusable))
        serial = torch.arange(self._expanded, self._expanded + n, device=nodes.device).expand(batch, n)
        self.expansion = self.expansion.scatter(1, nodes, serial)
        self._expanded += n
        first = self.tokens.shape[1]
        parents = nodes.repeat_interleave(count, dim=1)
        self._unasked.append((parents, log_probs))
        self.tokens = torch.cat([self.tokens, tokens.flatten(1)], dim=1)
        self.parents = torch.cat([self.parents, parents], dim=1)
        self.depth = torch.cat([self.depth, self.depth.gather(1, parents) + 1], dim=1)
        self.expansion = torch.cat([self.expansion, torch.full_like(parents, -1)], dim=1)
        self.levels += 1
        return torch.arange(first, first + n * count, device=nodes.device).expand(batch, n * count)

    def chain(self, length: int) -> DraftTree:
        """The tree of `length` nodes (or as many as `reach` allows), each the best (or the one drawn) child of the one
        before.

        What `expand` does for any tree is done here with less: of a chain everything but the tokens is known.
        """
        length = self.reach(length)
        batch, device = len(self.root), self.root.device
        tokens, likelihoods, probs, unusable = [self.tokens], [self._log_probs], [], []
        logits = self._expand_root()[:, None]
        for level in range(length):
            if level:
                past = torch.full_like(self.root, level - 1)
                visible = torch.ones(batch, 1, level, dtype=torch.bool, device=device)
                logits = self._expand(Block(tokens[-1], past, visible, past, sees_all=True))
            child = self._choose(logits, 1, lambda: [[row] for row in torch.cat(tokens, 1)[:, 1:].tolist()])
            tokens.append(child.tokens[:, 0])
            likelihoods.append(child.log_probs)
            unusable.append(child.unusable)
            if child.probs is not None:
                probs.append(child.probs)
        self.logits, self.levels = logits, length
        steps = torch.arange(length + 1, device=device)
        return DraftTree.chain(
            torch.cat(tokens, dim=1),
            likelihood=lambda: torch.cat([likelihoods[0], *(one()[:, 0] for one in likelihoods[1:])], dim=1),
            expansion=torch.where(steps < length, steps, -1).expand(batch, -1),
            draft_probs=torch.cat(probs, dim=1) if probs else None,
            # What stands behind an unusable guess is none either.
            unusable=lambda: (torch.cat([one() for one in unusable], dim=1).cumsum(-1) > 0).sum(-1),
            grown=True,
        )

    def _choose(self, logits: Tensor, count: int, paths: Callable) -> Children:
        """`Proposals.choose`, in the target's tokens."""
        vocabulary = self._vocabulary
        if vocabulary is not None and self._proposals.sampled:  # q is a distribution over the target's tokens
            everything = logits.new_full((*logits.shape[:-1], self._vocab_size), IMPOSSIBLE)
            logits, vocabulary = everything.index_copy(-1, vocabulary, logits), None
        children = self._proposals.choose(logits, count, paths, vocabulary)
        return children if vocabulary is None else children._replace(tokens=vocabulary[children.tokens])

    @property
    def log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probability of each node given its parent."""
        self._ask()
        return self._log_probs

    @property
    def path_log_probs(self) -> Tensor:
        """`[batch, nodes]` log-probability of the whole path to each node."""
        self._ask()
        return self._path_log_probs

    def _ask(self) -> None:
        """Normalise the logits of all nodes of which that was not asked yet."""
        for parents, log_probs in self._unasked:
            new = log_probs().flatten(1)
            path = self._path_log_probs.gather(1, parents) + new
            self._log_probs = torch.cat([self._log_probs, new], dim=1)
            self._path_log_probs = torch.cat([self._path_log_probs, path], dim=1)
        self._unasked.clear()

    def _unusable(self) -> Tensor:
        """`[batch]` candidates whose own logits, or those of an ancestor, are no distribution."""
        found = torch.zeros_like(self.root, dtype=torch.bool)
        for nodes, count, unusable in self._expansions:
            spoilt = found.gather(1, nodes) | unusable()
            found = torch.cat([found, spoilt.repeat_interleave(count, dim=1)], dim=1)
        return found.sum(-1)

    def keep(self, nodes: Tensor, valid: Tensor | None = None) -> DraftTree:
        """The tree of the `[batch, n]` nodes given (ascending, the root first, ancestors included).

        Rows may keep different numbers of nodes: `valid`, `[batch, n]`, is then False behind a row's own, whatever
        numbers stand there.
        """
        place = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
        if valid is not None:  # padding repeats the root, below the root
            nodes, place = nodes.masked_fill(~valid, 0), place.masked_fill(~valid, 0)
        new_index = torch.full_like(self.tokens, -1).scatter_(1, nodes, place)
        parents = new_index.gather(1, self.parents.gather(1, nodes).clamp(min=0))
        # A builder of somebody's may have cut the parent of what it keeps. To ask here would wait for the device.
        lost = (parents < 0) | (parents >= torch.arange(nodes.shape[1], device=nodes.device))
        lost[:, 0] = nodes[:, 0] != 0
        parents[:, 0] = -1
        depth, fields = self.depth.gather(1, nodes), self._fields(nodes)
        if valid is not None:
            depth = depth.masked_fill(~valid, 1)
            lost &= valid
            fields["expansion"] = fields["expansion"].masked_fill(~valid, -1)
        return DraftTree(
            tokens=self.tokens.gather(1, nodes),
            parents=parents,
            max_depth=self.levels,
            valid=valid,
            lost=lost,
            _cache={"depth": depth},
            **fields,
        )

    def keep_all(self) -> DraftTree:
        """The tree of all nodes."""
        nodes = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        if nodes.shape[1] == self.levels + 1:  # one node per level
            return DraftTree.chain(self.tokens, **self._fields(nodes))
        return self.keep(nodes)

    def _fields(self, nodes: Tensor) -> dict:
        return {
            "likelihood": lambda: self.log_probs.gather(1, nodes),
            "expansion": self.expansion.gather(1, nodes),
            "draft_probs": torch.cat(self._draft_probs, dim=1) if self._draft_probs else None,
            "unusable": self._unusable,
            "grown": True,
        }

    def _run(self, nodes: Tensor) -> Tensor:
        if self._expanded == 0:
            return self._expand_root()[:, None]
        batch, n = nodes.shape
        parents = self.expansion.gather(1, self.parents.gather(1, nodes))
        # A node sees what its parent sees, and itself; children of the root (number 0) see only themselves.
        earlier = torch.cat([self._visible.new_zeros(batch, 1, self._visible.shape[2]), self._visible], dim=1)
        inherited = earlier.gather(1, parents[..., None].expand(-1, -1, earlier.shape[2]))
        itself = torch.eye(n, dtype=torch.bool, device=nodes.device).expand(batch, n, n)
        visible = torch.cat([inherited, itself], dim=2)
        older = torch.cat([self._visible, self._visible.new_zeros(batch, self._visible.shape[1], n)], dim=2)
        self._visible = torch.cat([older, visible], dim=1)
        return self._expand(Block(self.tokens.gather(1, nodes), parents, visible, self.depth.gather(1, nodes) - 1))

    def _check_reach(self, nodes: Tensor) -> None:
        deepest = int(self.depth.gather(1, nodes).max())
        if self.reach(deepest + 1) <= deepest:
            raise MMSpecError(
                f"{type(self.drafter).__name__} drafts {self.drafter.max_depth} levels, but the tree asks for level "
                f"{deepest + 1}: a builder goes no deeper than growth.reach(depth)"
            )

    def _paths(self, nodes: Tensor) -> list[list[list[int]]]:
        """Per row and node, the drafted tokens from below the root down to the node."""
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
