"""Base classes of acceptance rules: they judge drafted tokens, and reduce the target's distribution after a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...decoding.token_space import TEXT, TokenSpace
from ...models.slots import pick
from ...per_request import PerRequest
from ...settings.calls import Named
from ...tree import DraftTree

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target


class Rule(Named, PerRequest):
    """An acceptance rule for `TreeWalk`. It has parameters; what it learns in a request stays with that request.

    There are two kinds, and a rule derives from one of them:

    - a `ChoiceRule` lets the target choose a token after every node (the argmax, or a draw at a temperature above 0)
      and states which drafted tokens may replace that choice;
    - a `CoinRule` accepts a drafted token with a probability that depends on p and q, and states what is left of p
      after a refusal.
    """

    proposal = "point"
    """The way in which drafters should choose children at a temperature above 0, see `Verifier.proposal`."""

    @property
    def lossless(self) -> bool:
        """True if the emitted text follows the target's own distribution. This follows from the parameters."""
        raise NotImplementedError

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        """Return the states of the target that the rule looks at, see `Drafter.feature_layers`."""
        return ()

    def check(self, target: Target) -> None:
        """Refuse a target that lacks what the rule needs.

        Raises:
            MMSpecError: naming what is missing, and the way out.
        """

    def start(self, context: Context) -> None:
        """Set up what a request needs, behind its prompt."""


class Judged:
    """The drafted nodes of a tree with the target's scores for their places, for a `ChoiceRule`.

    Args:
        tree: the draft.
        scores: `[batch, nodes, vocab]` target's scores after each node, behind the logits pipeline.
        choices: `[batch, nodes]` token that the target chose after each node.
        uniform: returns `[batch, nodes]` random numbers from 0 to 1, one draw for each node.
        written: returns, for each row, the number of tokens of the answer before the root.
        space: meaning of the token ids.
        answers: returns, for each row, the tokens of the answer, the root the last; None where nobody knows.
        states: layer to `[batch, nodes, hidden]`, the target's states at the nodes that `Rule.feature_layers` asks for.
    """

    def __init__(
        self,
        tree: DraftTree,
        scores: Tensor,
        choices: Tensor,
        uniform: Callable[[], Tensor],
        written: Callable[[], list[int]],
        space: TokenSpace = TEXT,
        answers: Callable[[], list[list[int]]] | None = None,
        states: Mapping[int, Tensor] | None = None,
    ):
        self.space, self.answers, self.states = space, answers, states or {}
        self.tree, self.tokens, self._after, self.choices = tree, tree.tokens, scores, choices
        self.uniform, self._written = uniform, written

    @cached_property
    def choice(self) -> Tensor:
        """The target's choice in the place of each node, `[batch, nodes]`; any value at the root."""
        return self.choices.gather(1, self.tree.parents.clamp(min=0))

    @cached_property
    def scores(self) -> Tensor:
        """The target's scores for the place of each node, `[batch, nodes, vocab]`; any values at the root."""
        return pick(self._after, self.tree.parents.clamp(min=0))

    @cached_property
    def position(self) -> Tensor:
        """Index of each node's token in the answer, `[batch, nodes]`, beginning with 0."""
        return self.tree.depth + torch.tensor(self._written(), device=self.tokens.device)[:, None]

    def of_token(self, values: Tensor) -> Tensor:
        """Return the values of the nodes' own tokens, `[batch, nodes]`, from `[batch, nodes, vocab]` values."""
        return values.gather(-1, self.tokens[..., None])[..., 0]


class ChoiceRule(Rule):
    """A rule that judges all nodes at once. The longest allowed path wins; the target's own choice follows it.

    A rule that judges tokens one by one implements `accept`; one that judges groups of tokens implements `allow`.
    """

    def accept(self, at: Judged) -> Tensor:
        """Return True where the drafted token may be emitted, `[batch, nodes]`, given that its parent was."""
        raise NotImplementedError

    def allow(self, at: Judged) -> Tensor:
        """Return True where the path from the root to a node may be emitted, `[batch, nodes]`. The root is always True,
        whatever `accept` returns, and padding never is."""
        return reached(at.tree, self.accept(at))


class CoinRule(Rule):
    """A rule that tries siblings in the order of their draw. The first accepted one wins; if none is accepted, the next
    token is drawn from what is left of p.

    At temperature 0, p gives probability 1 to the target's argmax. The q of a point proposal (a deterministic choice of
    the drafter) gives probability 1 to the proposed token.
    """

    proposal = "sampled"

    def accept(self, p: Tensor, q: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """Judge one drafted token in each row.

        Args:
            p: `[batch, vocab]` what is left of the target's distribution.
            q: `[batch, vocab]` what is left of the drafter's distribution, from which the token was drawn.
            token: `[batch]` drafted tokens.
            u: `[batch]` fresh random numbers from 0 to 1.

        Returns:
            `[batch]`, True where the token is accepted.
        """
        raise NotImplementedError

    def residual(self, p: Tensor, q: Tensor, token: Tensor) -> Tensor:
        """Return what is left of p after a refusal, `[batch, vocab]`: norm(max(p - q, 0)) unless a rule defines it
        otherwise.

        Where p equals q to the last bit nothing is left, and p itself is returned: a refusal then has probability zero.
        """
        rest = (p - q).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        return torch.where(total > 0, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)


def of_token(probabilities: Tensor, token: Tensor) -> Tensor:
    """Return the probabilities of tokens, `[batch]`, from `[batch, vocab]` probabilities."""
    return probabilities.gather(-1, token[:, None])[:, 0]


def reached(tree: DraftTree, accepted: Tensor) -> Tensor:
    """Return True where every node on the path to a node is accepted, `[batch, nodes]`. The root always counts as
    accepted, and padding never."""
    accepted = accepted.clone()
    accepted[:, 0] = True
    if tree.valid is not None:
        accepted &= tree.valid
    return ~(tree.ancestors & ~accepted[:, None]).any(-1)
