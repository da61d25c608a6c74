"""A draft model speaks of the same tokens as its target: the check, and the passes of one whose table is padded
otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...errors import MMSpecError
from ...families import Family
from ...trees.growth import Block

if TYPE_CHECKING:
    from ...models.session import ModelSession
    from ...target import Target


def check_vocabulary(target: Target, draft: Target) -> None:
    """Refuse a draft model whose token ids mean something else; embedding tables may be padded to different sizes."""
    ours, theirs = target.tokenizer, draft.tokenizer
    apart = ours is not None and theirs is not None and ours is not theirs
    if apart and ours.get_vocab() != theirs.get_vocab():
        raise MMSpecError(
            f"the draft model's tokenizer ({len(theirs.get_vocab())} tokens) is not the target's "
            f"({len(ours.get_vocab())} tokens): they must share one; choose a draft model of the target's family"
        )
    if target.vocab_size != draft.vocab_size and (not apart or target.family.writes != "text"):
        raise MMSpecError(
            f"target vocab is {target.vocab_size} but the drafter's is {draft.vocab_size}: they must share a "
            "tokenizer; if they do and only their padding differs, give both models their processor to compare"
        )


def known_tokens(tokens: Tensor, family: Family) -> Tensor:
    """Return tokens that a model of this family can read; token 0 in the place of others."""
    return tokens.masked_fill(tokens >= family.known_ids, 0)


def fitted(logits: Tensor, vocab_size: int) -> Tensor:
    """Return logits over the target's vocabulary: models pad their embedding tables differently."""
    if logits.shape[-1] >= vocab_size:
        return logits[..., :vocab_size]
    return nn.functional.pad(logits, (0, vocab_size - logits.shape[-1]), value=float("-inf"))


def read_block(session: ModelSession, block: Block, vocab_size: int) -> Tensor:
    """Return a draft model's logits after the nodes of a block, `[batch, new, vocab]`, over the target's vocabulary.

    Args:
        session: where the model reads.
        block: the nodes.
        vocab_size: size of the target's vocabulary.
    """
    tokens = known_tokens(block.tokens, session.model.family)
    return fitted(session.read(tokens, block.visible, block.depth, block.extends_chain).logits, vocab_size)
