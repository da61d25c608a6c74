"""A draft model, as servers read it: an ordinary folder of transformers, with the target's tokenizer."""

from __future__ import annotations

from pathlib import Path

from ...drafters import DraftModelDrafter, TextOnlyDrafter
from ...errors import MMSpecError
from .writer import check_length

TOKENS = 5
"""Length of the chains that a server drafts unless something else is asked for."""


def write_draft_model(drafter: DraftModelDrafter, folder: Path, speculative_tokens: int | None) -> int:
    """Write the model, and return the length of its chains.

    A server drafts with the language model alone: it gives the draft model the prompt as the target reads it, with the
    embedding of the placeholder where the target sees a picture. So a `TextOnlyDrafter`, which leaves the placeholders
    out, accepts more here than there behind a picture; the text is the target's in both.
    """
    check_length(speculative_tokens)
    drafter.model.save_pretrained(folder)
    drafter.target.tokenizer.save_pretrained(folder)
    return TOKENS if speculative_tokens is None else speculative_tokens


def check_blind(drafter: DraftModelDrafter) -> None:
    """Refuse a draft model that sees, and that would be served blind.

    Raises:
        MMSpecError: for such a one.
    """
    if type(drafter) is not TextOnlyDrafter:
        raise MMSpecError(
            f"a {type(drafter).__name__} reads pictures, and a server drafts from the text alone: export a draft model "
            "that was trained without them (recipe=text_only)"
        )
