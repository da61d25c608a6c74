"""A vocabulary of its own: some of the target's tokens, for drafters that need not propose them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MMSpecError

if TYPE_CHECKING:
    from ..target import Target


class ReducedVocabulary:
    """A part of drafters whose head is cut to the tokens that are used most (EAGLE-3; FR-Spec, arXiv 2502.14856).

    The buffers are those of the published checkpoints: draft token i is target token `i + d2t[i]`, and `t2d` says of
    every target token whether it can be drafted.
    """

    target: Target
    draft_vocab_size: int | None

    def reduce_vocabulary(self, size: int | None) -> None:
        """Draft from `size` tokens, the first ones until `choose_vocabulary`; None drafts from all.

        Raises:
            MMSpecError: for a size that the target does not have.
        """
        self.draft_vocab_size = size
        if size is None:
            return
        vocab = self.target.vocab_size
        if not 0 < size <= vocab:
            raise MMSpecError(f"draft_vocab_size={size} must lie between 1 and the target's {vocab}")
        self.register_buffer("d2t", torch.zeros(size, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(vocab) < size)

    @property
    def draft_vocabulary(self) -> Tensor | None:
        if self.draft_vocab_size is None:
            return None
        return torch.arange(self.draft_vocab_size, device=self.d2t.device) + self.d2t

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which `[draft_vocab_size]` target tokens can be drafted, usually the most frequent ones.

        Raises:
            MMSpecError: if their number is another, or they are not different tokens of the target.
        """
        vocab = self.target.vocab_size
        if len(tokens.unique()) != self.draft_vocab_size or not 0 <= tokens.min() <= tokens.max() < vocab:
            raise MMSpecError(
                f"choose_vocabulary takes {self.draft_vocab_size or 'no'} different tokens, as draft_vocab_size says, "
                f"all in the target's vocabulary; it was given {len(tokens)}, {len(tokens.unique())} of them different"
            )
        tokens = tokens.sort().values.to(self.d2t.device)
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d.zero_()[tokens] = True
