"""What a rule is: how a drafted token is judged, and what is left of the target's distribution after a refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...per_request import PerRequest
from ...token_space import TEXT, TokenSpace
from ...tree import DraftTree

if TYPE_CHECKING:
    from ...target import Target


class Rule(PerRequest):
    """An acceptance rule, for `TreeWalk`. It has parameters; what it learns in a request is that request's own.

    There are two kinds, and a rule derives from one of them:

    - a `ChoiceRule` lets the target choose a token after every node (the argmax, or a draw at a temperature above 0)
      and says which drafted tokens may stand in the place of that choice;
    - a `CoinRule` accepts a drafted token with a probability that depends on p and q, and says what is left of p after
      a refusal.
    """

    proposal = "point"
    """How drafters should choose children at a temperature above 0, see `Verifier.proposal`."""

    @property
    def lossless(self) -> bool:
        """Whether the emitted text follows the target's own distribution. It follows from the parameters."""
        raise NotImplementedError

    def check(self, target: Target) -> None:
        """Refuse a target that lacks what the rule goes by.

        Raises:
            MMSpecError: naming what is missing, and the way out.
        """


class Judged:
    """Every drafted node of a tree beside what the target says of its place, for a `ChoiceRule`.

    Args:
        tree: the candidates.
        scores: `[batch, nodes, vocab]` the target's scores after each node, behind the logits pipeline.
        choices: `[batch, nodes]` the token that the target chose after each node.
        uniform: gives `[batch, nodes]` random numbers from 0 to 1, one draw for each node.
        written: gives, for each row, how many tokens of the answer stand before the root.
        space: what the ids mean.
    """

    def __init__(
        self,
        tree: DraftTree,
        scores: Tensor,
        choices: Tensor,
        uniform: Callable[[], Tensor],
        written: Callable[[], list[int]],
        space: TokenSpace = TEXT,
    ):
        self.space = space
        self.tree, self.tokens, self._after, self._choices = tree, tree.tokens, scores, choices
        self.uniform, self._written = uniform, written

    @cached_property
    def choice(self) -> Tensor:
        """`[batch, nodes]` what the target chose in the place of each node; of the root, anything."""
        return self._choices.gather(1, self.tree.parents.clamp(min=0))

    @cached_property
    def scores(self) -> Tensor:
        """`[batch, nodes, vocab]` the target's scores for the place of each node; of the root, anything."""
        parents = self.tree.parents.clamp(min=0)[..., None].expand_as(self._after)
        return self._after.gather(1, parents)

    @cached_property
    def position(self) -> Tensor:
        """`[batch, nodes]` the index of each node's token in the answer, beginning with 0."""
        return self.tree.depth + torch.tensor(self._written(), device=self.tokens.device)[:, None]

    def of_token(self, values: Tensor) -> Tensor:
        """The entries of `[batch, nodes, vocab]` values that belong to the nodes' own tokens, `[batch, nodes]`."""
        return values.gather(-1, self.tokens[..., None])[..., 0]


class ChoiceRule(Rule):
    """A rule by which all nodes are judged at once. The longest allowed path wins; the target's own choice follows it.

    A rule that judges tokens one by one implements `accept`; one that judges groups of them, `allow`.
    """

    def accept(self, at: Judged) -> Tensor:
        """`[batch, nodes]`, True where the drafted token may be emitted, given that its parent was."""
        raise NotImplementedError

    def allow(self, at: Judged) -> Tensor:
        """`[batch, nodes]`, True where the path from the root to a node may be emitted. Says so of the root, whatever
        `accept` does, and of no padding."""
        return reached(at.tree, self.accept(at))


class CoinRule(Rule):
    """A rule by which siblings are tried in the order of their draw. The first accepted one wins; if none is, the next
    token is drawn from what is left of p.

    At temperature 0, p is certain of the target's argmax. A point proposal (a deterministic choice of the drafter) has
    a q that is certain of it.
    """

    proposal = "sampled"

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """Judge one drafted token in each row.

        Args:
            p: `[batch, vocab]` what is left of the target's distribution.
            q: `[batch, vocab]` what is left of the drafter's, from which the token was drawn.
            token: `[batch]`.
            u: `[batch]` a fresh random number from 0 to 1.

        Returns:
            `[batch]`, True where the token is accepted.
        """
        raise NotImplementedError

    def residual(self, p: Tensor, q: Tensor, token: Tensor) -> Tensor:
        """`[batch, vocab]` what is left of p after a refusal: norm(max(p - q, 0)) unless a rule says otherwise.

        Where p equals q to the last bit nothing is left, and p itself is returned: a refusal then has probability zero.
        """
        rest = (p - q).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        return torch.where(total > 0, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)


def of_token(probabilities: Tensor, token: Tensor) -> Tensor:
    """The entries of `[batch, vocab]` probabilities that belong to `[batch]` tokens, `[batch]`."""
    return probabilities.gather(-1, token[:, None])[:, 0]


def reached(tree: DraftTree, accepted: Tensor) -> Tensor:
    """`[batch, nodes]`, True where every node on the path to a node is accepted: `[batch, nodes]`, of which the root
    always is and padding never."""
    accepted = accepted.clone()
    accepted[:, 0] = True
    if tree.valid is not None:
        accepted &= tree.valid
    return ~(tree.ancestors & ~accepted[:, None]).any(-1)
