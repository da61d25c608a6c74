"""The other end of a `DraftProcess`: `python -m mmspec.drafters.parallel.child FILE_DESCRIPTOR`."""

from __future__ import annotations

import signal
import sys
from multiprocessing import current_process
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing  # which teaches multiprocessing to share tensors

from ...errors import first_line
from ...models.model import Model
from ...models.session import ModelSession
from .process import Board
from .writer import ChainWriter, First


class Child:
    """The requests of a draft model, and what is asked about them.

    Args:
        pipe: where the questions come from.
        model: the draft model.
        vocab_size: size of the target's vocabulary.
    """

    def __init__(self, pipe: Connection, model: Model, vocab_size: int):
        self.pipe, self.model, self.vocab_size = pipe, model, vocab_size
        self.requests: dict[int, tuple[ChainWriter, Board]] = {}

    @torch.inference_mode()
    def open(self, number, board, batch, capacity, opening, texts, active, proposals, stream, guessed) -> None:
        """Read the prompts of a request, see `DraftProcess.open`; `stream` is the seed of its draws, or None."""
        session = ModelSession(self.model, batch, capacity)
        logits = session.prefill(*opening).logits
        if stream is not None:
            proposals.generator = torch.Generator().manual_seed(stream)
        writer = ChainWriter(session, texts, active, proposals, self.vocab_size, logits if guessed else None)
        writer.stop = board.stop
        self.requests[number] = writer, board

    def correct(self, number: int, active: list[bool], ends: list[int], news: list[list[int]]) -> None:
        """Let the texts of a request go another way."""
        writer, _ = self.requests[number]
        writer.follow(active)
        writer.correct(ends, news)

    def write(self, number: int, active: list[bool], count: int, rows: list[bool]) -> tuple[list[bool], int, float]:
        """Write on the board; return which rows have written, how many tokens, and the seconds of each."""
        writer, board = self.requests[number]
        writer.follow(active)

        def told(first: First) -> None:
            board.tokens[:, 0] = first.tokens
            if first.probs is not None and board.probs is not None:
                board.probs[:, 0] = first.probs
            self.pipe.send(("done", "first"))

        written = writer.write(count, rows, told)
        lengths = [*map(len, written.tokens)]
        for row, length in enumerate(lengths):
            board.tokens[row, :length] = torch.tensor(written.tokens[row], dtype=torch.long)
            board.bad[row, :length] = torch.tensor(written.bad[row], dtype=torch.bool)
        if written.probs is not None and board.probs is not None:
            board.probs[:, : max(lengths)] = written.probs
        return [length > 0 for length in lengths], max(lengths), written.seconds

    def serve(self) -> None:
        """Answer until the other end is closed."""
        while True:
            try:
                verb, number, forgotten, arguments = self.pipe.recv()
            except (EOFError, OSError):
                return
            for old in forgotten:
                self.requests.pop(old, None)
            answer: Any
            try:
                answer = "done", getattr(self, verb)(number, *arguments)
            except Exception as error:  # of whatever kind: the other end says it
                answer = "error", first_line(error)
            self.pipe.send(answer)


def main(descriptor: int) -> None:
    """Take over the model, and serve it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end is interrupted, and closes the pipe
    pipe = Connection(descriptor)
    try:
        current_process().authkey = pipe.recv_bytes()
        try:
            model, settings, vocab_size, threads = pipe.recv()
            torch.set_num_threads(threads)
            child = Child(pipe, Model(model, None, **settings), vocab_size)
        except (EOFError, OSError):
            raise
        except Exception as error:
            pipe.send(("error", first_line(error)))
            return
        pipe.send(("done", None))
        child.serve()
    except (EOFError, OSError):  # nobody is there any more
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
