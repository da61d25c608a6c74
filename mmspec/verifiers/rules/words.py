"""Words that rules judge exactly: texts that are single tokens of the target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ...errors import MMSpecError, shown

if TYPE_CHECKING:
    from ...models.model import Model


def words(owner: object, strict: Iterable[str]) -> list[str]:
    """Return the texts that a rule was given as `strict`.

    Raises:
        MMSpecError: for what is no list of texts.
    """
    texts = [*strict] if isinstance(strict, Iterable) and not isinstance(strict, str) else [""]
    if not all(isinstance(text, str) and text for text in texts):
        raise MMSpecError(f"{type(owner).__name__}: strict={shown(strict, 60)} must be a list of texts, such as ['$']")
    return texts


def tokens_of(owner: object, strict: Sequence[str], target: Model) -> list[int]:
    """Return the tokens of texts.

    Raises:
        MMSpecError: for a text that is no single token of the target.
    """
    tokens: list[int] = []
    for text in strict:
        ids = [] if target.speller is None else target.speller.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise MMSpecError(
                f"{type(owner).__name__}: strict has {text!r}, which is {len(ids)} tokens of this target: name single "
                "tokens"
            )
        tokens += ids
    return tokens
