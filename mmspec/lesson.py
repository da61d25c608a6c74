"""Lesson: answers of the target with what it knew while writing them. Guess: what a drafter says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .families import Vision
from .inputs.request import Request
from .model import Model
from .states import LAST

WIDTHS = 32
"""Batches are padded to multiples of this: kernels are compiled, and kept, for every new shape."""


class Guess(NamedTuple):
    """One step of a drafter's chains, at the n roots whose answers are long enough.

    Args:
        logits: `[n, vocab]`, or `[n, draft_vocab]` of a reduced vocabulary.
        features: `[n, hidden]` what stands for the target's state there, or None for drafters that predict none.
        places: `[n]` which answer tokens are predicted, as numbers into `Lesson.tokens`.
        roots: `[n]` where the chains began, as numbers into the flattened `Lesson.root_slots`.
        intermediate: `[n, hidden]` what the drafter's first layer made of the token there, for losses that compare it
            with an intermediate state of the target; None for drafters of a single layer.
    """

    logits: Tensor
    features: Tensor | None
    places: Tensor
    roots: Tensor
    intermediate: Tensor | None = None


@dataclass
class Lesson:
    """A batch of prompts with answers, and the target's view of them.

    Args:
        target: who answered.
        prompt: the prompts alone.
        answers: the answers' token ids, per row.
        request: prompts followed by answers, right-padded to `length`.
        vision: the encoded pictures, or None.
        embeds: `[batch, length, hidden]` what the target's language model read.
        features: layer to `[batch, length, hidden]`; `LAST` is always there.
        tasks: a label per row, for reports.
    """

    target: Model
    prompt: Request
    answers: list[list[int]]
    request: Request
    vision: Vision | None
    embeds: Tensor
    features: dict[int, Tensor]
    tasks: Sequence[str] = field(default_factory=list)

    @cached_property
    def tokens(self) -> Tensor:
        """`[places]` all answer tokens, row after row."""
        return torch.tensor([token for answer in self.answers for token in answer], device=self.embeds.device)

    @cached_property
    def rows(self) -> Tensor:
        """`[places]` the row of every answer token."""
        counts = torch.tensor(list(map(len, self.answers)), device=self.embeds.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    @cached_property
    def root_slots(self) -> Tensor:
        """`[batch, roots]` per row, for every answer token but the last, the index of the token before it.

        That is the slot of a drafter that pairs the state after a token with the token behind it. Shorter rows are
        padded with whatever slots follow.
        """
        starts = torch.tensor(self.prompt.lengths, device=self.embeds.device)[:, None] - 1
        count = max(max(map(len, self.answers)) - 1, 1)
        slots = starts + torch.arange(count, device=starts.device)
        return slots.clamp(max=self.embeds.shape[1] - 2)

    def drafted(self, step: int) -> tuple[Tensor, Tensor]:
        """Which roots have an answer token `step + 1` places behind them, `[batch, roots]`, and `[n]` those places."""
        device = self.embeds.device
        counts = torch.tensor(list(map(len, self.answers)), device=device)[:, None]
        behind = torch.arange(self.root_slots.shape[1], device=device) + 1 + step
        valid = behind < counts
        return valid, (counts.cumsum(0) - counts + behind)[valid]

    @cached_property
    def logits(self) -> Tensor:
        """`[places, vocab]` the target's logits before every answer token."""
        with torch.no_grad():
            return self.target.family.head(self.states(LAST))

    def states(self, layer: int) -> Tensor:
        """`[places, hidden]` the target's states from which every answer token was predicted."""
        starts = torch.tensor(self.prompt.lengths, device=self.embeds.device)
        counts = torch.tensor(list(map(len, self.answers)), device=self.embeds.device)
        first = counts.cumsum(0) - counts
        index = starts[self.rows] - 1 + torch.arange(len(self.rows), device=starts.device) - first[self.rows]
        return self.features[layer][self.rows, index]

    @staticmethod
    def weight(answers: Iterable[Sequence[int]]) -> int:
        """The number of drafted tokens that answers have: all but the first of each."""
        return sum(len(answer) - 1 for answer in answers)
