"""The check that a draft model speaks of the same tokens as its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import MMSpecError

if TYPE_CHECKING:
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
