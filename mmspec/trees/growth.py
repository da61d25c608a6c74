"""Growth: the candidates of a round while a builder expands them level by level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..models.slots import pick
from ..models.transfer import to_device
from ..tree import DraftTree
from .candidates import Candidates, Level, cleaned, drawn_from
from .marginal_paths import Paths
from .proposals import IMPOSSIBLE, Children, Proposals, doubt, only_child_log_probs


class Expander(Protocol):
    """A drafter, as far as builders ask about it."""

    max_depth: int | None
    independent: bool
    cheap_levels: bool
    target: Any
    context: Any

    def marginals(self, depth: int) -> Tensor:
        """Return `[batch, depth, vocab]` logits of all depths, after `expand_root`."""

    def confidence(self) -> Tensor | None:
        """Return `[batch, new]` estimates for the nodes of the newest pass, or None."""


TOGETHER = 4
"""Levels of a chain that are drafted before their probabilities are read, where they cost no pass: to read them one by
one would cost more than a level too many."""


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


class Growth(Candidates):
    """The candidates of a round, to which a drafter's passes add children.

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
        super().__init__(root)
        self.drafter = drafter
        self._expand_root, self._expand, self._proposals = expand_root, expand, proposals
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self.logits: Tensor
        """`[batch, nodes, vocab]` logits of the last expansion, for builders that look at entropy or confidence (over
        the drafter's own vocabulary if that is smaller). Nothing is there before the first one."""
        self._eyes: dict[int, Tensor] = {}
        self._numbers = torch.zeros(0)

    def close(self) -> None:
        """Let the drafter go, once the tree is built: the tree may ask for what is known of the candidates, and would
        keep the drafter, and all that it has read, in memory as long as itself."""
        self.drafter, self._expand_root, self._expand = None, _ended, _ended
        self.__dict__.pop("logits", None)

    def limit_depth(self, depth: int) -> int:
        """Return the number of levels, out of `depth`, that the drafter can draft (`Drafter.max_depth`). Builders stop
        there."""
        limit = None if self.drafter is None else self.drafter.max_depth
        return depth if limit is None else min(depth, limit)

    @property
    def independent(self) -> bool:
        """True if the drafter says that all nodes of a depth have one distribution, see `marginals`."""
        return self.drafter is not None and self.drafter.independent

    def temper(self) -> None:
        """Value children by the drafter's logits divided by the request's temperature, if that is above 0."""
        pipeline = self._proposals.pipeline
        if pipeline is not None and not pipeline.greedy:
            self._proposals = replace(self._proposals, divisor=pipeline.temperature)

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
        first = self._grown[-1].end if self._grown else 1
        below: int | None
        certain = self._certain  # no level refers to this object: as a circle they would outlive the round
        if not self._grown:
            logits, below = self._expand_root()[:, None], 1
            visible = torch.zeros(len(nodes), 1, 0, dtype=torch.bool, device=nodes.device)
            depth = self._number(1, nodes)
            above = lambda: certain  # noqa: E731
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
            earlier = self._grown[:]
            above = lambda: torch.cat([certain, *(one.path for one in earlier)], dim=1).gather(1, nodes)  # noqa: E731
        self.logits = logits
        children = self._choose(logits, count, lambda: self._paths(nodes))
        self._grown.append(Level(first, nodes, visible, below, depth, children, above))
        return torch.arange(first, self._grown[-1].end, device=nodes.device).expand(len(nodes), -1)

    def _check_depth(self, nodes: Tensor) -> None:
        """Refuse to expand nodes deeper than the drafter drafts."""
        deepest = int(self.depth.gather(1, nodes).max())
        if self.drafter is not None and self.limit_depth(deepest + 1) <= deepest:
            raise MMSpecError(
                f"{type(self.drafter).__name__} drafts {self.drafter.max_depth} levels, but the tree asks for level "
                f"{deepest + 1}: a builder goes no deeper than growth.limit_depth(depth)"
            )

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

    def chain(
        self,
        length: int,
        go_on: Callable[[list[float]], bool] | None = None,
        cut: Callable[[list[list[float]]], list[int]] | None = None,
    ) -> DraftTree:
        """Return the tree of `length` nodes (or as many as `limit_depth` allows), each the best (or the one drawn)
        child of the one before.

        What `expand` does for any tree is done here with less: of a chain everything but the tokens is known.

        Args:
            length: number of nodes at most.
            go_on: function that is told, level by level, each row's probability of a token given its parent (0 where
                the logits are no distribution), and returns False to end the chain there. The host waits for these
                numbers, after every level, or after several that cost no pass. Without it nothing is waited for.
            cut: function that is told, once the whole chain is drafted, each row's estimates of its guesses
                (`StepDrafter.confidence`), and returns how many of them each row keeps, one row at least one. Of a
                drafter that makes estimates nothing else is asked; of others nothing of this kind.
        """
        length = self.limit_depth(length)
        logits = self._expand_root()[:, None]
        if self.independent and self._proposals.prefix_free and (cut is None or self._sure() is None):
            return self._chain_of_marginals(length, go_on)
        batch, device = len(self._root), self._root.device
        steps = torch.arange(length + 1, device=device)
        everything = torch.ones(batch, 1, length, dtype=torch.bool, device=device)
        tokens, chosen, sure = [self._root], [], []
        told, together = 0, TOGETHER if self.drafter is not None and self.drafter.cheap_levels else 1
        for level in range(length):
            if level:
                past = steps[level - 1].expand(batch, 1)
                block = Block(tokens[-1], past, everything[..., :level], past, extends_chain=True, level=level - 1)
                logits = self._expand(block)
            if cut is not None and (own := self._sure()) is not None:
                sure.append(own)  # which cannot have seen the guess that follows
            child = self._choose(logits, 1, lambda: [[row] for row in torch.cat(tokens, 1)[:, 1:].tolist()])
            tokens.append(child.tokens[:, 0])
            chosen.append(child)
            if go_on is None or sure or (len(chosen) % together and len(chosen) < length):
                continue
            ended = _end_of(chosen[told:], go_on)
            if ended is not None:
                del chosen[told + ended :]
                break
            told = len(chosen)
        self.logits = logits
        valid = None
        if sure:
            assert cut is not None
            lengths = cut(torch.cat(sure, dim=1).tolist())
            chosen = chosen[: max(lengths)]
            if min(lengths) < max(lengths):
                valid = steps[: len(chosen) + 1] <= to_device([[kept] for kept in lengths], device)
        length, steps = len(chosen), steps[: len(chosen) + 1]
        return DraftTree.chain(
            torch.cat(tokens[: length + 1], dim=1),
            valid,
            likelihood=lambda: torch.cat([self._certain, *(cleaned(one.log_probs()[:, 0]) for one in chosen)], dim=1),
            expansion=torch.where(steps < length, steps, -1).expand(batch, -1),
            draft_probs=drawn_from(chosen),
            # What stands behind an unusable guess is none either.
            unusable=lambda: doubt(torch.cat([one.best for one in chosen], dim=1)).cumsum(-1).isnan(),
            grown=True,
        )

    def _sure(self) -> Tensor | None:
        """Return the drafter's own estimates for the nodes of its newest pass; None without any."""
        return None if self.drafter is None else self.drafter.confidence()

    def _chain_of_marginals(self, length: int, go_on: Callable[[list[float]], bool] | None) -> DraftTree:
        """Return the chain of an `independent` drafter that has read the root. Its levels are chosen all at once, so
        that the host waits once, not once a level."""
        levels = self._levels(length, 1)
        if go_on is not None:
            length = _end_of([levels], go_on) or length
        return DraftTree.chain(
            torch.cat([self._root, levels.tokens[:, :length, 0]], dim=1),
            likelihood=lambda: torch.cat([self._certain, cleaned(levels.log_probs()[:, :length, 0])], dim=1),
            draft_probs=None if levels.probs is None else levels.probs[:, :length],
            unusable=lambda: doubt(levels.best[:, :length]).cumsum(-1).isnan(),
            grown=True,
        )

    def marginals(self, depth: int, count: int) -> Children:
        """Run an `independent` drafter once, and return children of every level, which are those of all nodes above:
        the likeliest tokens, or drawn ones where one level does not ask for the tokens of another.

        Args:
            depth: number of levels, no more than `limit_depth` allows.
            count: number of tokens per level, unless the vocabulary is smaller.
        """
        self._expand_root()
        return self._levels(depth, count)

    def _levels(self, depth: int, count: int) -> Children:
        """Return children of every level, of a drafter that has read the root; see `marginals`."""
        assert self.drafter is not None and self._proposals.prefix_free, "no level knows what stands above it"
        self.logits = self.drafter.marginals(depth)
        return self._choose(self.logits, count, list)

    def graft(self, levels: Children, paths: Paths) -> DraftTree:
        """Return the tree of the root and of some paths through the levels of `marginals`, made in one step."""
        depth, guesses = paths.depth, paths.guesses
        tokens = torch.cat([levels.tokens.flatten(1), self._root], dim=1)
        return DraftTree(
            tokens.gather(1, guesses),
            paths.parents,
            max_depth=levels.tokens.shape[1],
            likelihood=lambda: torch.cat([cleaned(levels.log_probs()).flatten(1), self._certain], 1).gather(1, guesses),
            unusable=lambda: doubt(levels.best).cumsum(-1).isnan().gather(1, depth[:, 1:] - 1),
            grown=True,
            _cache={"depth": depth},
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


def _ended(*_: Any) -> Tensor:
    raise MMSpecError("a tree that is built does not grow: a builder expands nodes before its build() returns")


def _end_of(levels: Sequence[Children], go_on: Callable[[list[float]], bool]) -> int | None:
    """Return behind how many of some levels of a chain it ends; None if it goes on behind all of them."""
    probabilities = cleaned(only_child_log_probs(levels)).exp().T.tolist()
    return next((level for level, told in enumerate(probabilities, start=1) if not go_on(told)), None)
