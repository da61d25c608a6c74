"""Results of a round: the target's scores of a tree, and the verifier's decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .models.slots import pick
from .models.transfer import fixed
from .tree import DraftTree


@dataclass
class Scores:
    """The target's scores of a tree.

    Args:
        logits: `[batch, nodes, vocab]` raw logits for the token after each node.
        features: layers with their `[batch, nodes, hidden]` states, see `Drafter.feature_layers`.
        processed: `[batch, nodes, vocab]` logits behind the logits pipeline, each node judged with its own prefix; None
            until the verifier has computed them (`Verifier.processed`).
        greedy: True if the target takes the argmax of `processed`.
        unread: per row, number of tokens that the same pass read before the tree because they were emitted unread;
            empty for none.
        read: features of the whole pass, beginning with those of the unread tokens, see `after_unread`.
    """

    logits: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)
    processed: Tensor | None = None
    greedy: bool = True
    unread: Sequence[int] = ()
    read: dict[int, Tensor] = field(default_factory=dict)

    def features_along(self, path: Tensor, first: bool = False) -> dict[int, Tensor]:
        """Return features of the tokens that the pass has made certain, as a dict from layer to `[batch, steps,
        hidden]`: in each row those of the tokens that it read before the tree, and then those of a path. Where a row
        has fewer of them, the rest has no meaning.

        Args:
            path: `[batch, steps]` indices of nodes.
            first: True if these nodes are known to be the first ones, in their order, which needs no gathering.
        """
        if first and not self.unread:
            return {layer: states[:, : path.shape[1]] for layer, states in self.features.items()}
        features, columns = self.features, path.clamp(min=0)
        if self.unread:
            features, columns = self.read, after_unread(columns, self.unread)
        return {layer: pick(states, columns) for layer, states in features.items()}

    @cached_property
    def p(self) -> Tensor:
        """Distribution of the token after each node, `[batch, nodes, vocab]`, behind the pipeline: the target draws
        from it. At temperature 0 the argmax has probability 1. Drafters may read it in `observe`, at every node."""
        processed = self.processed
        assert processed is not None  # the verifier has computed them
        return one_hot(processed.argmax(-1), processed) if self.greedy else processed.softmax(-1)


@dataclass
class Verdict:
    """The verifier's decision about a tree.

    Args:
        path: `[batch, steps]` indices of the nodes on the accepted path, the root first, padded with -1.
        length: `[batch]` number of nodes on the path; 0 for a row that has finished.
        bonus: `[batch]` last token that the round emits, which is the next root: the target's token after the path.
        tail: `[batch, tokens]` tokens that are emitted between the path and the bonus although the target has not read
            them, padded with -1 on the right; None for none. The next pass of the target reads them first.
        settled: True if the target was not asked. Its cache then holds nothing of the path, and the bonus is the last
            node of the path itself.
        limited: True for a verdict that holds for active rows only, see `only`.
        heard: `length` as numbers, once the host has heard of it; None before.
    """

    path: Tensor
    length: Tensor
    bonus: Tensor
    tail: Tensor | None = None
    settled: bool = False
    limited: bool = False
    heard: list[int] | None = None

    @property
    def lengths(self) -> list[int]:
        """`length` as numbers. The host waits for them if it has not heard of them yet."""
        return self.length.tolist() if self.heard is None else self.heard

    @property
    def last(self) -> Tensor:
        """The last node of every row's path, `[batch, 1]`; some node in rows that have finished."""
        return self.path.gather(1, (self.length - 1).clamp(min=0)[:, None]).clamp(min=0)

    def only(self, active: list[bool]) -> Verdict:
        """Return the verdict on the active rows: rows that have ended keep and emit nothing."""
        if self.limited or all(active):
            return self
        return replace(self, length=self.length * fixed(tuple(map(int, active)), self.length.device), limited=True)

    def host(self, tree: DraftTree) -> tuple[list[int], list[list[int]]]:
        """Return path lengths and emitted tokens per row: accepted tokens, the tail, and the bonus.

        Everything that the host needs of a round comes in the same transfer from the device, for which it waits: also
        the tree's account of itself (`DraftTree.account`), and how much of the path the drafter had read already
        (`DraftTree.read`).
        """
        steps = self.path.shape[1] - 1
        path = None if tree.is_chain else self.path[:, 1:].clamp(min=0)
        tokens = tree.tokens[:, 1 : steps + 1] if path is None else tree.tokens.gather(1, path)
        parts = {"length": self.length[:, None], "bonus": self.bonus[:, None], "tokens": tokens}
        if self.tail is not None:
            parts["tail"] = self.tail
        if path is not None and tree.expansion is not None:
            parts["entries"] = tree.expansion.gather(1, path)
        parts["facts"] = tree.facts()
        widths = [part.shape[1] for part in parts.values()]
        table = torch.cat(list(parts.values()), dim=1).tolist()
        starts = [sum(widths[:number]) for number in range(len(widths))]
        rows = {
            name: [row[start : start + width] for row in table]
            for name, start, width in zip(parts, starts, widths, strict=True)
        }
        lengths = self.heard = [length for (length,) in rows["length"]]
        tree.known("account", lambda: tree.told(rows["facts"]))
        tree.read = _read(tree, [length - self.settled for length in lengths], rows.get("entries"))
        emitted = []
        for row, length in enumerate(lengths):
            accepted = rows["tokens"][row][: max(length - 1, 0)]
            tail = [token for token in rows["tail"][row] if token >= 0] if self.tail is not None else []
            bonus = rows["bonus"][row]
            emitted.append([*(accepted[:-1] if self.settled else accepted), *tail, *bonus] if length else [])
        return lengths, emitted


def _read(tree: DraftTree, lengths: list[int], entries: list[list[int]] | None) -> list[int]:
    """Return, per row, how many of the accepted nodes the drafter has read itself; `entries` are its cache's entries of
    them."""
    if entries is None:
        return [max(min(length, tree.num_nodes - 1) - 1, 0) for length in lengths]
    return [
        sum(entry >= 0 for entry in row[: max(length - 1, 0)]) for length, row in zip(lengths, entries, strict=True)
    ]


def after_unread(path: Tensor, unread: Sequence[int]) -> Tensor:
    """Return the columns of each row's tokens in a block that holds unread tokens, right-aligned, before its tree.

    Args:
        path: `[batch, steps]` indices of the tree's nodes.
        unread: number of unread tokens per row.

    Returns:
        `[batch, longest + steps]` columns of the block: the unread tokens of a row, then its path. The last ones of a
        row with fewer unread tokens are repeated and mean nothing.
    """
    longest = max(unread)
    steps = torch.arange(longest, device=path.device)
    columns = torch.cat([steps.expand(len(path), -1), path + longest], 1)
    first = fixed(tuple(longest - count for count in unread), path.device)[:, None]
    places = torch.arange(columns.shape[1], device=path.device) + first
    return columns.gather(1, places.clamp(max=columns.shape[1] - 1))


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """Return distributions, `[..., vocab]`, that give probability 1 to the tokens `[...]`, with shape and dtype of
    `like`."""
    return torch.zeros_like(like).scatter_(-1, token[..., None], 1.0)
