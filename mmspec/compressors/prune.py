"""Prune: a compressor that keeps some of the visual tokens unchanged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..settings.arguments import number, one_of
from .base import Compressed, VisualCompressor, VisualSpan
from .budgets import evenly_spaced
from .token_assignment import Sources

WAYS = ("random", "uniform", "similarity")


class Prune(VisualCompressor):
    """Keeps a share of the tokens at their positions and drops the rest.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        by: `random` makes the same choice for every picture of one size (SpecVLM, arXiv 2509.11815, drops at random);
            `uniform` takes evenly spaced tokens; `similarity` takes the tokens most like the question: largest cosine
            of a visual embedding with the embedding of any word.
        seed: seed of the random choice.

    Raises:
        MMSpecError: for a share out of range or an unknown way.
    """

    settings = ("keep", "by", "seed")

    def __init__(self, keep: float = 0.25, by: str = "uniform", seed: int = 0):
        super().__init__()
        number(self, above=0, highest=1, keep=keep)
        one_of(self, WAYS, by=by)
        self.keep, self.by, self.seed = keep, by, seed

    def forward(self, span: VisualSpan) -> Compressed:
        """Keep the chosen tokens, in reading order."""
        count = max(1, round(self.keep * len(span)))
        index = self.choose(span, count).sort().values.to(span.embeds.device)
        return Compressed(span.embeds[index], Sources.some(index, len(span)))

    def choose(self, span: VisualSpan, count: int) -> Tensor:
        """Return the numbers of the tokens that stay, `[count]` in any order."""
        if self.by == "random":
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randperm(len(span), generator=generator, device="cpu")[:count]
        if self.by == "uniform":
            return evenly_spaced(count, len(span), "cpu")
        seen, said = (functional.normalize(states.float(), dim=-1) for states in (span.embeds, span.text))
        return (seen @ said.T).amax(-1).topk(count).indices
