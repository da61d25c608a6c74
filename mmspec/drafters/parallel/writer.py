"""ChainWriter: a draft model's session that writes ahead of the text, and is corrected by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...models.session import ModelSession
from ...seeds import seed_from
from ...trees import Proposals
from ...trees.growth import Block
from ...trees.proposals import doubt
from ..draft_model.vocabulary import fitted, read_block
from ..step import Trunk


class Stop(Protocol):
    """Something that happens while others are at work, such as a `threading.Event`."""

    def set(self) -> None:
        """Say that it has happened."""

    def clear(self) -> None:
        """Say that it has not."""

    def is_set(self) -> bool:
        """Return True if it has."""


class First(NamedTuple):
    """The first tokens that are written, for those who wait for them while the others follow.

    Args:
        tokens: `[batch]` one of every row; anything in rows that do not write.
        probs: `[batch, vocab]` what they were drawn from; None if they are the likeliest.
    """

    tokens: Tensor
    probs: Tensor | None


@dataclass
class Written:
    """The tokens that were written in one go.

    Args:
        tokens: per row, the same number of tokens; none in rows that did not write.
        bad: per row, True for each of them that came from logits which are no distribution, or stands behind such a
            one.
        probs: `[batch, tokens, vocab]` what they were drawn from; None if they are the likeliest.
        seconds: mean time of a token.
    """

    tokens: list[list[int]]
    bad: list[list[bool]]
    probs: Tensor | None
    seconds: float


class ChainWriter:
    """Writes chains behind some texts with a small model, token by token, and reads what it has written: its cache is
    ahead of the text, and rolled back where the text goes another way.

    The last token of every text is never read, for what comes behind it is asked when it is.

    Draws of every `write` come from a stream of its own, so they do not depend on how far the one before got.

    Attributes:
        stop: set to have no further token written.

    Args:
        session: the model's session, which has read the prompts.
        texts: per row, the tokens of the target's prompt, and what follows; the writer's own lists.
        active: per row, False once it has ended; a list that its owner keeps up.
        proposals: how tokens are chosen.
        vocab_size: size of the target's vocabulary.
        opening: `[batch, vocab]` the model's logits behind the prompts, if the texts are no more than that; None if
            they end with a first token.
    """

    def __init__(
        self,
        session: ModelSession,
        texts: list[list[int]],
        active: list[bool],
        proposals: Proposals,
        vocab_size: int,
        opening: Tensor | None = None,
    ):
        self.session, self.texts, self.active, self.vocab_size = session, texts, active, vocab_size
        self.proposals = replace(proposals, history=texts)
        self.stop: Stop = threading.Event()
        self._opening = None if opening is None else fitted(opening, vocab_size)
        self._stream = None if proposals.generator is None else proposals.generator.initial_seed()
        self._writes = 0
        session.follow(texts, active, pending=0 if opening is not None else 1)

    def follow(self, active: list[bool]) -> None:
        """Take another list of the rows that go on."""
        self.active = self.session.active = active

    @torch.inference_mode()
    def correct(self, ends: Sequence[int], news: Sequence[Sequence[int]]) -> None:
        """Let the texts go another way: the model forgets what it has read of the rest.

        Args:
            ends: per row, how many of its tokens stay.
            news: per row, what follows them now.
        """
        for text, end in zip(self.texts, ends, strict=True):
            del text[end:]
        beyond = [max(0, -pending) for pending in self.session.pending]
        if any(beyond):
            self.session.take_back(beyond)
        for text, new in zip(self.texts, news, strict=True):
            text.extend(new)

    @torch.inference_mode()
    def write(self, count: int, rows: Sequence[bool], told: Callable[[First], None] | None = None) -> Written:
        """Write tokens behind the texts, which then hold them: as many as asked for, or fewer if `stop` is set
        meanwhile, but one at least.

        Args:
            count: how many in every row.
            rows: which rows write.
            told: called with the first tokens, as soon as they are chosen.
        """
        started, session = time.perf_counter(), self.session
        on = [wanted and going for wanted, going in zip(rows, self.active, strict=True)]
        if self._stream is not None:
            assert self.proposals.generator is not None
            self.proposals.generator.manual_seed(seed_from(f"{self._stream} window {self._writes}"))
        self._writes += 1
        logits, device = self._behind_texts(on), session.cache.lengths.device
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        best: list[Tensor] = []
        for step in range(count):
            if step:
                if self.stop.is_set():
                    break
                past = torch.full((len(on), 1), step - 1, device=device)
                everything = torch.ones(len(on), 1, step, dtype=torch.bool, device=device)
                block = Block(tokens[-1], past, everything, past, extends_chain=True, level=step - 1)
                logits = read_block(session, block, self.vocab_size)[:, 0]
            above = lambda: [[row] for row in (torch.cat(tokens, 1).tolist() if tokens else [[] for _ in on])]  # noqa: E731
            child = self.proposals.choose(logits[:, None], 1, above)
            tokens.append(child.tokens[:, 0])
            best.append(child.best)
            if child.probs is not None:
                probs.append(child.probs)
            if not step and told is not None:
                told(First(tokens[0][:, 0], None if child.probs is None else child.probs[:, 0]))
        if len(tokens) > 1:
            session.keep([(len(tokens) - 1) * flag for flag in on])
        unusable = doubt(torch.cat(best, dim=1)).cumsum(-1).isnan()
        table = torch.cat([torch.cat(tokens, dim=1), unusable], dim=1).tolist()
        chosen = [row[: len(tokens)] if flag else [] for row, flag in zip(table, on, strict=True)]
        bad = [[*map(bool, row[len(tokens) :])] if flag else [] for row, flag in zip(table, on, strict=True)]
        for text, new in zip(self.texts, chosen, strict=True):
            text.extend(new)
        seconds = (time.perf_counter() - started) / len(tokens)
        return Written(chosen, bad, torch.cat(probs, dim=1) if probs else None, seconds)

    def _behind_texts(self, on: Sequence[bool]) -> Tensor:
        """Read what is still unread of some rows; return `[batch, vocab]` logits behind them."""
        session, opening, self._opening = self.session, self._opening, None
        counts = [pending if flag else 0 for pending, flag in zip(session.pending, on, strict=True)]
        if opening is not None and not any(counts):  # of texts that are no more than the prompts
            return opening
        trunk = Trunk.of(self.texts, counts, session.cache.lengths.device)
        logits = read_block(session, trunk, self.vocab_size)
        session.keep(trunk.counts, kept=trunk.kept)
        return trunk.last_of(logits)
