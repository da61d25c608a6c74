"""`prefix_allowed_tokens_fn` for trees: the function is called for every node, with the arguments that `generate` gives
it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from ..errors import MMSpecError
from .by_row import ByRow


class AllowedTokens(ByRow):
    """A `PrefixConstrainedLogitsProcessor` that knows the row of the batch to which each node belongs.

    transformers numbers the rows of the scores, which here are the nodes of trees. The function is also called for
    guesses that never become text, for example behind an end token or after a token that it does not allow. If it fails
    there, nobody needs to know. So an error is kept until the text has reached that place, see `settle`.

    Args:
        function: maps the number of a row and its tokens so far, `[length]`, to the tokens allowed next.
        prompts: `[batch, width]` the prompts as the function expects them, padding included; None for no padding.
        lengths: number of tokens per row without padding; needed with `prompts`.
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
        """Process `[nodes, vocab]` scores after `[nodes, length]` tokens, where `rows` gives each node's row of the
        batch."""
        everything = range(scores.shape[-1])
        allowed = [self._allowed(row, ids) or everything for row, ids in zip(rows, input_ids, strict=True)]
        # Its own arithmetic, which differs between versions, with answers that are known.
        return PrefixConstrainedLogitsProcessor(lambda node, _: list(allowed[node]), 1)(input_ids, scores)

    def _allowed(self, row: int, ids: Tensor) -> Sequence[int] | None:
        """Return the tokens that the function allows, or None if it fails."""
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
        """Update how far a row has come, and raise what failed on the way of its text.

        Args:
            row: index of the row in the batch.
            history: tokens of the row, prompt included.
            start: length of the history before this round.
            count: number of the round's tokens that are in the text.
            ended: True if the row ends with them; the function is not called for it again.

        Raises:
            Exception: any error of the function on the way of the text; an `MMSpecError` if it allowed nothing there.
        """
        failed = self._failed.pop(row, {})
        if ended:
            self._ended.add(row)
        for length in range(start, start + count) if failed else ():
            if (error := failed.get(tuple(history[:length]))) is not None:
                raise error
