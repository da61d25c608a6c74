"""A vocabulary of its own: some of the target's tokens, for drafters that need not propose them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from ..settings.arguments import as_int

if TYPE_CHECKING:
    from ..target import Target


PADDING = 1024
"""Rows by which tables of one tokenizer may differ, because they are filled up to a round number, and at most an eighth
of them."""


def is_padding(rows: int, others: int) -> bool:
    """Return True if two tables may be of one tokenizer, filled up to different round numbers, such as multiples of
    64."""
    return abs(rows - others) <= min(PADDING, rows // 8, others // 8)


class ReducedVocabulary(nn.Module):
    """A part of drafters whose head is cut to the tokens that are used most (EAGLE-3; FR-Spec, arXiv 2502.14856).

    The buffers are those of the published checkpoints: draft token i is target token `i + d2t[i]`, and `t2d` says of
    every target token whether it can be drafted.
    """

    target: Target
    draft_vocab_size: int | None
    d2t: Tensor
    t2d: Tensor

    def reduce_vocabulary(self, size: int | None) -> None:
        """Draft from `size` tokens, the first ones until `choose_vocabulary`; None drafts from all. For constructors.

        Raises:
            MMSpecError: for a size that the target does not have.
        """
        if size is None:
            return
        vocab, count = self.target.vocab_size, as_int(size)
        if count is None or not 0 < count <= vocab:
            raise MMSpecError(
                f"draft_vocab_size={size!r} must lie between 1 and the target's {vocab}, or be None for all tokens"
            )
        self.draft_vocab_size = count
        self.register_buffer("d2t", torch.zeros(count, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(vocab) < count)

    @property
    def draft_vocabulary(self) -> Tensor | None:
        """`[draft_vocab_size]` target tokens in the order of the logits, ascending; None for all of them."""
        if self.draft_vocab_size is None:
            return None
        return torch.arange(self.draft_vocab_size, device=self.d2t.device) + self.d2t

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which target tokens can be drafted, usually the most frequent ones.

        Args:
            tokens: `[draft_vocab_size]` token ids in any order.

        Raises:
            MMSpecError: if their number is another, they are not different tokens of the target, or this drafter drafts
                from all tokens.
        """
        size, vocab = self.draft_vocab_size, self.target.vocab_size
        if size is None:
            raise MMSpecError(
                f"this {type(self).__name__} drafts from all {vocab} tokens, so there are none to choose; make it with "
                "draft_vocab_size"
            )
        different = len(tokens.unique())
        if not len(tokens) == different == size or not 0 <= tokens.min() <= tokens.max() < vocab:
            raise MMSpecError(
                f"choose_vocabulary takes {size} different tokens, as draft_vocab_size says, from 0 to {vocab - 1}; it "
                f"was given {len(tokens)}, {different} of them different"
                + (f", from {int(tokens.min())} to {int(tokens.max())}" if different else "")
            )
        tokens = tokens.sort().values.to(self.d2t.device)
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d.zero_()[tokens] = True

    def check_vocabulary(self, source: str) -> None:
        """Refuse tokens that the target does not have, or has once but would be drafted twice.

        Args:
            source: where they come from, as an error calls it.

        Raises:
            MMSpecError: with how many there are, and their range.
        """
        size, vocab, tokens = self.draft_vocab_size, self.target.vocab_size, self.draft_vocabulary
        if size is None or tokens is None:
            return
        low, high, different = int(tokens.min()), int(tokens.max()), len(tokens.unique())
        if low < 0 or high >= vocab or different < size:
            raise MMSpecError(
                f"{source}: d2t of {size} draft tokens leads to {different} tokens from {low} to {high}; {size} "
                f"different ones of the target's {vocab} are needed"
            )
