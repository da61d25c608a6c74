"""The lattice of LiLiCorr: the likeliest tokens of all slots of a block, which look at one another before a walk."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...trees.proposals import IMPOSSIBLE
from ..head_config import initialise
from .correction import Embed, Head, LookAhead, Walk

FACTS = 5
"""Numbers that a node is told about its probability."""

LEAST = -100.0
"""Least logarithm of a probability that a node is told; that of what is impossible."""


class Lattice(LookAhead):
    """A small transformer over the k likeliest tokens of every slot (LiLiCorr, arXiv 2608.20530).

    The node of the candidate b of slot j begins as `P E(b) + Q h_j + MLP(log p, p, log p - log p_best, rank / (k - 1),
    whether it is the best) + slot_j + rank_b`. Layers of attention without a mask, with a bias by the distance of
    slots, let every node see all others. With n what comes out, and c made of the target's newest fused state,
    `f = SiLU(W [n; c; n * c])`; two maps make vectors `o` and `i` of f, of length 1. The score of b below a is `s <o_a,
    i_b>`, with s given; above the first slot stands a vector that is made of c.

    With `residual`, the score is `g s <o_a, i_b>` plus the block's own logit of b, with a learned g that is 0 at first.

    Args:
        hidden: width of the block's states and of embeddings.
        drafts: number of slots that guess a token.
        candidates: number k of candidates of a slot.
        layers: number of layers.
        size: width of a node.
        heads: heads of attention.
        ratio: width inside the MLP of a layer, in widths of a node.
        factors: width of the vectors `o` and `i`.
        scale: number s.
        vector_eps: least length by which a vector is divided.
        residual: whether the block's logits are added to the scores.
        eps: that of the norms.
    """

    def __init__(
        self,
        *,
        hidden: int,
        drafts: int,
        candidates: int,
        layers: int,
        size: int,
        heads: int,
        ratio: float,
        factors: int,
        scale: float,
        vector_eps: float,
        residual: bool,
        eps: float,
    ):
        super().__init__()
        self.drafts, self.candidates, self.scale, self.vector_eps = drafts, candidates, scale, vector_eps
        self.token_proj = nn.Identity() if hidden == size else nn.Linear(hidden, size)
        self.pass_hidden_proj, self.context_proj = nn.Linear(hidden, size), nn.Linear(hidden, size)
        self.feature_mlp = nn.Sequential(nn.LayerNorm(FACTS), nn.Linear(FACTS, size), nn.SiLU(), nn.Linear(size, size))
        self.slot_embedding = nn.Parameter(torch.zeros(1, 1, drafts, 1, size))
        self.rank_embedding = nn.Parameter(torch.zeros(1, 1, 1, candidates, size))
        self.relative_slot_bias = nn.Parameter(torch.zeros(heads, 2 * drafts + 1))
        self.same_slot_bias = nn.Parameter(torch.zeros(heads))
        self.layers = nn.ModuleList([LatticeLayer(size, heads, ratio, eps) for _ in range(layers)])
        self.output_norm, self.anchor_norm = nn.RMSNorm(size, eps=eps), nn.RMSNorm(size, eps=eps)
        self.factor_input_proj = nn.Linear(3 * size, size)
        self.out_head, self.in_head, self.anchor_out_head = (nn.Linear(size, factors) for _ in range(3))
        self.gain = nn.Parameter(torch.zeros(())) if residual else None
        initialise(self)

    def walk(self, base: Tensor, hidden: Tensor, newest: Tensor, embed: Embed, vocabulary: Tensor | None) -> Walk:
        """Return the way down the scores of all pairs of candidates, see `LookAhead.walk`."""
        best = base.topk(min(self.candidates, base.shape[-1]), dim=-1)
        tokens = best.indices if vocabulary is None else vocabulary[best.indices]
        log_p = (best.values.float() - base.float().logsumexp(-1, keepdim=True)).clamp(min=LEAST)
        nodes = self._nodes(log_p, embed(tokens.flatten(1)).unflatten(1, tokens.shape[1:]), hidden)
        slots = torch.arange(tokens.shape[2], device=tokens.device).repeat_interleave(tokens.shape[3])
        distance = slots[:, None] - slots
        bias = self.relative_slot_bias[:, distance + self.drafts] + self.same_slot_bias[:, None, None] * (distance == 0)
        states = nodes.flatten(0, 1).flatten(1, 2)  # [lattices, drafts * k, size]
        for layer in self.layers:
            states = layer(states, bias)
        start, leaving, entering = self._vectors(self.output_norm(states).view_as(nodes), newest)
        above = torch.cat([start[:, :, None, None].expand_as(leaving[:, :, :1]), leaving[:, :, :-1]], dim=2)
        # Behind the candidates stands a vector of zeros, for a token above that is none of them.
        scores = self.scale * (functional.pad(above, (0, 0, 0, 1)) @ entering.mT)
        if self.gain is not None:
            scores = self.gain * scores + best.values[..., None, :]
        scores = scores.masked_fill((best.values == IMPOSSIBLE)[..., None, :], IMPOSSIBLE)
        return LatticeWalk(best.indices, tokens, scores)

    def _nodes(self, log_p: Tensor, embeds: Tensor, hidden: Tensor) -> Tensor:
        """Return what the layers read, `[batch, blocks, drafts, k, size]`.

        Args:
            log_p: `[batch, blocks, drafts, k]` log-probabilities of the candidates, the best one first.
            embeds: `[batch, blocks, drafts, k, hidden]` embeddings of the candidates.
            hidden: `[batch, blocks, drafts, hidden]` normed states of the slots.
        """
        count = log_p.shape[-1]
        ranks = torch.arange(count, device=log_p.device)
        facts = [log_p, log_p.exp(), log_p - log_p[..., :1], ranks / max(count - 1, 1), ranks == 0]
        told = self.feature_mlp(torch.stack([fact.expand_as(log_p).to(hidden.dtype) for fact in facts], dim=-1))
        own = self.token_proj(embeds) + self.pass_hidden_proj(hidden)[..., None, :] + told
        return own + self.slot_embedding + self.rank_embedding[..., :count, :]

    def _vectors(self, nodes: Tensor, newest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors above the first slots, `[batch, blocks, factors]`, and two of every node, `o` and `i`,
        `[batch, blocks, drafts, k, factors]`."""
        context = self.anchor_norm(self.context_proj(newest))
        beside = context[:, :, None, None].expand_as(nodes)
        factors = functional.silu(self.factor_input_proj(torch.cat([nodes, beside, nodes * beside], dim=-1)))
        made = self.anchor_out_head(context), self.out_head(factors), self.in_head(factors)
        start, leaving, entering = (functional.normalize(part, dim=-1, eps=self.vector_eps) for part in made)
        return start, leaving, entering


class LatticeWalk(Walk):
    """A way down a table of scores. The state of a node is a single number: the place, among all rows of scores of all
    blocks, slots and tokens above, of the row for what stands below it.

    Args:
        indices: `[batch, blocks, drafts, k]` the candidates as numbers of logits.
        tokens: `[batch, blocks, drafts, k]` the candidates as tokens of the target.
        scores: `[batch, blocks, drafts, k + 1, k]` scores below each candidate of the slot above, and below any other
            token; in the first slot, all but the last row are those below the anchor.
    """

    def __init__(self, indices: Tensor, tokens: Tensor, scores: Tensor):
        self.indices, self.tokens, self.scores = indices.flatten(0, 2), tokens.flatten(0, 2), scores.flatten(0, 3)
        self.rows = scores.shape[3]  # those of a slot
        self.block = scores.shape[2] * self.rows

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the rows below the anchors of all blocks, in order, `[batch, blocks, 1]`."""
        return (torch.arange(anchors.numel(), device=anchors.device) * self.block).view(*anchors.shape, 1)

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the rows below the tokens."""
        slot = state // self.rows
        other = self.tokens[slot[..., 0]] != tokens[..., None]
        return (slot + 1) * self.rows + other.cumprod(-1).sum(-1, keepdim=True)

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the scores of the candidates; -inf for all other tokens."""
        row = state[..., 0]
        scores = self.scores[row].to(base.dtype)
        return torch.full_like(base, IMPOSSIBLE).scatter(-1, self.indices[row // self.rows], scores)


class LatticeAttention(nn.Module):
    """Attention of all nodes to all nodes. Its weights have the names that `torch.nn.MultiheadAttention` gives them.

    Args:
        size: width of a node.
        heads: number of heads.
    """

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * size, size)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size))
        self.out_proj = nn.Linear(size, size)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Return `[lattices, nodes, size]` of such states, with a bias `[heads, nodes, nodes]` of scores."""
        joint = functional.linear(states, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = (part.transpose(1, 2) for part in joint.unbind(2))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).flatten(2)))


class LatticeLayer(nn.Module):
    """A pre-norm layer of attention and MLP over all nodes of a lattice.

    Args:
        size: width of a node.
        heads: heads of attention.
        ratio: width inside the MLP, in widths of a node.
        eps: that of the norms.
    """

    def __init__(self, size: int, heads: int, ratio: float, eps: float):
        super().__init__()
        inner = round(size * ratio)
        self.attn_norm, self.mlp_norm = nn.RMSNorm(size, eps=eps), nn.RMSNorm(size, eps=eps)
        self.attn = LatticeAttention(size, heads)
        self.mlp = nn.Sequential(nn.Linear(size, inner), nn.SiLU(), nn.Linear(inner, size))

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Return the output for `[lattices, nodes, size]` states, see `LatticeAttention`."""
        states = states + self.attn(self.attn_norm(states), bias)
        return states + cast(Tensor, self.mlp(self.mlp_norm(states)))
