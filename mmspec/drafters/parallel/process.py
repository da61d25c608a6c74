"""DraftProcess: a draft model in a process of its own, and the writers that ask it.

Both ends talk through a pipe of this machine. Tokens and distributions are in memory that both share: the pipe only
says that they are there. The child is started as a module, not by `multiprocessing`, which would run the caller's
script again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from multiprocessing import Pipe, current_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # which teaches multiprocessing to share tensors

from ...errors import MMSpecError, first_line
from ...models.capturing import without_capturing
from ...models.model import Model
from ...trees import Proposals
from .writer import First, Written

MODULE = "mmspec.drafters.parallel.child"
PATIENCE = 5.0
"""Seconds that the child has to end by itself."""


class Flag:
    """A `threading.Event` that both processes see, and nobody waits for."""

    def __init__(self) -> None:
        self._set = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def set(self) -> None:
        """Say that it has happened."""
        self._set.fill_(1)

    def clear(self) -> None:
        """Say that it has not."""
        self._set.zero_()

    def is_set(self) -> bool:
        """Return True if it has."""
        return bool(self._set[0])


class Board:
    """Memory that both processes see: what is written for one request.

    Args:
        batch: number of rows.
        longest: tokens per row that are written at once at most.
        vocab_size: size of the target's vocabulary.
        sampled: True if tokens are drawn, and their distributions are wanted.

    Attributes:
        tokens: `[batch, longest]` the newest tokens.
        bad: `[batch, longest]` True where they come from logits that are no distribution.
        probs: `[batch, longest, vocab]` what they were drawn from; None if they are the likeliest.
        stop: set to have no more written.
    """

    def __init__(self, batch: int, longest: int, vocab_size: int, sampled: bool):
        self.tokens = torch.zeros(batch, longest, dtype=torch.long).share_memory_()
        self.bad = torch.zeros(batch, longest, dtype=torch.bool).share_memory_()
        self.probs = torch.zeros(batch, longest, vocab_size).share_memory_() if sampled else None
        self.stop = Flag()


class DraftProcess:
    """A process with a copy of a draft model, whose weights are shared. It ends with this object, with this process, or
    when it is closed.

    Args:
        model: the draft model, on a processor.
        vocab_size: size of the target's vocabulary.

    Raises:
        MMSpecError: for a model that cannot be sent.
    """

    def __init__(self, model: Model, vocab_size: int):
        self.vocab_size, self._lock, self._numbers = vocab_size, threading.Lock(), count()
        self._forgotten: list[int] = []
        ours, theirs = Pipe()
        # Classes of others that are sent along are imported from where this process has them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", MODULE, str(theirs.fileno())]
        # In a group of its own, so that a terminal interrupts this end alone, which closes the pipe.
        self._child = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, process_group=0
        )
        theirs.close()
        self._pipe = ours
        self._end = weakref.finalize(self, end, self._child, ours)
        try:
            ours.send_bytes(bytes(current_process().authkey))  # for the memory that is shared
        except OSError:
            raise self._dead() from None
        settings = {"compile": model.compiled is not None, "writes": model.family.writes}
        with without_capturing(model.model):
            self._send((model.model, settings, vocab_size, torch.get_num_threads()), "the draft model")
        self._answer()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """True until it has ended."""
        return self._end.alive and self._child.poll() is None

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._end()

    def open(
        self,
        batch: int,
        longest: int,
        capacity: int,
        opening: tuple,
        texts: list[list[int]],
        active: list[bool],
        proposals: Proposals,
        guessed: bool,
    ) -> RemoteWriter:
        """Let the process read some prompts, and return a writer behind them.

        Args:
            batch: number of rows.
            longest: tokens that are written in one go at most.
            capacity: tokens per row to reserve.
            opening: arguments of the pass over the prompts, see `DraftModelDrafter.opening`.
            texts, active, proposals: see `ChainWriter`.
            guessed: True if the texts are no more than the prompts, and the first token is to be guessed.
        """
        number, board = next(self._numbers), Board(len(texts), longest, self.vocab_size, proposals.sampled)
        stream = None if proposals.generator is None else proposals.generator.initial_seed()
        plain = replace(proposals, history=None, generator=None)
        if not proposals.sampled:  # which does not need it
            plain = replace(plain, pipeline=None)
        self.ask("open", number, board, batch, capacity, opening, texts, list(active), plain, stream, guessed)
        return RemoteWriter(self, number, board, active)

    def ask(self, verb: str, number: int, *arguments: Any, told: Callable[[], None] | None = None) -> Any:
        """Ask the process, and wait for its answer.

        Args:
            verb: what it is to do.
            number: the request's.
            arguments: what the verb takes.
            told: called when the first tokens are there.

        Raises:
            MMSpecError: if the process has ended, or could not do it.
        """
        with self._lock:
            forgotten, self._forgotten = self._forgotten, []
            try:
                self._send((verb, number, forgotten, arguments), "the request, or one of its logits processors,")
                while (answer := self._answer()) == "first":
                    if told is not None:
                        told()
            except MMSpecError:
                raise
            except BaseException:  # interrupted: the answer would be taken for that to the next question
                self._end()
                raise
            return answer

    def forget(self, number: int) -> None:
        """Let the process drop a request, when it is asked next."""
        self._forgotten.append(number)

    def _send(self, message: Any, what: str) -> None:
        try:
            packed = ForkingPickler.dumps(message)
        except Exception as error:  # of whatever cannot be pickled
            raise MMSpecError(
                f"ParallelDrafter: process=true cannot send {what} to another process: {first_line(error)}; leave "
                "process=false"
            ) from error
        try:
            self._pipe.send_bytes(packed)
        except OSError:
            raise self._dead() from None

    def _answer(self) -> Any:
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if kind == "error":
            raise MMSpecError(f"ParallelDrafter: the process that drafts failed: {answer}")
        return answer

    def _dead(self) -> MMSpecError:
        """Return the error that it has ended, or was closed."""
        self._end()
        return MMSpecError(
            f"ParallelDrafter: the process that drafts (pid {self._child.pid}) has ended with code "
            f"{self._child.returncode}; ask again, which starts another, or leave process=false"
        )


def end(child: subprocess.Popen, pipe: Connection) -> None:
    """End a child: it does so by itself when the pipe is closed."""
    pipe.close()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class RemoteWriter:
    """A `ChainWriter` in another process.

    Args:
        process: where it is.
        number: the request's.
        board: memory that both share.
        active: per row, False once it has ended.
    """

    def __init__(self, process: DraftProcess, number: int, board: Board, active: list[bool]):
        self._process, self._number, self._board, self.active = process, number, board, active
        weakref.finalize(self, process.forget, number)

    def follow(self, active: list[bool]) -> None:
        """Take another list of the rows that go on."""
        self.active = active

    def correct(self, ends: Sequence[int], news: Sequence[Sequence[int]]) -> None:
        """Let the texts go another way, see `ChainWriter.correct`."""
        self._process.ask("correct", self._number, list(self.active), list(ends), [list(new) for new in news])

    @property
    def stop(self) -> Flag:
        """Set to have no further token written."""
        return self._board.stop

    def write(self, count: int, rows: Sequence[bool], told: Callable[[First], None] | None = None) -> Written:
        """Write tokens behind the texts, see `ChainWriter.write`."""
        board = self._board

        def first() -> None:
            if told is not None:
                told(First(board.tokens[:, 0].clone(), None if board.probs is None else board.probs[:, 0].clone()))

        on, number, seconds = self._process.ask("write", self._number, list(self.active), count, list(rows), told=first)
        tokens, bad = (
            [row if wrote else [] for row, wrote in zip(table[:, :number].tolist(), on, strict=True)]
            for table in (board.tokens, board.bad)
        )
        return Written(tokens, bad, None if board.probs is None else board.probs[:, :number].clone(), seconds)
