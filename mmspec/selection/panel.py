"""Parts that selectors share: members from what they are made of, and the large model's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..drafters import Drafter
from ..errors import MMSpecError, shown
from ..generation import generate
from ..inputs import Request
from .member import Member
from .outcome import Selected

if TYPE_CHECKING:
    from ..target import Target


def members_of(given: Sequence[Any]) -> list[Member]:
    """Return members, from members and from models, which are then called by their place and class.

    Raises:
        MMSpecError: for no list, for two of one name, and for what cannot answer.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise MMSpecError(f"members={shown(given)} must be a list of models that answer")
    found = [
        one if isinstance(one, Member) else Member(one, f"{place}: {type(getattr(one, 'model', one)).__name__}")
        for place, one in enumerate(given, start=1)
    ]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise MMSpecError(f"members has two of the name {twice[0]!r}: give each its own, Member(model, name)")
    return found


def large_answer(
    target: Target, drafter: Drafter | None, request: Request, max_new_tokens: int, found: Selected, by: str = "large"
) -> None:
    """Let the large model answer a request, and note it in a result.

    Args:
        target: the large model.
        drafter: what drafts for it, or None.
        request: what it is asked.
        max_new_tokens: at most so many.
        found: the result.
        by: who it is said to be.
    """
    with found.stage(by):
        out = generate(target, drafter, inputs=request, max_new_tokens=max_new_tokens)
    found.text, found.token_ids, found.by = out.text[0] or "", out.token_ids[0], by
    found.rounds = out.stats.rounds
    found.passes += 1 + out.stats.num_spec_steps
    found.tokens["large"] += len(out.token_ids[0])
