"""Resampler: a compressor in which a few learned queries attend to a picture once."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from ..errors import MMSpecError
from ..settings.arguments import positive
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class Resampler(VisualCompressor):
    """One cross-attention from learned queries to the visual embeddings, without positions, norms or residual.

    With `summary` the last query's output is not an entry but a vector for the whole picture: ViSpec's image adaptor
    (arXiv 2509.15235, section 3.2), whose parameter names these are. Without, it is the resampler of SpecVLM (arXiv
    2509.11815). The entries stand at the last places of the picture, with the target's states of those places.

    Args:
        queries: number of learned queries.
        heads: number of attention heads.
        summary: True if the output of the last query is the summary; then `queries - 1` entries are left.
        bias: True if the projections of keys and values have biases.

    Raises:
        MMSpecError: if there are no queries or heads, or the width is not a multiple of the heads.
    """

    positions = "gap"
    settings = ("queries", "heads", "summary", "bias")

    def __init__(self, queries: int = 2, heads: int = 4, summary: bool = False, bias: bool = False):
        super().__init__()
        positive(self, queries=queries, heads=heads)
        self.queries, self.heads, self.summary, self.bias = queries, heads, summary, bias

    def attach(self, hidden: int, state: int) -> None:
        """Create the queries and the projections."""
        if hidden % self.heads:
            raise MMSpecError(f"Resampler: heads={self.heads} does not divide the hidden size {hidden}")
        width = hidden // self.heads
        self.q = nn.Parameter(torch.randn(self.queries, self.heads, width) * width**-0.5)
        self.k_proj = nn.Linear(hidden, hidden, bias=self.bias)
        self.v_proj = nn.Linear(hidden, hidden, bias=self.bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, span: VisualSpan) -> Compressed:
        """Return the queries' outputs."""
        seen = span.embeds.to(self.q.dtype)
        projected = (self.k_proj(seen), self.v_proj(seen))
        keys, values = (
            rearrange(part, "token (head width) -> head token width", head=self.heads) for part in projected
        )
        queries = rearrange(self.q, "query head width -> head query width")
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        outputs = self.o_proj(rearrange(attended, "head query width -> query (head width)")).to(span.embeds.dtype)
        entries, summary = (outputs[:-1], outputs[-1]) if self.summary else (outputs, None)
        count = min(len(entries), len(span))  # a picture of fewer tokens than queries has no more places
        places = torch.arange(len(span) - count, len(span), device=seen.device)
        return Compressed(entries[:count], Sources.some(places, len(span)), summary)
