"""The candidate selector of DFlash 2: a walk over a few candidates of every slot, each scored with the one above."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...trees.proposals import IMPOSSIBLE
from .correction import Correction, Embed, Head


class Selector(Correction):
    """The scores `S(a -> b) = U(b) + <A[a] * (W h), B[b]>` of the k likeliest tokens b of a slot, below a token a.

    Everything else has no probability, so that q has k entries. With W = 0, as at first, the scores are the block's.

    Args:
        hidden: width of the block's states.
        tokens: number of the target's tokens.
        vocab: number of tokens that are guessed.
        rank: width of A, B and W h.
        top_k: number k of candidates.
    """

    def __init__(self, hidden: int, tokens: int, vocab: int, rank: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.predecessor_codebook, self.successor_codebook = nn.Embedding(tokens, rank), nn.Embedding(vocab, rank)
        self.hidden_projection = nn.Linear(hidden, rank, bias=False)
        nn.init.zeros_(self.hidden_projection.weight)

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the rows of the anchors."""
        return self.predecessor_codebook(anchors)

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the rows of the tokens: those further above are forgotten."""
        return self.predecessor_codebook(tokens)

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the scores of the candidates; -inf for all other tokens."""
        best = base.topk(min(self.top_k, base.shape[-1]), dim=-1)
        wanted = (state * self.hidden_projection(hidden))[..., None]
        scores = best.values + (self.successor_codebook(best.indices) @ wanted)[..., 0]
        return torch.full_like(base, IMPOSSIBLE).scatter(-1, best.indices, scores)
