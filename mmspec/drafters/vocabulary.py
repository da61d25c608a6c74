"""A reduced vocabulary: some of the target's tokens, for drafters that need not propose them all.

The tables are those of the published checkpoints: draft token i is target token `i + d2t[i]`, and `t2d` says of every
target token whether it can be drafted (EAGLE-3, arXiv 2503.01840; FR-Spec, arXiv 2502.14856).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MMSpecError

PADDING = 1024
"""Rows by which tables of one tokenizer may differ, because they are filled up to a round number, and at most an eighth
of them."""


def is_padding(rows: int, others: int) -> bool:
    """Return True if two tables may be of one tokenizer, filled up to different round numbers, such as multiples of
    64."""
    return abs(rows - others) <= min(PADDING, rows // 8, others // 8)


def tables_of(tokens: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Return `d2t`, `[draft tokens]`, and `t2d`, `[vocab]`.

    Args:
        tokens: `[draft tokens]` different target tokens, ascending.
        vocab: number of the target's tokens.
    """
    marked = torch.zeros(vocab, dtype=torch.bool, device=tokens.device)
    marked[tokens] = True
    return tokens - torch.arange(len(tokens), device=tokens.device), marked


def draft_tokens(d2t: Tensor) -> Tensor:
    """Return the target tokens that `d2t` leads to, `[draft tokens]`."""
    return torch.arange(len(d2t), device=d2t.device) + d2t


def place_of(token: Tensor, vocabulary: Tensor | None, vocab: int) -> Tensor | None:
    """Return the place of a token among those that are drafted, `[1]`; None if it is none of them.

    Args:
        token: `[1]` token of the target, or of a larger table.
        vocabulary: `[draft tokens]` the tokens that are drafted; None for all of the target's.
        vocab: number of the target's tokens.
    """
    tokens = torch.arange(vocab, device=token.device) if vocabulary is None else vocabulary
    place = (tokens == token).nonzero()[:, 0]
    return place if len(place) else None


def check_tokens(tokens: Tensor, size: int, vocab: int, given: str) -> None:
    """Refuse tokens that the target does not have, that are there twice, or that are too few or too many.

    Args:
        tokens: target tokens, in any order.
        size: number of tokens that the drafter can propose.
        vocab: number of the target's tokens.
        given: words before the number of tokens with which the error begins.

    Raises:
        MMSpecError: with how many there are, and their range.
    """
    different = len(tokens.unique())
    if not len(tokens) == different == size or not 0 <= tokens.min() <= tokens.max() < vocab:
        between = f" from {int(tokens.min())} to {int(tokens.max())}" if different else ""
        raise MMSpecError(
            f"{given} {different} tokens{between}; {size} different ones of the target's {vocab} are needed"
        )
