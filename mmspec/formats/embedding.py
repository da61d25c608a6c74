"""The embedding in a checkpoint: usually a copy of its target's, which is then read instead."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..drafters.vocabulary import is_padding
from ..errors import MMSpecError
from ..target import Target
from .checkpoint import Checkpoint

EMBEDDING = "embed_tokens.weight"

CHUNK = 1024
"""Number of rows that are compared at a time, so that the table is never in memory as a whole."""

logger = logging.getLogger(__name__)


def embedding_rows(checkpoint: Checkpoint, target: Target, hidden: int) -> int | None:
    """Return the number of rows of the embedding that the drafter keeps; None if it reads the target's embedding.

    The target's embedding is read if the checkpoint has none, or if both agree on the rows that they have in common, up
    to the rounding of the coarser of their dtypes. Otherwise the checkpoint's own is kept, as the original code would
    use it.

    Args:
        checkpoint: the checkpoint that may hold an embedding.
        target: the model to draft for.
        hidden: the drafter's hidden size.

    Raises:
        MMSpecError: if the tokens cannot be the target's, or the drafter's hidden size differs and the checkpoint has
            no embedding.
    """
    vocab = target.vocab_size
    if EMBEDDING not in checkpoint.shapes:
        said = checkpoint.said("vocab_size", int)
        if said is not None and not is_padding(said, vocab):
            raise MMSpecError(_other_tokens(checkpoint, f"{said} tokens", vocab))
        if hidden != target.hidden_size:
            raise MMSpecError(
                f"{checkpoint} has hidden size {hidden} and no {EMBEDDING}, so it works on a target of that size; this "
                f"one's is {target.hidden_size}: load it for the model that it was trained for"
            )
        return None
    rows, width = checkpoint.sizes(EMBEDDING, "tokens", "hidden")
    checkpoint.header.check_kind(EMBEDDING, floating=True)
    if width == target.hidden_size and _agrees(checkpoint, target):
        return None
    if not is_padding(rows, vocab):
        raise MMSpecError(_other_tokens(checkpoint, f"{rows} tokens with other embeddings", vocab))
    logger.warning("%s has another %s than the target, which is kept: was it made for this one?", checkpoint, EMBEDDING)
    return rows


def _other_tokens(checkpoint: Checkpoint, theirs: str, vocab: int) -> str:
    return (
        f"{checkpoint} has a vocabulary of {theirs}, the target one of {vocab}: they must share a tokenizer; load a "
        "drafter that was trained for this target"
    )


@torch.no_grad()
def _agrees(checkpoint: Checkpoint, target: Target) -> bool:
    """Return True if the checkpoint's embedding equals the target's for the same tokens, up to rounding."""
    ours = target.model.get_input_embeddings().num_embeddings
    rows = min(checkpoint.shapes[EMBEDDING][0], ours)
    for start in range(0, rows, CHUNK):
        end = min(start + CHUNK, rows)
        theirs = checkpoint.rows(EMBEDDING, start, end).to(target.device)
        tokens = torch.arange(start, end, device=target.device)
        read = target.model.get_input_embeddings()(tokens)
        if not alike(theirs, read):
            return False
    return True


def alike(theirs: Tensor, ours: Tensor) -> bool:
    """Return True if two tensors hold the same numbers, up to the rounding of the coarser of their dtypes."""
    kinds = [torch.finfo(tensor.dtype) for tensor in (theirs, ours)]
    # Numbers below the smallest normal one are rounded to a fixed grid.
    relative, absolute = max(k.eps for k in kinds), max(k.eps * k.smallest_normal for k in kinds)
    return torch.allclose(theirs.float(), ours.float(), rtol=relative, atol=absolute)
