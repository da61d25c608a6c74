"""Reliability: the chance of yes against no after a question about a draft, and the choice that is made by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..chat import Conversation
from ..errors import MMSpecError
from ..training.teacher import Teacher
from .documents import prepare_together

if TYPE_CHECKING:
    from ..target import Target

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")
"""Spellings of which those count that are one token of the target."""


class Reliability:
    """`rel = P(Yes) / (P(Yes) + P(No))`, by the target's distribution of the next token (VideoSpeculateRAG, arXiv
    2601.01513). Nothing is decoded: all drafts of a question are read in one pass, as rows of a batch that share the
    media.

    Ours: several spellings of a word may count together; `yes_words="Yes"` takes this one alone.

    Args:
        target: who is asked.
        yes_words, no_words: the word, or spellings of it. Those that are no single token of the target are left out.

    Raises:
        MMSpecError: if none is a single token, or both words have one in common.
    """

    def __init__(self, target: Target, yes_words: str | Sequence[str] = YES, no_words: str | Sequence[str] = NO):
        self.target = target
        self.yes, self.no = (
            _tokens(target, n, words) for n, words in {"yes_words": yes_words, "no_words": no_words}.items()
        )
        if both := set(self.yes) & set(self.no):
            word = target.tokenizer.decode([min(both)])
            raise MMSpecError(f"yes_words and no_words both have {word!r}: give words that differ")

    @torch.inference_mode()
    def __call__(self, questions: Sequence[Conversation], settings: Any = None) -> list[float]:
        """Return the reliability of each draft, from 0 to 1.

        Args:
            questions: conversations about the same media, which ask whether a draft is right.
            settings: further arguments of the chat template.
        """
        request = prepare_together(self.target, questions, settings)
        logits = Teacher(self.target).study(request, [[self.yes[0]]] * len(questions)).logits.double()
        yes, no = (logits[:, tokens].logsumexp(-1) for tokens in (self.yes, self.no))
        return (yes - no).sigmoid().tolist()


def admitted(reliability: Sequence[float], delta: float) -> list[int]:
    """Return the places of the drafts that are nearly as reliable as the most reliable: `rel >= max rel - delta`.

    Args:
        reliability: number of each draft, from 0 to 1.
        delta: 0 admits the most reliable alone, and 1 all of them.
    """
    least = max(reliability) - delta
    return [place for place, one in enumerate(reliability) if one >= least]


def best_draft(reliability: Sequence[float], alignment: Sequence[float], delta: float) -> int:
    """Return the place of the best draft: of those that are `admitted` the one of the largest alignment, among equals
    the more reliable, and then the first.

    Args:
        reliability, alignment: numbers of each draft.
        delta: see `admitted`.
    """
    return max(admitted(reliability, delta), key=lambda place: (alignment[place], reliability[place], -place))


def _tokens(target: Target, name: str, words: str | Sequence[str]) -> list[int]:
    """Return the tokens of those words that are one token."""
    if target.tokenizer is None:
        raise MMSpecError(f"{name} are words, and the target has no tokenizer: give Target(model, processor)")
    given = [words] if isinstance(words, str) else list(words)
    split = {word: target.tokenizer(word, add_special_tokens=False)["input_ids"] for word in given}
    found = list(dict.fromkeys(ids[0] for ids in split.values() if len(ids) == 1))
    if not found:
        pieces = "; ".join(f"{word!r} is {target.tokenizer.convert_ids_to_tokens(ids)}" for word, ids in split.items())
        raise MMSpecError(
            f"{name}={words!r} has no word that is one token of the target ({pieces or 'there is none'}): give one "
            f"that is, with the space before it if the model writes one"
        )
    return found
