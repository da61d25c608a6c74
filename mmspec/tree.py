"""The candidates of one round: a tree of tokens rooted at the newest emitted token.

A tree is a set of parallel arrays with a leading batch dimension. Node 0 is the root; every parent stands before its
children (topological order), so the ancestors of a node, sorted by index, are its path. A chain is a tree of width one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from .errors import MMSpecError

if TYPE_CHECKING:
    from .models.read_ahead import ReadAhead

Known = TypeVar("Known")


class Foreseen(NamedTuple):
    """Guesses of the tokens behind the drafts of a round, drawn while the target scores them.

    Args:
        tokens: `[batch]` the guess behind the last node of each row; -1 where there is none.
        probs: `[batch, vocab]` the distribution that it was drawn from.
    """

    tokens: Tensor
    probs: Tensor


@dataclass
class DraftTree:
    """The token candidates of one round.

    Args:
        tokens: `[batch, nodes]` token ids; `tokens[:, 0]` is the root.
        parents: `[batch, nodes]` index of each node's parent; -1 for the root. `parents[i] < i`.
        max_depth: an upper bound of the depth of any node, known without looking at the tensors.
        valid: `[batch, nodes]` False where a row has fewer nodes than the widest one (padding, always behind the valid
            nodes); None when every node counts.
        likelihood: function that gives `log_probs`, when somebody asks for them; None if nobody knows.
        expansion: `[batch, nodes]` the drafter's own serial number of a node that it expanded, -1 of a leaf; None for
            drafters that propose whole blocks.
        draft_probs: `[batch, expansions, vocab]` the distribution from which the children of each expanded node were
            drawn without replacement, in order. None marks point proposals (a deterministic choice of the drafter).
        is_chain: True if every row is a chain, known without looking at the tensors.
        unusable: function that gives `[batch, guesses]`, True for each guess of the round that came from logits
            that are no distribution (NaN, +inf, or nothing but -inf) or hangs below such a guess, whether it is in the
            tree or not; None if there can be none.
        grown: True for the trees of `Growth`, which chooses tokens and places itself, and for the root alone. The loop
            looks at all others, see `mmspec.decoding.wellformed`.
        lost: `[batch, nodes]` True where a grown tree lacks the parent of a node; None where that cannot be.
        ahead: what its drafter has already computed of the target's own pass over the nodes; None where it computed
            nothing of that.
        read: per row, how many nodes of the accepted path (the root not counted) its drafter had expanded, and so read;
            None until the host has heard the verdict.
        foreseen: function that gives the drafter's guess of the token behind every row's last node, see `Foreseen`; a
            verifier calls it while the drafter may still be at work, and then waits for that guess alone. None if there
            is none, or nobody needs its distribution.
        drafted_ahead: per row, how many of its nodes the drafter had drafted before the round began; empty for none.
    """

    tokens: Tensor
    parents: Tensor
    max_depth: int
    valid: Tensor | None = None
    likelihood: Callable[[], Tensor] | None = None
    expansion: Tensor | None = None
    draft_probs: Tensor | None = None
    is_chain: bool = False
    unusable: Callable[[], Tensor] | None = None
    grown: bool = False
    lost: Tensor | None = None
    ahead: ReadAhead | None = None
    read: list[int] | None = None
    foreseen: Callable[[], Foreseen | None] | None = None
    drafted_ahead: Sequence[int] = ()
    _cache: dict = field(default_factory=dict, repr=False)

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return self.tokens.shape[0]

    @property
    def num_nodes(self) -> int:
        """Nodes of the widest row, the root included."""
        return self.tokens.shape[1]

    @property
    def proposal(self) -> str:
        """`"sampled"` if `draft_probs` tell how the nodes were drawn, else `"point"`."""
        return "point" if self.draft_probs is None else "sampled"

    @property
    def log_probs(self) -> Tensor | None:
        """`[batch, nodes]` log-probability of each node given its parent (0 for the root), or None."""
        return None if self.likelihood is None else self.known("log_probs", self.likelihood)

    @property
    def depth(self) -> Tensor:
        """`[batch, nodes]` distance from the root."""
        return self.known("depth", lambda: self.ancestors.sum(-1) - 1)

    @property
    def ancestors(self) -> Tensor:
        """`[batch, nodes, nodes]`, True at `[b, i, j]` if `j` is `i` itself or one of its ancestors."""
        return self.known("ancestors", lambda: ancestor_mask(self.parents, self.max_depth))

    @property
    def first_children(self) -> Tensor:
        """`[batch, nodes]`, True for the first child of every node that has any; False for the root."""
        siblings = self.parents[:, :, None] == self.parents[:, None]
        older = siblings & torch.ones_like(siblings).tril(-1)
        return ~older.any(-1) & (self.parents >= 0)

    @property
    def drafted(self) -> Tensor:
        """`[batch]` number of drafted nodes (the root is not one)."""
        if self.valid is None:
            return torch.full((self.batch_size,), self.num_nodes - 1, device=self.tokens.device)
        return self.valid.sum(-1) - 1

    def account(self) -> list[tuple[int, int]]:
        """Return, per row, how many nodes were drafted and how many guesses were unusable.

        Raises:
            MMSpecError: if a builder has kept a node without its parent.
        """
        return self.known("account", lambda: self.told(self.facts().tolist()))

    def facts(self) -> Tensor:
        """Return `[batch, columns]` what `account` says, for a transfer from the device in which other things go
        along."""
        rows = [self.tokens[:, :0]]
        rows += [] if self.valid is None else [self.drafted[:, None]]
        rows += [] if self.lost is None else [self.lost.any(-1, keepdim=True)]
        rows += [] if self.unusable is None else [self.unusable()]
        return torch.cat(rows, dim=1)

    def told(self, facts: list[list[int]]) -> list[tuple[int, int]]:
        """Return the account, from `facts` on the host; see `account`."""
        found = []
        for row, (*values,) in enumerate(facts):
            drafted = self.num_nodes - 1 if self.valid is None else values.pop(0)
            if self.lost is not None and values.pop(0):
                node = self.lost[row].tolist().index(True)
                raise MMSpecError(
                    f"tree row {row}: node {node} was kept, but its parent was not, or stands behind it; a builder "
                    "gives Growth.keep ascending numbers, the root's and those of all ancestors among them"
                )
            found.append((drafted, sum(values)))
        return found

    def known(self, name: str, compute: Callable[[], Known]) -> Known:
        """Return a value that follows from the tree, computed once."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]

    def of_another(self) -> DraftTree:
        """Return the same tree as a drafter sees it that has expanded none of its nodes."""
        return replace(self, expansion=torch.full_like(self.tokens, -1), read=[0] * self.batch_size, ahead=None)

    @classmethod
    def root_only(cls, root: Tensor) -> DraftTree:
        """Return the tree of plain decoding: `root` is `[batch]`."""
        return cls.chain(root[:, None], grown=True)

    @classmethod
    def chain(cls, tokens: Tensor, valid: Tensor | None = None, **fields) -> DraftTree:
        """Return a chain of `[batch, nodes]` tokens, the root first."""
        batch, nodes = tokens.shape
        steps = torch.arange(nodes, device=tokens.device)
        return cls(
            tokens,
            (steps - 1).expand(batch, nodes),
            nodes - 1,
            valid,
            is_chain=True,
            _cache={
                "depth": steps.expand(batch, nodes),
                "ancestors": torch.ones(nodes, nodes, dtype=torch.bool, device=tokens.device)
                .tril()
                .expand(batch, nodes, nodes),
            },
            **fields,
        )

    def path_to(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nodes from the root to `node` (`[batch]`), inclusive.

        Returns:
            path: `[batch, max_depth + 1]` node indices, padded with -1.
            length: `[batch]` number of nodes on the path.
        """
        rows = torch.arange(self.batch_size, device=node.device)
        on_path = self.ancestors[rows, node]
        length = on_path.sum(-1)
        # Topological order makes the k-th True of the row the path's k-th node.
        rank = torch.where(on_path, on_path.cumsum(-1) - 1, self.max_depth + 1)
        path = torch.full((self.batch_size, self.max_depth + 2), -1, dtype=torch.long, device=node.device)
        index = torch.arange(self.num_nodes, device=node.device).expand_as(rank)
        return path.scatter_(1, rank, index)[:, :-1], length

    def validate(self) -> DraftTree:
        """Check the invariants; for tests and for authors of drafters, never in the loop.

        Raises:
            MMSpecError: naming the first row and node that break one.
        """
        for row, parents in enumerate(self.parents.tolist()):
            if parents[0] != -1:
                raise MMSpecError(f"tree row {row}: node 0 must be the root (parent -1), its parent is {parents[0]}")
            depth = [0] * len(parents)
            for node, parent in enumerate(parents[1:], start=1):
                if not 0 <= parent < node:
                    raise MMSpecError(f"tree row {row}: parent {parent} of node {node} does not stand before it")
                depth[node] = depth[parent] + 1
            if max(depth) > self.max_depth:
                raise MMSpecError(f"tree row {row}: depth {max(depth)} exceeds max_depth {self.max_depth}")
        if self.valid is not None:
            parent_valid = self.valid.gather(1, self.parents.clamp(min=0))
            if not (self.valid[:, 0].all() and (parent_valid | ~self.valid).all()):
                raise MMSpecError("tree: a valid node hangs below a node that is not valid")
            if (self.valid[:, 1:] & ~self.valid[:, :-1]).any():
                raise MMSpecError("tree: padding nodes must stand behind all valid nodes")
        return self

    def draw(self, decode: Callable[[int], str] = str, row: int = 0) -> str:
        """Return the tree of one row as text, one node a line, indented by depth."""
        lines = []
        parents = self.parents[row].tolist()
        tokens = self.tokens[row].tolist()
        valid = [True] * len(tokens) if self.valid is None else self.valid[row].tolist()
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            if valid[node]:
                children.setdefault(parent, []).append(node)

        stack = [(0, 0)]
        while stack:
            node, depth = stack.pop()
            prob = "" if self.log_probs is None or node == 0 else f"  p={self.log_probs[row, node].exp().item():.3f}"
            lines.append(f"{'  ' * depth}{node}: {decode(tokens[node])!r}{prob}")
            stack.extend((child, depth + 1) for child in reversed(children.get(node, [])))
        return "\n".join(lines)


def ancestor_mask(parents: Tensor, max_depth: int) -> Tensor:
    """Return the `[batch, nodes, nodes]` mask of each node and its ancestors, from `[batch, nodes]` parents.

    Climbs all nodes one generation at a time: `max_depth` batched steps, no loop over nodes.
    """
    batch, nodes = parents.shape
    mask = torch.eye(nodes, dtype=torch.bool, device=parents.device).repeat(batch, 1, 1)
    current = torch.arange(nodes, device=parents.device).expand(batch, nodes)
    for _ in range(max_depth):
        # The root's parent is the root itself here: climbing past the top changes nothing.
        current = parents.gather(1, current).clamp(min=0)
        mask.scatter_(2, current[..., None], True)
    return mask
