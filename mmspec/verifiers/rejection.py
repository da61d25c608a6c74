"""Speculative sampling proper: drafts are drawn from q and kept with probability min(1, p/q)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from ..sampling import random_stream
from ..tree import DraftTree
from .point_mass import PointMassSampling

if TYPE_CHECKING:
    from ..target import Context


class RejectionSampling(PointMassSampling):
    """Multi-round rejection sampling over a tree whose siblings were drawn without replacement.

    At a node with target distribution p and draft distribution q, the children are tried in the order of their draw:
    child x is accepted with probability min(1, p(x) / q(x)); after a refusal p becomes norm(max(p - q, 0)), x is struck
    from q and q is renormalised. If no child is accepted the bonus is drawn from what is left of p. With one child per
    node this is Leviathan et al. (arXiv 2211.17192, algorithm 1); with several, the recursive scheme of SpecInfer
    (arXiv 2305.09781) in its without-replacement form, which EAGLE-1 uses. Lossless if the shape of the tree does not
    depend on which tokens were drawn; builders that choose nodes by their tokens refuse to draw (see
    `TreeBuilder.value_independent`). Trees of point proposals (look-up drafters) are verified as by
    `PointMassSampling`, which is the limit of the same rule.
    """

    proposal = "sampled"

    def start(self, seed: int) -> None:
        super().start(seed)
        self.generator = random_stream(self.context.logits.device, seed, "verifier")

    def first_token(self, context: Context) -> Tensor:
        return self._draw(self.processed_first(context).softmax(-1))

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        if tree.proposal == "point":
            return super().verify(tree, scores)
        p_all = self.processed(tree, scores).softmax(-1)
        rows = torch.arange(tree.batch_size, device=p_all.device)
        nodes = torch.arange(tree.num_nodes, device=p_all.device)
        current = torch.zeros_like(rows)
        walking = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(tree.max_depth):
            p = p_all[rows, current]
            q = tree.draft_probs[rows, tree.expansion[rows, current].clamp(min=0)].to(p)
            is_child = (tree.parents == current[:, None]) & walking[:, None]
            if tree.valid is not None:
                is_child &= tree.valid
            # The order of the draw is the order of the nodes.
            children = torch.where(is_child, nodes, tree.num_nodes).sort(-1).values
            walking = torch.zeros_like(walking)
            for child in children[:, : int(is_child.sum(-1).max())].unbind(1):
                trying = (child < tree.num_nodes) & ~walking
                child = child.clamp(max=tree.num_nodes - 1)
                token = tree.tokens[rows, child]
                p_token, q_token = p[rows, token], q[rows, token]
                u = self._uniform(p_token)
                # A node beyond q's support was never drawn (q ran dry): it cannot be accepted.
                accepted = trying & (u * q_token < p_token) & (q_token > 0)
                refused = trying & ~accepted
                p = torch.where(refused[:, None], residual(p, q), p)
                q = torch.where(refused[:, None], strike(q, token), q)
                current = torch.where(accepted, child, current)
                walking |= accepted
            p_all[rows, current] = torch.where(walking[:, None], p_all[rows, current], p)
            if not walking.any():
                break
        path, length = tree.path_to(current)
        return Verdict(path, length, self._draw(p_all[rows, current]))

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def _draw(self, probs: Tensor) -> Tensor:
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)) over the last axis. Where p = q to the last bit nothing is left, and p itself is returned:
    a refusal then has probability zero."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)


def strike(q: Tensor, token: Tensor) -> Tensor:
    """q without `token` (`[batch]`), renormalised; all zeros if nothing else was in it."""
    rest = q.scatter(-1, token[:, None], 0.0)
    return rest / rest.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
