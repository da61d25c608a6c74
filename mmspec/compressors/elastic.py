"""Elastic: a compressor in which the question decides how a picture is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MMSpecError
from ..settings.arguments import number, one_of, positive
from .base import Compressed, VisualCompressor, VisualSpan
from .hide import Hide
from .pool import Conv, Pool
from .prune import Prune
from .resampler import Resampler
from .token_assignment import Sources

MODES = ("fusion", "concatenation", "selection")


class Elastic(VisualCompressor):
    """The elastic visual compressor of SpecVLM (arXiv 2509.11815, section 3.2): several operators and a gate.

    `selection` (the paper's default): the gate chooses one operator or none at all (`Hide`), by Gumbel-softmax with a
    straight-through gradient in training and by its maximum in use. `fusion`: operators of one and the same size are
    added up with the gate's weights. `concatenation`: the entries of all operators, one behind the other, no gate.

    Faithful: operators, modes, and a gate driven by the target's states of the question. Ours: the gate is an MLP on
    their mean (its shape is not given); the operators keep about the same shares as the paper's for a picture of any
    size; the entries of all operators stand where their tokens stood, those of the resampler at the last places.

    Args:
        mode: `"fusion"`, `"concatenation"` or `"selection"`.
        size: edge of the windows of Pool and Conv in `fusion` and `selection`, in tokens; Prune keeps as many entries
            as they do.
        queries: number of queries of the resampler. `fusion` leaves the resampler out, because it gives another number
            of entries.
        temperature: temperature of the Gumbel-softmax, above 0.

    Raises:
        MMSpecError: for an unknown mode, or a drafter that reads no states for the gate.
    """

    settings = ("mode", "size", "queries", "temperature")

    def __init__(self, mode: str = "selection", size: int = 2, queries: int = 2, temperature: float = 1.0):
        super().__init__()
        positive(self, size=size, queries=queries)
        one_of(self, MODES, mode=mode)
        number(self, above=0, temperature=temperature)
        self.mode, self.size, self.queries, self.temperature = mode, size, queries, temperature
        share = 1 / size**2
        if mode == "fusion":
            branches: Sequence[VisualCompressor] = [Prune(share, "uniform"), Pool(size), Conv(size)]
        elif mode == "concatenation":
            branches = [Prune(0.05, "random"), Pool(4), Conv(size), Resampler(queries)]
        else:
            branches = [Prune(share, "random"), Pool(size), Conv(size), Resampler(queries), Hide()]
        self.branches = nn.ModuleList(branches)

    @property
    def operators(self) -> list[VisualCompressor]:
        """The compressors that are combined, or among which the gate chooses."""
        return cast(list[VisualCompressor], list(self.branches))

    def attach(self, hidden: int, state: int) -> None:
        """Create the weights of the operators and of the gate."""
        for branch in self.operators:
            branch.attach(hidden, state)
        if self.mode != "concatenation":
            inner, count = hidden // 4, len(self.branches)
            self.gate = nn.Sequential(nn.Linear(state, inner), nn.SiLU(), nn.Linear(inner, count))

    def scores(self, span: VisualSpan) -> Tensor:
        """Return the gate's scores for the question, `[branches]`."""
        if span.states is None:
            raise MMSpecError("Elastic: its gate reads the target's states, and this drafter has none; use Pool")
        return self.gate(span.states.to(next(self.gate.parameters()).dtype).mean(0)).float()

    def choice(self, span: VisualSpan) -> int:
        """Return the number of the branch that `selection` uses."""
        return int(self.scores(span).argmax())

    def forward(self, span: VisualSpan) -> Compressed:
        """Compress a picture with one operator or with all of them, as `mode` says."""
        if self.mode == "concatenation":
            left = [branch(span) for branch in self.operators]
            return Compressed(torch.cat([one.embeds for one in left]), Sources.joined([one.source for one in left]))
        if self.mode == "fusion":
            prune, pool, conv = self.operators
            assert isinstance(prune, Prune)
            left = [pool(span), conv(span)]
            index = prune.choose(span, len(left[0].embeds)).sort().values.to(span.embeds.device)
            left.insert(0, Compressed(span.embeds[index], Sources.some(index, len(span))))
            shares = self.scores(span).softmax(-1)
            embeds = torch.stack([one.embeds for one in left], dim=-1) @ shares.to(span.embeds.dtype)
            return Compressed(embeds, Sources.blended([one.source for one in left], shares))
        scores = self.scores(span)
        if not (self.training and torch.is_grad_enabled()):
            return self.operators[int(scores.argmax())](span)
        # One branch is run; the gradient reaches the gate through its weight, which is 1 in the forward pass.
        soft = functional.gumbel_softmax(scores, self.temperature)
        number = int(soft.argmax())
        left = self.operators[number](span)
        weight = (soft[number] + (1 - soft[number]).detach()).to(span.embeds.dtype)
        return Compressed(left.embeds * weight, left.source, left.summary)
