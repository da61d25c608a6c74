"""What a round yields: the target's scores of a tree, and the verifier's verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .transfer import fixed
from .tree import DraftTree


@dataclass
class Scores:
    """What the target says about a tree.

    Args:
        logits: `[batch, nodes, vocab]`, raw, for the token after each node.
        features: layer to `[batch, nodes, hidden]`, see `Drafter.feature_layers`.
        processed: `[batch, nodes, vocab]`, the logits behind the logits pipeline, each node judged with its own prefix;
            None until the verifier has asked for them (`Verifier.processed`).
        greedy: whether the target takes the argmax of `processed`.
        unread: per row, how many tokens the same pass read before the tree, because they were emitted unread; empty
            for none.
        read: the features of the whole pass, those of the unread tokens first, see `after_unread`.
    """

    logits: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)
    processed: Tensor | None = None
    greedy: bool = True
    unread: Sequence[int] = ()
    read: dict[int, Tensor] = field(default_factory=dict)

    def features_along(self, path: Tensor, first: bool = False) -> dict[int, Tensor]:
        """Features of what the pass has made certain, layer to `[batch, steps, hidden]`: in each row of the tokens that
        it read before the tree, and then of a path. Where a row has fewer of them, the rest means nothing.

        Args:
            path: `[batch, steps]` nodes.
            first: True if they are known to be the first ones, in their order, which needs no gathering.
        """
        if first and not self.unread:
            return {layer: states[:, : path.shape[1]] for layer, states in self.features.items()}
        features, columns = self.features, path.clamp(min=0)
        if self.unread:
            features, columns = self.read, after_unread(columns, self.unread)
        return {layer: pick(states, columns) for layer, states in features.items()}

    @cached_property
    def p(self) -> Tensor:
        """`[batch, nodes, vocab]` the distribution of the token after each node, behind the pipeline: what the target
        draws from. At temperature 0 it is certain of the argmax. Drafters may read it in `observe`, at every node."""
        if self.greedy:
            return one_hot(self.processed.argmax(-1), self.processed)
        return self.processed.softmax(-1)


@dataclass
class Verdict:
    """What the verifier decided about a tree.

    Args:
        path: `[batch, steps]` nodes of the accepted path, the root first, padded with -1.
        length: `[batch]` nodes on the path; 0 for a row that has finished.
        bonus: `[batch]` the last token that the round emits, which is the next root: what the target supplies after the
            path.
        tail: `[batch, tokens]` what is emitted between the path and the bonus although the target has not read it,
            padded with -1 on the right; None for nothing. The next pass of the target reads it first.
        settled: True if the target was not asked. Nothing of the path is in its cache then, and the bonus is the last
            node of the path itself.
        limited: True once it is a verdict on active rows, see `only`.
    """

    path: Tensor
    length: Tensor
    bonus: Tensor
    tail: Tensor | None = None
    settled: bool = False
    limited: bool = False

    def only(self, active: list[bool]) -> Verdict:
        """The verdict on the rows that have not ended: of the others nothing is kept or emitted."""
        if self.limited or all(active):
            return self
        return replace(self, length=self.length * fixed(tuple(active), self.length.device), limited=True)

    def host(self, tree: DraftTree) -> tuple[list[int], list[list[int]]]:
        """Path lengths and emitted tokens per row: accepted tokens, the tail, and the bonus.

        All that the host wants to know of a round comes with the same transfer from the device, for which it waits:
        also what the tree has to say of itself (`DraftTree.account`), and how much of the path the drafter had read
        already (`DraftTree.read`).
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
        lengths = [length for (length,) in rows["length"]]
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
    """Per row, how many of the accepted nodes the drafter has read itself, of which it knows `entries` in its cache."""
    if entries is None:
        return [max(min(length, tree.num_nodes - 1) - 1, 0) for length in lengths]
    return [
        sum(entry >= 0 for entry in row[: max(length - 1, 0)]) for length, row in zip(lengths, entries, strict=True)
    ]


def after_unread(path: Tensor, unread: Sequence[int]) -> Tensor:
    """Where the tokens of each row stand in a block that has unread ones, right-aligned, before its tree.

    Args:
        path: `[batch, steps]` nodes of the tree.
        unread: per row.

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


def pick(states: Tensor, columns: Tensor) -> Tensor:
    """`[batch, length, hidden]` at `[batch, count]` columns."""
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """`[..., vocab]` distributions, shaped and typed like another one, that are certain of `[...]` tokens."""
    return torch.zeros_like(like).scatter_(-1, token[..., None], 1.0)
