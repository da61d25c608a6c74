"""Growth: the candidates of a round while a builder expands them level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..sampling import LogitsPipeline
from ..tree import DraftTree

if TYPE_CHECKING:
    from ..drafters import Drafter


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


@dataclass
class Proposals:
    """How children are chosen from a drafter's logits.

    Args:
        sampled: False for the likeliest children, True for children drawn without replacement.
        pipeline: the target's logits pipeline, which q goes through too when children are drawn.
        history: per row, the tokens so far, the root last; for processors that depend on the prefix.
        generator: of the draws.
    """

    sampled: bool = False
    pipeline: LogitsPipeline | None = None
    history: list[list[int]] | None = None
    generator: torch.Generator | None = None

    def choose(self, logits: Tensor, count: int, paths: Callable[[], list[list[list[int]]]]):
        """Choose `count` children per node from `[batch, nodes, vocab]` logits.

        Returns:
            tokens: `[batch, nodes, count]`, the best (or first drawn) child first.
            log_probs: gives the `[batch, nodes, count]` log-probabilities; chains never ask for them.
            probs: `[batch, nodes, vocab]` q if children were drawn, else None.
        """
        count = min(count, logits.shape[-1])
        if not self.sampled:
            top = logits.topk(count, dim=-1)

            def log_probs() -> Tensor:
                # Rounding must not make a child likelier than its parent: ancestors are kept first.
                return (top.values.float() - logits.float().logsumexp(-1, keepdim=True)).clamp(max=0.0)

            return top.indices, log_probs, None
        processed = self.pipeline(
            logits,
            lambda: [[past + path for path in row] for past, row in zip(self.history, paths(), strict=True)],
        )
        log_q = processed.log_softmax(-1)
        noise = torch.empty_like(log_q).exponential_(generator=self.generator).log()
        # The k largest of log q + Gumbel noise are k draws without replacement, in order.
        tokens = (log_q - noise).topk(count, dim=-1).indices
        return tokens, lambda: log_q.gather(-1, tokens), log_q.exp()


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
        drafter: Drafter | None = None,
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
        tokens, log_probs, probs = self._choose(self.logits, count, lambda: self._paths(nodes))
        if probs is not None:
            self._draft_probs.append(probs)
        count = tokens.shape[-1]
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
        tokens, likelihoods, probs = [self.tokens], [self._log_probs], []
        logits = self._expand_root()[:, None]
        for level in range(length):
            if level:
                past = torch.full_like(self.root, level - 1)
                visible = torch.ones(batch, 1, level, dtype=torch.bool, device=device)
                logits = self._expand(Block(tokens[-1], past, visible, past, sees_all=True))
            chosen, log_probs, q = self._choose(
                logits, 1, lambda: [[row] for row in torch.cat(tokens, 1)[:, 1:].tolist()]
            )
            tokens.append(chosen[:, 0])
            likelihoods.append(log_probs)
            if q is not None:
                probs.append(q)
        self.logits, self.levels = logits, length
        steps = torch.arange(length + 1, device=device)
        return DraftTree.chain(
            torch.cat(tokens, dim=1),
            likelihood=lambda: torch.cat([likelihoods[0], *(one()[:, 0] for one in likelihoods[1:])], dim=1),
            expansion=torch.where(steps < length, steps, -1).expand(batch, -1),
            draft_probs=torch.cat(probs, dim=1) if probs else None,
        )

    def _choose(
        self, logits: Tensor, count: int, paths: Callable
    ) -> tuple[Tensor, Callable[[], Tensor], Tensor | None]:
        """`Proposals.choose`, in the target's tokens."""
        vocabulary = self._vocabulary
        if vocabulary is not None and self._proposals.sampled:  # q is a distribution over the target's tokens
            everything = logits.new_full((*logits.shape[:-1], self._vocab_size), float("-inf"))
            logits, vocabulary = everything.index_copy(-1, vocabulary, logits), None
        tokens, log_probs, probs = self._proposals.choose(logits, count, paths)
        return tokens if vocabulary is None else vocabulary[tokens], log_probs, probs

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
        parents[:, 0] = -1
        depth, fields = self.depth.gather(1, nodes), self._fields(nodes)
        if valid is not None:
            depth = depth.masked_fill(~valid, 1)
            fields["expansion"] = fields["expansion"].masked_fill(~valid, -1)
        return DraftTree(
            tokens=self.tokens.gather(1, nodes),
            parents=parents,
            max_depth=self.levels,
            valid=valid,
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
