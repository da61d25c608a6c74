"""The interface of verifiers, and the one walk that most of them share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from ..sampling import LogitsPipeline
from ..tree import DraftTree

if TYPE_CHECKING:
    from ..target import Context


class Verifier:
    """Decides how much of a tree is kept. One instance serves any number of requests: `fork` gives each its own state.

    Subclasses implement `first_token` and `verify`, and say in `lossless` whether the emitted text follows the
    target's own distribution; that must follow from their parameters.
    """

    proposal = "point"
    """How drafters should choose children: `"point"` (the likeliest) or `"sampled"` (drawn, with their q)."""

    @property
    def lossless(self) -> bool:
        raise NotImplementedError

    def fork(self, context: Context, pipeline: LogitsPipeline, seed: int) -> Verifier:
        """A copy for one request, ready to verify."""
        verifier = copy.copy(self)
        verifier.context, verifier.pipeline = context, pipeline
        verifier.start(seed)
        return verifier

    def start(self, seed: int) -> None:
        """Set up per-request state; `self.context` and `self.pipeline` are there."""

    def check(self, pipeline: LogitsPipeline) -> None:
        """Raise an `MMSpecError` if this verifier cannot serve such a request (the wrong temperature, say)."""

    def first_token(self, context: Context) -> Tensor:
        """The first root, `[batch]`, from the logits after the prompt."""
        raise NotImplementedError

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """The accepted path of each row and its bonus token."""
        raise NotImplementedError

    def processed(self, tree: DraftTree, scores: Scores) -> Tensor:
        """`[batch, nodes, vocab]` scores after the logits pipeline, each node judged with its own prefix."""
        return self.pipeline(scores.logits, lambda: node_prefixes(self.context.history, tree))

    def processed_first(self, context: Context) -> Tensor:
        """`[batch, vocab]` scores of the first token, after the logits pipeline."""
        return self.pipeline(context.logits[:, None], lambda: [[ids] for ids in context.history])[:, 0]


def node_prefixes(history: list[list[int]], tree: DraftTree) -> list[list[list[int]]]:
    """Per row and node: the tokens of the sequence up to and including that node. The root ends the history."""
    rows = []
    for past, tokens, parents in zip(history, tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        prefixes = [past]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            prefixes.append([*prefixes[parent], token])
        rows.append(prefixes)
    return rows


def follow(tree: DraftTree, choices: Tensor) -> Verdict:
    """The longest path on which every token is what the target chose after its parent.

    Args:
        tree: the candidates.
        choices: `[batch, nodes]` the target's own token after each node.
    """
    if tree.num_nodes == 1:  # plain decoding: nothing was guessed
        return Verdict(torch.zeros_like(choices), torch.ones_like(choices[:, 0]), choices[:, 0])
    if tree.is_chain and tree.valid is None:
        right = (tree.tokens[:, 1:] == choices[:, :-1]).cumprod(-1).sum(-1)
        steps = torch.arange(tree.num_nodes, device=choices.device).expand_as(choices)
        path = torch.where(steps <= right[:, None], steps, -1)
        return Verdict(path, right + 1, choices.gather(1, right[:, None])[:, 0])
    matches = tree.tokens == choices.gather(1, tree.parents.clamp(min=0))
    matches[:, 0] = True
    if tree.valid is not None:
        matches &= tree.valid
    # A node is reached if no node on its path fails to match.
    reached = ~(tree.ancestors & ~matches[:, None]).any(-1)
    rank = torch.where(reached, tree.depth, -1)
    last = rank.argmax(-1)
    path, length = tree.path_to(last)
    return Verdict(path, length, choices.gather(1, last[:, None])[:, 0])
