"""`prefix_allowed_tokens_fn` for trees: asked about any node, in the words of `generate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from .by_row import ByRow
from .errors import MMSpecError


class AllowedTokens(ByRow):
    """A `PrefixConstrainedLogitsProcessor` that knows of which row of the batch a node is.

    transformers numbers the rows of the scores, which here are the nodes of trees. The function is asked about guesses
    too that no text will go through: behind an end token, say, or after a token that it does not allow. Where it fails
    there, nobody need know. So a failure is kept until the text has come that way, see `settle`.

    Args:
        function: from the number of a row and its tokens so far, `[length]`, to the tokens allowed next.
        prompts: `[batch, width]` the prompts as the function knows them, padding included; None for no padding.
        lengths: tokens per row without padding; needed with `prompts`.
    """

    def __init__(
        self,
        function: Callable[[int, Tensor], Sequence[int]],
        prompts: Tensor | None = None,
        lengths: Sequence[int] = (),
    ):
        self.function, self.prompts, self.lengths = function, prompts, lengths
        self._failed: dict[int, dict[tuple[int, ...], Exception]] = defaultdict(dict)
        self._ended: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Process `[nodes, vocab]` scores after `[nodes, length]` tokens, which belong to these rows of the batch."""
        everything = range(scores.shape[-1])
        allowed = [self._allowed(row, ids) or everything for row, ids in zip(rows, input_ids, strict=True)]
        # Its own arithmetic, which differs between versions, with answers that are known.
        return PrefixConstrainedLogitsProcessor(lambda node, _: list(allowed[node]), 1)(input_ids, scores)

    def _allowed(self, row: int, ids: Tensor) -> Sequence[int] | None:
        """What the function says, or None if it fails."""
        if row in self._ended:
            return None
        told = ids
        if self.prompts is not None:
            told = torch.cat([self.prompts[row].to(ids), ids[self.lengths[row] :]])
        try:
            allowed = self.function(row, told)
            if len(allowed):
                return allowed
            error: Exception = MMSpecError(
                f"prefix_allowed_tokens_fn allows no token in row {row} after {len(told)} tokens, the last of them "
                f"{told[-5:].tolist()}; allow at least one, such as the end token"
            )
        except Exception as failure:  # the caller's code may do anything
            error = failure
        self._failed[row][tuple(ids.tolist())] = error
        return None

    def settle(self, row: int, history: list[int], start: int, count: int, ended: bool) -> None:
        """Hear how far a row has come.

        Args:
            row: of the batch.
            history: its tokens, prompt included.
            start: how many of them there were before this round.
            count: how many of the round's tokens are in the text.
            ended: whether the row ends with them; it is asked about no more.

        Raises:
            Exception: what the function raised, or an `MMSpecError` if it allowed nothing, on the way of the text.
        """
        failed = self._failed.pop(row, {})
        if ended:
            self._ended.add(row)
        for length in range(start, start + count) if failed else ():
            if (error := failed.get(tuple(history[:length]))) is not None:
                raise error
