"""Logits processors that are told whose nodes they judge: of which row of the batch, and where its answer begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor


class ByRow:
    """A processor for trees. transformers' own take the n-th row of the scores for the n-th row of the batch, which
    here is a node of some tree."""

    def begin(self, lengths: Sequence[int]) -> None:
        """Hear how many tokens the prompt of every row has."""

    def __call__(self, input_ids: Tensor, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Process `[nodes, vocab]` scores after `[nodes, length]` tokens, which belong to these rows of the batch."""
        raise NotImplementedError

    def settle(self, row: int, history: list[int], start: int, count: int, ended: bool) -> None:
        """Hear how far a row has come, see `AllowedTokens.settle`."""


class BehindPrompt(ByRow):
    """A processor of transformers that counts from the end of the prompt, in a batch whose prompts differ in length.

    Args:
        make: from the length of a prompt, in tokens, to the processor for it.
    """

    def __init__(self, make: Callable[[int], Callable[[Tensor, Tensor], Tensor]]):
        self.make = make

    def begin(self, lengths: Sequence[int]) -> None:
        """Make a processor for every length of a prompt in the batch."""
        self.lengths = list(lengths)
        self.processors = {length: self.make(length) for length in set(lengths)}

    def __call__(self, input_ids: Tensor, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Process every row's nodes by the processor for its prompt."""
        members = defaultdict(list)
        for node, row in enumerate(rows):
            members[self.lengths[row]].append(node)
        scores = scores.clone()
        for length, nodes in members.items():
            scores[nodes] = self.processors[length](input_ids[nodes], scores[nodes])
        return scores
