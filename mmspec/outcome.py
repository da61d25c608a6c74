"""What a round yields: the target's scores of a tree, and the verifier's verdict on it."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        bonus: `[batch]` the token that the target supplies after the path: the next root.
    """

    path: Tensor
    length: Tensor
    bonus: Tensor

    def host(self, tree: DraftTree) -> tuple[list[int], list[list[int]]]:
        """Path lengths and emitted tokens (accepted ones, then the bonus) per row, in one transfer from the device."""
        tokens = tree.tokens.gather(1, self.path.clamp(min=0))
        table = torch.cat([self.length[:, None], self.bonus[:, None], tokens], dim=1).tolist()
        lengths = [row[0] for row in table]
        return lengths, [[*row[3 : 2 + n], row[1]] if n else [] for row, n in zip(table, lengths, strict=True)]


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """`[..., vocab]` distributions, shaped and typed like another one, that are certain of `[...]` tokens."""
    return torch.zeros_like(like).scatter_(-1, token[..., None], 1.0)
