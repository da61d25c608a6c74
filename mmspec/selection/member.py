"""Member: a model that answers, and says how likely it finds the answers of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..chat import Conversation
from ..drafters import Drafter, DraftModelDrafter
from ..errors import MMSpecError, shown
from ..generation import generate
from ..inputs import Request, prepare
from ..models.states import LAST
from ..target import Target
from ..training.teacher import Teacher

Over = Literal["answer", "turn"]


class Member:
    """A model that takes part in a selection, whichever way it reads the question.

    Args:
        model: a `Target`, with a processor of its own; or a draft model of the large one, which then answers by itself:
            it reads the large model's prompt and writes its tokens.
        name: what it is called.
        drafter: what drafts for a `Target` while it writes; its own text stays what it is.

    Raises:
        MMSpecError: for another object, and for a drafter beside a draft model.
    """

    def __init__(self, model: Target | DraftModelDrafter, name: str, drafter: Drafter | None = None):
        if not isinstance(model, Target | DraftModelDrafter):
            raise MMSpecError(f"Member {name!r}: {shown(model)} is no Target and no draft model, so it cannot answer")
        if drafter is not None and isinstance(model, DraftModelDrafter):
            raise MMSpecError(f"Member {name!r}: a draft model writes without a drafter; leave drafter=None")
        self.model, self.name, self.drafter = model, name, drafter

    def write(self, request: Request, large: Target, max_new_tokens: int) -> list[int]:
        """Return an answer in the large model's tokens, without an end token; greedy.

        Args:
            request: the question, as the large model reads it.
            large: the large model.
            max_new_tokens: at most so many.

        Raises:
            MMSpecError: for a model with a processor of its own, if the request was made from inputs.
        """
        return self.write_all(request, large, max_new_tokens)[0]

    def write_all(self, request: Request, large: Target, max_new_tokens: int) -> list[list[int]]:
        """Return an answer to every row of a batch, see `write`."""
        model = self.model
        if isinstance(model, DraftModelDrafter):
            with torch.inference_mode():
                return model.write(request, large.encode(request), max_new_tokens, large.eos_token_ids)
        read = self._read(model, request, large)
        out = generate(model, self.drafter, inputs=read, max_new_tokens=max_new_tokens)
        rows = [[token for token in ids if token not in model.eos_token_ids] for ids in out.token_ids]
        return rows if model is large else [_translated(ids, model, large) for ids in rows]

    @torch.inference_mode()
    def logits(self, request: Request, answers: Sequence[Sequence[int]], large: Target) -> list[Tensor]:
        """Return the logits before every token of some answers to one question, `[tokens, vocab]` each, from one pass.

        Args:
            request: the question, as the large model reads it.
            answers: in this model's tokens.
            large: the large model.

        Raises:
            MMSpecError: for an answer without tokens.
        """
        if not all(answers):
            raise MMSpecError(f"Member {self.name!r}: an answer has no token, so nothing can be said of it")
        model, count = self.model, len(answers)
        if isinstance(model, Target):
            prompt = model.repeat(self._read(model, request, large), count)
            lesson = Teacher(model).study(prompt, [[*answer] for answer in answers])
            return list(lesson.logits.float().split([len(answer) for answer in answers]))
        request = large.repeat(request, count)
        _, lengths, states = model.states_of(request, large.encode(request), answers)
        return [
            model.logits_of(row[length - len(answer) - 1 : length - 1]).float()
            for row, length, answer in zip(states, lengths, answers, strict=True)
        ]

    def tokens_of(self, answer: Sequence[int], large: Target) -> list[int]:
        """Return this model's tokens of an answer in the large model's."""
        model = self.model
        return (
            [*answer] if isinstance(model, DraftModelDrafter) or model is large else _translated(answer, large, model)
        )

    def nll(
        self, request: Request, answers: Sequence[Sequence[int]], large: Target, over: Over = "answer"
    ) -> list[float]:
        """Return the mean negative log-likelihood of the tokens of each answer.

        Args:
            request: the question, as the large model reads it.
            answers: in the large model's tokens.
            large: the large model.
            over: `"answer"`: the answer's tokens, behind the prompt; `"turn"`: all tokens of the prompt that are no
                picture, with the answer written into the user's turn, as the released code of SV has it.
        """
        if over == "turn":
            return self._of_turns(request, [large.tokenizer.decode([*answer]) for answer in answers], large)
        own = [self.tokens_of(answer, large) for answer in answers]
        return [_mean(logits, ids) for logits, ids in zip(self.logits(request, own, large), own, strict=True)]

    @torch.inference_mode()
    def _of_turns(self, request: Request, answers: Sequence[str], large: Target) -> list[float]:
        """Return the means over whole turns that hold question and answer."""
        if request.conversations is None:
            raise MMSpecError("over='turn' writes answers into the question: ask with prompt= and images=, not inputs=")
        asked = prepare(large, messages=[with_words(request.conversations[0], f"\n{answer}") for answer in answers])
        model, nothing = self.model, [[0]] * len(answers)
        if isinstance(model, Target):
            read, seen = self._read(model, asked, large), model.family
            head: Callable[[Tensor], Tensor] = seen.head
            states = Teacher(model).study(read, nothing).features[LAST]
        else:
            if model.compressor is not None:
                raise MMSpecError(f"Member {self.name!r} reads pictures through a compressor: choose over='answer'")
            read, _, states = model.states_of(asked, large.encode(asked), nothing)
            head, seen = model.logits_of, large.family
        found = []
        for row, ids in zip(states, read.token_ids(), strict=True):
            tokens = torch.tensor(ids[1:], device=row.device)
            words = ~seen.is_visual(tokens)
            found.append(_mean(head(row[: len(ids) - 1][words]), tokens[words].tolist()))
        return found

    def _read(self, model: Target, request: Request, large: Target) -> Request:
        """Return a request as a model with a processor of its own reads it."""
        if model is large:
            return request
        if request.conversations is None:
            raise MMSpecError(
                f"Member {self.name!r} reads questions by its own processor: ask with prompt= and images=, not inputs="
            )
        own = prepare(model, messages=request.conversations)
        if request.of_one_text:
            return own
        return model.sharing(own, prepare(model, messages=request.conversations[:1]))


def with_words(conversation: Conversation, words: str) -> Conversation:
    """Return a conversation whose last message ends with further words."""
    *before, last = conversation
    parts = [*last.parts]
    if parts and isinstance(parts[-1], str):
        parts[-1] += words
    else:
        parts.append(words.lstrip())
    return [*before, replace(last, parts=tuple(parts))]


def _translated(ids: Sequence[int], writer: Target, reader: Target) -> list[int]:
    """Return the tokens that one model has for what another has written."""
    text = writer.tokenizer.decode([*ids], skip_special_tokens=True)
    return reader.tokenizer(text, add_special_tokens=False)["input_ids"]


def _mean(logits: Tensor, tokens: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of some tokens, from the logits before each."""
    index = torch.tensor(tokens, device=logits.device)[:, None]
    return -logits.float().log_softmax(-1).gather(1, index).mean().item()
