"""Check which model gave the answers of a data set: a drafter has to learn what its own target says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ..data.examples import Source
from ..errors import MMSpecError
from ..models.weights import fingerprint
from .answers import Answers

if TYPE_CHECKING:
    from ..target import Target

logger = logging.getLogger(__name__)


def describe_target(target: Target) -> dict[str, Any]:
    """Return a description that tells one target from another, wherever its files are."""
    return {
        "model_type": target.model.config.model_type,
        "vocab_size": target.vocab_size,
        "dtype": _name(target.dtype),
        "weights": fingerprint(target.model),
    }


def rounded_weights(target: Target) -> dict[str, str]:
    """Return fingerprints of the target's weights by dtype, to recognise it when it is loaded in another precision.

    Of a target in half precision only its own dtype is asked for later: one way of rounding tells nothing of another,
    and every fingerprint reads all weights.
    """
    dtypes = (torch.bfloat16, torch.float16) if target.dtype == torch.float32 else (target.dtype,)
    return {_name(dtype): fingerprint(target.model, dtype) for dtype in dtypes}


def check_author(examples: Source, target: Target) -> None:
    """Warn if the answers were given by another model than the target: a drafter has to learn what its own target says.

    The target may be loaded in another dtype than when it answered. Answers from a file do not say which model gave
    them, so nothing is checked there.

    Raises:
        MMSpecError: if the other model has another vocabulary, in which the answers' token ids mean other words.
    """
    if not isinstance(examples, Answers):
        return
    theirs, info, ours = examples.settings.get("target") or {}, examples.infos[0], describe_target(target)
    ways = "answer with this target (mmspec distill), or train for the one that answered"
    name = info.get("model") or theirs.get("model_type")
    if theirs.get("vocab_size", ours["vocab_size"]) != ours["vocab_size"]:
        raise MMSpecError(
            f"the answers in {str(examples.answers_folder)!r} were given by {name} with {theirs['vocab_size']} tokens, "
            f"but the target {target.model.config.name_or_path!r} has {ours['vocab_size']}: {ways}"
        )
    if _same_weights(theirs, info.get("rounded") or {}, ours, target) is False:
        logger.warning(
            "the answers in %s were given by another target (%s) than the one that is trained for (%s), and a drafter "
            "has to learn what its own target says: %s",
            examples.answers_folder,
            name,
            target.model.config.name_or_path or ours["model_type"],
            ways,
        )


def _same_weights(theirs: dict, rounded: dict, ours: dict, target: Target) -> bool | None:
    """Return True if two descriptions are of one model, in whatever precision; None if that cannot be told."""
    if theirs.get("model_type") != ours["model_type"]:
        return False
    dtypes = theirs.get("dtype"), ours["dtype"]
    if dtypes[0] == dtypes[1]:
        return theirs.get("weights") == ours["weights"]
    if "float32" not in dtypes:  # two ways of rounding, from neither of which the other follows
        return None
    narrow = dtypes[1] if dtypes[0] == "float32" else dtypes[0]
    if narrow is None or narrow not in rounded:  # of an older version of mmspec
        return None
    return rounded[narrow] == fingerprint(target.model, getattr(torch, narrow))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
