"""Context of a batch of chains: how far each has come, and the target's half of a round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..outcome import Verdict
from ..seeds import random_stream
from .draft import StateDraft, StateScores
from .gaussian import GaussianChain


class ChainContext:
    """A batch of chains on their way.

    Attributes:
        done: per row, the transitions that it has behind it.
        active: per row, False once it has ended.
        calls: how often the target was asked, for any number of states at once.

    Args:
        chain: the target.
        batch_size: rows.
        seed: what all draws follow from.
    """

    def __init__(self, chain: GaussianChain, batch_size: int, seed: int):
        self.chain, self.batch_size, self.seed = chain, batch_size, seed
        self.done, self.active, self.calls = [0] * batch_size, [True] * batch_size, 0

    @property
    def left(self) -> list[int]:
        """Per row, the transitions that are left."""
        return [self.chain.steps - done for done in self.done]

    def usable(self, count: int) -> list[int]:
        """Per row, how many of so many drafted states can be used; the last state comes from the target anyway."""
        return [min(count, left - 1) if active else 0 for left, active in zip(self.left, self.active, strict=True)]

    def steps(self, ahead: int = 0) -> Tensor:
        """Return the transitions behind a row's state `ahead` of its newest one, `[batch]`, within the chain."""
        last = self.chain.steps - 1
        return torch.tensor([min(done + ahead, last) for done in self.done], device=self.chain.device)

    def streams(self, purpose: str) -> list[torch.Generator]:
        """Make a random generator per row: what a row draws does not depend on the others."""
        return [random_stream(self.chain.device, self.seed, f"{purpose} {row}") for row in range(self.batch_size)]

    def draws(self, streams: list[torch.Generator], counts: list[int], of: Callable, *shape: int) -> Tensor:
        """Draw random numbers, `[batch, longest, *shape]`, as many as each row needs; zeros stand behind them.

        Args:
            streams: one per row.
            counts: per row. As long as they depend on the row alone, so do its numbers.
            of: `torch.randn` or `torch.rand`.
            shape: the shape of one draw.
        """
        chain, longest = self.chain, max(counts)
        table = torch.zeros(len(counts), longest, *shape, device=chain.device, dtype=chain.dtype)
        for row, (stream, count) in enumerate(zip(streams, counts, strict=True)):
            if count:
                table[row, :count] = of(count, *shape, generator=stream, device=chain.device, dtype=chain.dtype)
        return table

    def predict(self, states: Tensor, steps: Tensor) -> Tensor:
        """Ask the target about `[count, *shape]` states, which counts as one call."""
        self.calls += 1
        return self.chain.predict(states, steps)

    def check(self, draft: StateDraft, root: Tensor, by: object) -> None:
        """Refuse what is no draft.

        Raises:
            MMSpecError: naming the drafter and the shape.
        """
        name = type(by).__name__
        if not isinstance(draft, StateDraft):
            raise MMSpecError(f"{name}.draft returned a {type(draft).__name__}; it must return a StateDraft")
        count = draft.means.shape[1] if draft.means.ndim > 1 else 0
        for what, given, nodes in (("states", draft.states, count + 1), ("means", draft.means, count)):
            wanted = (self.batch_size, nodes, *self.chain.shape)
            if tuple(given.shape) != wanted:
                raise MMSpecError(f"{name} drafted {what} of shape {tuple(given.shape)}; they must be {list(wanted)}")
        if draft.usable != self.usable(count):
            raise MMSpecError(
                f"{name} drafted usable={draft.usable}, but of {count} states the rows can use {self.usable(count)}"
            )

    def score(self, draft: StateDraft) -> StateScores:
        """Ask the target for the law of the next state after every node, in one call. Rows that have ended, and nodes
        behind the end of a chain, are left out.

        Raises:
            MMSpecError: if the chain gives means or standard deviations of another shape.
        """
        chain, nodes = self.chain, draft.states.shape[1]
        asked = [
            (row, node)
            for row, usable in enumerate(draft.usable)
            if self.active[row]
            for node in range(min(usable + 1, nodes))
        ]
        index = torch.tensor(asked, device=chain.device)
        steps = torch.tensor([self.done[row] + node for row, node in asked], device=chain.device)
        states = draft.states[index[:, 0], index[:, 1]]
        prediction = self.predict(states, steps)
        mean, std = chain.mean(states, steps, prediction), chain.std(steps)
        if mean.shape != states.shape or std.shape != steps.shape:
            raise MMSpecError(
                f"{type(chain).__name__}: for {len(steps)} states it gives means of shape {tuple(mean.shape)} and "
                f"standard deviations of shape {tuple(std.shape)}; they must be {list(states.shape)} and [{len(steps)}]"
            )

        def spread(values: Tensor) -> Tensor:
            table = values.new_zeros(self.batch_size, nodes, *values.shape[1:])
            table[index[:, 0], index[:, 1]] = values
            return table

        return StateScores(spread(mean), spread(std), spread(prediction))

    def commit(self, draft: StateDraft, verdict: Verdict) -> list[Tensor]:
        """Move every row on, and return its new states, `[count, *shape]`: those that were kept, and the bonus.

        Raises:
            MMSpecError: if a row goes on with what is no number.
        """
        emitted, finite = [], verdict.bonus.flatten(1).isfinite().all(-1)
        for row, (length, usable) in enumerate(torch.stack([verdict.length, finite], 1).tolist()):
            if length and not usable:
                raise MMSpecError(
                    f"{type(self.chain).__name__}: a mean in row {row} is NaN or infinite, {self.done[row]} steps or "
                    "more from the start"
                )
            self.done[row] += length
            kept = draft.states[row, 1 : max(length, 1)]
            emitted.append(torch.cat([kept, verdict.bonus[row : row + 1]]) if length else kept)
            self.active[row] = self.done[row] < self.chain.steps
        return emitted
