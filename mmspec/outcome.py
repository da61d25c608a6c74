"""What a round yields: the target's scores of a tree, and the verifier's verdict on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

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
    """

    logits: Tensor
    features: dict[int, Tensor] = field(default_factory=dict)
    processed: Tensor | None = None
    greedy: bool = True

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
    """

    path: Tensor
    length: Tensor
    bonus: Tensor
    tail: Tensor | None = None
    settled: bool = False

    def only(self, active: list[bool]) -> Verdict:
        """The verdict on the rows that have not ended: of the others nothing is kept or emitted."""
        if all(active):
            return self
        return replace(self, length=self.length * torch.tensor(active, device=self.length.device))

    def host(self, tree: DraftTree) -> tuple[list[int], list[list[int]]]:
        """Path lengths and emitted tokens per row, in one transfer from the device: accepted tokens, the tail, and the
        bonus."""
        tokens = tree.tokens.gather(1, self.path.clamp(min=0))
        parts = [self.length[:, None], self.bonus[:, None], tokens]
        width = tokens.shape[1]
        table = torch.cat(parts if self.tail is None else [*parts, self.tail], dim=1).tolist()
        lengths, emitted = [row[0] for row in table], []
        for length, bonus, _, *rest in table:
            tail = [token for token in rest[width - 1 :] if token >= 0]
            accepted = rest[: max(length - 1, 0)]
            emitted.append([*(accepted[:-1] if self.settled else accepted), *tail, bonus] if length else [])
        return lengths, emitted


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """`[..., vocab]` distributions, shaped and typed like another one, that are certain of `[...]` tokens."""
    return torch.zeros_like(like).scatter_(-1, token[..., None], 1.0)
