"""Proposals: how the children of a node are chosen from a drafter's logits, whatever these hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..decoding.sampling import LogitsPipeline

IMPOSSIBLE = float("-inf")


class Children(NamedTuple):
    """Children of some nodes.

    Logits that hold NaN or +inf, or nothing but -inf, are no distribution. Children have to be named all the same, for
    all rows of a batch go on together; builders see the log-probability -inf, and nothing is drawn from q.

    Args:
        tokens: `[batch, nodes, count]`, the best (or first drawn) child first.
        log_probs: function that gives the `[batch, nodes, count]` log-probabilities, NaN where a node's logits are
            no distribution; only those ask who go by them.
        probs: `[batch, nodes, vocab]` distribution q if children were drawn, else None.
        best: `[batch, nodes]`, a finite number where a node's logits are a distribution.
        logits: `[batch, nodes, vocab]` what likeliest children were chosen by; None if they were drawn.
    """

    tokens: Tensor
    log_probs: Callable[[], Tensor]
    probs: Tensor | None
    best: Tensor
    logits: Tensor | None = None


@dataclass
class Proposals:
    """The way in which children are chosen from a drafter's logits.

    Args:
        sampled: False for the likeliest children, True for children drawn without replacement.
        pipeline: the target's logits pipeline, which q goes through too when children are drawn.
        history: per row, the tokens so far, the root last; for processors that depend on the prefix.
        generator: random numbers for the draws.
        barred: tokens that the pipeline never lets through, which are no children either; None for none.
        divisor: number that the logits are divided by where likeliest children are valued; it changes neither which
            they are nor what is drawn.
    """

    sampled: bool = False
    pipeline: LogitsPipeline | None = None
    history: list[list[int]] | None = None
    generator: torch.Generator | None = None
    barred: Tensor | None = None
    divisor: float = 1.0

    @property
    def prefix_free(self) -> bool:
        """True if the children of a node can be chosen without knowing the tokens above it."""
        return not self.sampled or (self.pipeline is not None and self.pipeline.prefix_free)

    def choose(
        self,
        logits: Tensor,
        count: int,
        paths: Callable[[], list[list[list[int]]]],
        vocabulary: Tensor | None = None,
    ) -> Children:
        """Choose `count` children per node from `[batch, nodes, vocab]` logits.

        Args:
            logits: the drafter's logits after every node.
            count: number of children per node.
            paths: function that gives, per row and node, the tokens behind the root.
            vocabulary: `[vocab]` the target's tokens that likeliest children are chosen among; None for all.
        """
        count = min(count, logits.shape[-1])
        if not self.sampled:
            if self.barred is not None:
                tokens = torch.arange(logits.shape[-1], device=logits.device) if vocabulary is None else vocabulary
                logits = logits.masked_fill(torch.isin(tokens, self.barred), IMPOSSIBLE)
            if self.divisor != 1.0:
                logits = logits / self.divisor
            # One child needs no selection, which costs more than a maximum.
            top = logits.max(-1, keepdim=True) if count == 1 else logits.topk(count, dim=-1)

            # NaN counts as the largest of all: where there is one among the logits, it is the first of these.
            return Children(top.indices, lambda: log_probs_of(logits, top.values), None, top.values[..., 0], logits)
        assert self.pipeline is not None, "children are drawn under the target's pipeline"
        history = self.history or []
        processed = self.pipeline(
            logits,
            lambda: [[past + path for path in row] for past, row in zip(history, paths(), strict=True)],
        )
        log_q = processed.log_softmax(-1)
        # Log-softmax makes NaN of all logits that are no distribution; -inf is the number of what is impossible.
        best = log_q[..., 0].nan_to_num(nan=float("nan"), neginf=0.0)
        log_q = log_q.nan_to_num_(nan=IMPOSSIBLE, neginf=IMPOSSIBLE)
        noise = torch.empty_like(log_q).exponential_(generator=self.generator).log()
        # The k largest of log q + Gumbel noise are k draws without replacement, in order.
        tokens = (log_q - noise).topk(count, dim=-1).indices
        return Children(tokens, lambda: log_q.gather(-1, tokens) + doubt(best)[..., None], log_q.exp(), best)


def log_probs_of(logits: Tensor, values: Tensor) -> Tensor:
    """Return the log-probabilities of tokens from the values of their logits, `[..., count]`; NaN where the
    `[..., vocab]` logits are no distribution."""
    total = logits.float().logsumexp(-1, keepdim=True)
    total = total.sub(total, alpha=0)  # NaN if it is infinite, for all children alike
    # Rounding must not make a child likelier than its parent: ancestors are kept first.
    return (values - total).clamp(max=0.0)


def only_child_log_probs(levels: Sequence[Children]) -> Tensor:
    """Return `[batch, nodes]` log-probabilities of nodes without siblings, of several levels side by side."""
    logits = [level.logits for level in levels if level.logits is not None]
    if len(levels) == 1 or not logits:
        return torch.cat([level.log_probs()[..., 0] for level in levels], dim=1)
    best = torch.cat([level.best for level in levels], dim=1)
    return log_probs_of(torch.cat(logits, dim=1), best[..., None])[..., 0]


def doubt(best: Tensor) -> Tensor:
    """Return NaN where the best logit of a node is NaN or infinite, 0 elsewhere: a sum over a path becomes NaN by
    it."""
    return best - best
