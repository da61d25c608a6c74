"""When a row ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from transformers import StopStringCriteria

from ..errors import MMSpecError
from ..settings.arguments import as_int, callables


class Stopping:
    """End tokens, the length limit and Hugging Face stopping criteria, applied token by token.

    A round emits several tokens at once; a row ends at the first of them after which one-by-one decoding would have
    stopped, and what lies behind it is dropped.

    Args:
        max_new_tokens: at least 1.
        eos_token_ids: one id or several.
        criteria: called with `[1, length]` ids and None for the scores; a single one may stand for a list of one.
        stop: a text or several: a row ends with the token that completes one of them, which may have begun in the
            prompt, as in `generate(stop_strings=..., tokenizer=...)`.
        tokenizer: the target's, for `stop`.

    Raises:
        MMSpecError: naming what is not of these types, and for `stop` without a tokenizer.
    """

    def __init__(
        self,
        max_new_tokens: int,
        eos_token_ids: int | Iterable[int] = (),
        criteria: Iterable[Callable] | Callable | None = None,
        stop: str | Iterable[str] | None = None,
        tokenizer=None,
    ):
        limit = as_int(max_new_tokens)
        if limit is None or limit < 1:
            raise MMSpecError(f"max_new_tokens={max_new_tokens!r} must be a positive integer, such as 256")
        self.max_new_tokens = limit
        self.eos = _ids(eos_token_ids)
        self.criteria = callables("stopping_criteria", criteria)
        texts = _texts(stop)
        if texts and tokenizer is None:
            raise MMSpecError(
                f"stop={texts!r} is looked for in the text, but the target has no tokenizer: give Target(model, "
                "processor), or the token ids that end an answer as eos_token_id="
            )
        self.stop = StopStringCriteria(tokenizer, texts) if texts else None

    def cut(self, history: list[int], so_far: list[int], emitted: list[int]) -> tuple[list[int], str | None]:
        """Return the part of `emitted` that stands, and why the row ends with it (None if it goes on).

        Args:
            history: all ids of the row, `emitted` included at the end.
            so_far: new tokens before this round.
            emitted: tokens of this round.
        """
        start = len(history) - len(emitted)
        for count, token in enumerate(emitted, start=1):
            if token in self.eos:
                return emitted[:count], "eos"
            if self.criteria or self.stop is not None:
                ids = torch.tensor([history[: start + count]], device="cpu")
                if self.stop is not None and _met(self.stop, ids):
                    return emitted[:count], "stop"
                if any(_met(criterion, ids) for criterion in self.criteria):
                    return emitted[:count], "stopping_criteria"
            if len(so_far) + count == self.max_new_tokens:
                return emitted[:count], "length"
        return emitted, None


def _met(criterion: Callable, ids: torch.Tensor) -> bool:
    """Return whether a criterion holds for one row, `[1, length]`."""
    answer = torch.as_tensor(criterion(ids, None), device="cpu")
    if answer.numel() != 1:
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise MMSpecError(
            f"stopping_criteria holds {name}, which gave {answer.numel()} answers about one row: criteria are called "
            "row by row here, so they must not go by the number of a row"
        )
    return bool(answer)


def _ids(given) -> set[int]:
    """Return one token id or several, as a set."""
    try:
        ids = [as_int(given)] if as_int(given) is not None or isinstance(given, str) else [as_int(one) for one in given]
    except TypeError:
        ids = [None]
    found = {one for one in ids if one is not None}
    if None in ids:
        raise MMSpecError(f"eos_token_id={given!r} must be a token id or a list of them ([] for no end token)")
    return found


def _texts(given) -> list[str]:
    """Return one text or several, as a list."""
    texts = [] if given is None else [given] if isinstance(given, str) or not isinstance(given, Iterable) else [*given]
    for text in texts:
        if not isinstance(text, str) or not text:
            raise MMSpecError(f"stop={given!r} must be a text, or a list of texts, none of them empty")
    return texts
