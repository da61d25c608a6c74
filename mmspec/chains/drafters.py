"""Drafters of states: another chain's means, or the target's own last prediction held still."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Verdict
from ..per_request import PerRequest
from ..settings.arguments import whole_number
from .context import ChainContext
from .draft import StateDraft, StateScores
from .gaussian import GaussianChain


class StateDrafter(PerRequest):
    """Proposes the next states of every row, each drawn around a mean of its own with the target's standard deviation.

    A subclass implements `mean`. This class itself proposes nothing, which is plain sampling.

    Args:
        length: states in a draft.

    Raises:
        MMSpecError: for a value out of range.
    """

    anticipates = in_turn = False

    def __init__(self, length: int = 0):
        self.length = whole_number(self, length=length, lowest=0)

    def start(self, context: ChainContext) -> None:
        """Take up a batch of chains."""
        self.context, self.streams = context, context.streams("drafts of chain")

    def mean(self, states: Tensor, steps: Tensor) -> Tensor:
        """Guess the means, `[batch, *shape]`, of the states after others with `[batch]` transitions behind them."""
        raise NotImplementedError

    def draft(self, root: Tensor) -> StateDraft:
        """Propose states below `[batch, *shape]` roots."""
        return self.chain_below(root, self.length)

    def chain_below(self, root: Tensor, length: int) -> StateDraft:
        """Draw so many states below `[batch, *shape]` roots, or as many as any row can use."""
        context = self.context
        usable = context.usable(length)
        noise = context.draws(self.streams, usable, torch.randn, *root.shape[1:])
        states, means = [root], []
        for ahead in range(max(usable)):
            steps = context.steps(ahead)
            means.append(self.mean(states[-1], steps))
            std = context.chain.std(steps).view(-1, *[1] * (root.ndim - 1))
            states.append(means[-1] + std * noise[:, ahead])
        nothing = root.new_zeros(len(root), 0, *root.shape[1:])
        return StateDraft(torch.stack(states, 1), torch.stack(means, 1) if means else nothing, usable)

    def anticipate(self, draft: StateDraft) -> None:
        """Do nothing while the target works."""

    def hear(self, draft: StateDraft, verdict: Verdict) -> None:
        """Do nothing."""

    def observe(self, draft: StateDraft, scores: StateScores, verdict: Verdict) -> None:
        """Update the state from the verdict on the last draft."""


class ChainDrafter(StateDrafter):
    """Another, cheaper chain of as many steps guesses the means, such as a smaller model or one of fewer bits.

    Args:
        chain: with states of the target's shape; its standard deviations are not asked for.
        length: states in a draft, at least 1.

    Raises:
        MMSpecError: for a value out of range; when a request starts, for another shape or number of steps.
    """

    def __init__(self, chain: GaussianChain, length: int = 8):
        super().__init__(whole_number(self, length=length, lowest=1))
        self.chain = chain

    def start(self, context: ChainContext) -> None:
        """Take up a batch of chains, if they are like the drafter's."""
        super().start(context)
        ours, theirs = ((chain.shape, chain.steps) for chain in (self.chain, context.chain))
        if ours != theirs:
            raise MMSpecError(
                f"ChainDrafter: its chain has states of shape {list(ours[0])} and {ours[1]} steps, and the target "
                f"{list(theirs[0])} and {theirs[1]}; they must agree"
            )

    def mean(self, states: Tensor, steps: Tensor) -> Tensor:
        """Return the other chain's means."""
        return self.chain.mean(states, steps, self.chain.predict(states, steps))


class FrozenDrafter(StateDrafter):
    """The target's own last prediction, held still: what it said of one state is used for all that follow.

    It is the frozen draft of De Bortoli et al. (arXiv 2501.05370), and in other coordinates the draft of Hu et al.
    (ASD, arXiv 2505.03983), whose exchangeable increments make the law of the next one that of all that follow. There
    the target is asked at the newest state before every draft (`fresh=True`). By default here the prediction is the one
    that the verification has already made for the state before the newest one, so a round asks the target once [OUR].

    Needs no training. Lossless with `Reflection`.

    Args:
        length: states in a draft, at least 1.
        fresh: whether to ask the target at the newest state before every draft.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, length: int = 8, fresh: bool = False):
        super().__init__(whole_number(self, length=length, lowest=1))
        self.fresh = fresh

    def start(self, context: ChainContext) -> None:
        """Take up a batch of chains, of which nothing is known yet."""
        super().start(context)
        self._prediction: Tensor | None = None

    def draft(self, root: Tensor) -> StateDraft:
        """Propose states below `[batch, *shape]` roots; none before there is a prediction."""
        if self.fresh and max(self.context.usable(1)):
            self._prediction = self.context.predict(root, self.context.steps())
        return self.chain_below(root, 0 if self._prediction is None else self.length)

    def mean(self, states: Tensor, steps: Tensor) -> Tensor:
        """Return the means that follow from the prediction that is held still."""
        assert self._prediction is not None, "nothing is drafted before there is one"
        return self.context.chain.mean(states, steps, self._prediction)

    def observe(self, draft: StateDraft, scores: StateScores, verdict: Verdict) -> None:
        """Take over what the target said of the last state that was kept."""
        rows = torch.arange(len(verdict.length), device=verdict.length.device)
        self._prediction = scores.prediction[rows, (verdict.length - 1).clamp(min=0)]
