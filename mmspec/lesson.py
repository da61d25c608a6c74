"""`Lesson`: answers of the target with what it knew while writing them. `Guess`: what a drafter predicts for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .families import Vision
from .inputs.request import Request
from .models.model import Model
from .models.states import LAST

WIDTHS = 32
"""Batches are padded to a multiple of this length, because kernels are compiled, and kept, for every new shape."""


class Guess(NamedTuple):
    """One step of a drafter's chains, at the n roots whose answers are long enough.

    Args:
        logits: `[n, vocab]`, or `[n, draft_vocab]` of a reduced vocabulary.
        features: `[n, hidden]` the drafter's stand-in for the target's state there; None for drafters that predict
            none.
        places: `[n]` the answer tokens that are predicted, as indices into `Lesson.tokens`.
        roots: `[n]` where the chains begin, as indices into the flattened `Lesson.root_slots`.
        intermediate: `[n, hidden]` output of the drafter's first layer there, for losses that compare it with an
            intermediate state of the target; None for drafters with a single layer.
        confidence: `[n]` the logit of the drafter's own estimate that its token there is accepted if all before it
            were; None for drafters that make no such estimate.
        base: `[n, vocab]` the logits before they were corrected for the tokens that stand before the place; None for
            drafters that correct nothing.
    """

    logits: Tensor
    features: Tensor | None
    places: Tensor
    roots: Tensor
    intermediate: Tensor | None = None
    confidence: Tensor | None = None
    base: Tensor | None = None


@dataclass
class Lesson:
    """A batch of prompts with answers, and the target's view of them.

    Args:
        target: the model that wrote the answers.
        prompt: the prompts alone.
        answers: the answers' token ids, per row.
        request: prompts followed by answers, right-padded to `length`.
        vision: the encoded pictures, or None.
        embeds: `[batch, length, hidden]` the embeddings that the target's language model read.
        features: the target's states by layer, each `[batch, length, hidden]`; `LAST` is always there.
        tasks: a label per row, for reports.
        chosen: `[batch, roots]` True at the roots from which chains are drafted; None for all of them.
        reach: `[batch, roots]` the steps that the chain of each root has at most; None for no bound.
    """

    target: Model
    prompt: Request
    answers: list[list[int]]
    request: Request
    vision: Vision | None
    embeds: Tensor
    features: dict[int, Tensor]
    tasks: Sequence[str] = field(default_factory=list)
    chosen: Tensor | None = None
    reach: Tensor | None = None

    @cached_property
    def tokens(self) -> Tensor:
        """All answer tokens, row after row, `[places]`."""
        return torch.tensor([token for answer in self.answers for token in answer], device=self.embeds.device)

    @cached_property
    def rows(self) -> Tensor:
        """The row of every answer token, `[places]`."""
        counts = torch.tensor(list(map(len, self.answers)), device=self.embeds.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    @cached_property
    def root_slots(self) -> Tensor:
        """The index of the token before each answer token but the last of its row, `[batch, roots]`.

        That is the slot of a drafter that pairs the state after a token with the token behind it. Shorter rows are
        padded with the slots that follow.
        """
        starts = torch.tensor(self.prompt.lengths, device=self.embeds.device)[:, None] - 1
        count = max(max(map(len, self.answers)) - 1, 1)
        slots = starts + torch.arange(count, device=starts.device)
        return slots.clamp(max=self.embeds.shape[1] - 2)

    def drafted(self, step: int) -> tuple[Tensor, Tensor]:
        """Return from which roots a chain reaches an answer token `step + 1` places behind them, `[batch, roots]`, and
        those places, `[n]`."""
        device = self.embeds.device
        counts = torch.tensor(list(map(len, self.answers)), device=device)[:, None]
        behind = torch.arange(self.root_slots.shape[1], device=device) + 1 + step
        valid = behind < counts
        if self.chosen is not None:
            valid = valid & self.chosen
        if self.reach is not None:
            valid = valid & (step < self.reach)
        return valid, (counts.cumsum(0) - counts + behind)[valid]

    def each_step(self, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for a drafter whose guess at a place is the same in every step, what makes a `Guess` of every step
        that has any: which of the guesses of step 0 these are, their places, and their roots, each `[n]`."""
        _, first = self.drafted(0)
        number = torch.full((len(self.tokens),), -1, device=first.device)
        number[first] = torch.arange(len(first), device=first.device)
        for step in range(steps):
            valid, places = self.drafted(step)
            if not valid.any():
                return
            yield number[places], places, valid.flatten().nonzero()[:, 0]

    @cached_property
    def anchors(self) -> tuple[Tensor, Tensor]:
        """The roots from which chains are drafted, without the others: `[batch, anchors]` their numbers, ascending, and
        which of these are meant. Rows that have fewer are padded."""
        valid, _ = self.drafted(0)
        order = valid.long().sort(dim=1, descending=True, stable=True)
        count = max(int(valid.sum(1).max()), 1)
        return order.indices[:, :count], order.values[:, :count].bool()

    def at_roots(self, count: int) -> Lesson:
        """Return this lesson with chains from `count` roots of each row at most, drawn at random."""
        valid, rank = self._shuffled()
        return replace(self, chosen=valid & (rank < count))

    def thinned(self, steps: int, ratio: float, least: float) -> Lesson:
        """Return this lesson with chains of up to so many steps: step i is asked for at a share `max(ratio ** i,
        least)` of each row's roots, rounded up, drawn at random among those of step i - 1. That is P-EAGLE's sampling
        of depths (arXiv 2602.01469), for drafters to which a further step costs as much as the first."""
        valid, rank = self._shuffled()
        roots, shares = valid.sum(1, keepdim=True), [max(ratio**step, least) for step in range(steps)]
        kept = torch.stack([(roots * share).ceil() for share in shares], dim=-1)
        return replace(self, reach=(rank[..., None] < kept).sum(-1))

    def _shuffled(self) -> tuple[Tensor, Tensor]:
        """Draw an order of the roots from which chains are drafted; return which these are, and each one's place in the
        order of its row, `[batch, roots]`."""
        valid, _ = self.drafted(0)
        draws = torch.rand(valid.shape, device="cpu").to(valid.device).masked_fill(~valid, 2.0)
        return valid, draws.argsort(dim=1).argsort(dim=1)

    def thinning(self, step: int) -> Tensor:
        """Return how many chains each one stands for that is kept up to a step, by row, `[batch]`: 1 unless the lesson
        is thinned."""
        if self.reach is None:
            return torch.ones(len(self.answers), device=self.embeds.device)
        valid, _ = replace(self, reach=None).drafted(0)
        return valid.sum(1) / (valid & (step < self.reach)).sum(1).clamp(min=1)

    @cached_property
    def logits(self) -> Tensor:
        """The target's logits before every answer token, `[places, vocab]`."""
        with torch.no_grad():
            return self.target.family.head(self.states(LAST))

    def states(self, layer: int) -> Tensor:
        """Return the target's states from which every answer token was predicted, `[places, hidden]`."""
        starts = torch.tensor(self.prompt.lengths, device=self.embeds.device)
        counts = torch.tensor(list(map(len, self.answers)), device=self.embeds.device)
        first = counts.cumsum(0) - counts
        index = starts[self.rows] - 1 + torch.arange(len(self.rows), device=starts.device) - first[self.rows]
        return self.features[layer][self.rows, index]

    @staticmethod
    def weight(answers: Iterable[Sequence[int]]) -> int:
        """Count the drafted tokens that answers have: all but the first of each."""
        return sum(len(answer) - 1 for answer in answers)
