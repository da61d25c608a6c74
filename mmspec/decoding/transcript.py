"""Transcript: what a request has written so far, how it ended, and a record of every round."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..context import Context
from ..errors import MMSpecError
from ..node_by_node import NodeByNode
from ..tree import DraftTree
from ..visualization.html import answer
from ..visualization.trace import Trace
from .sampling import LogitsPipeline
from .stats import Round, Stats
from .stopping import Stopping
from .text import TextStream, whole_text


@dataclass
class Piece:
    """The tokens that one round adds to one row.

    Args:
        row: number of the row in the batch.
        token_ids: the new tokens.
        drafted: per token, True if the drafter proposed it, False if the target supplied it.
        round: number of the round; 0 is the prefill, which gives the first token.
        last: True if the row ends with it.
    """

    row: int
    token_ids: list[int]
    drafted: list[bool]
    round: int
    last: bool
    _texts: TextStream = field(repr=False)
    _start: int = field(repr=False)

    @property
    def spans(self) -> list[tuple[str, bool]]:
        """The new text cut at changes of origin: `(text, drafted)`."""
        spans = [(self._texts.text(self._start + i), drafted) for i, drafted in enumerate(self.drafted)]
        if self.last:
            spans.append((self._texts.rest(), self.drafted[-1]))
        return _merge(spans)

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(text for text, _ in self.spans)


@dataclass
class Output:
    """The result of `generate`; every list has one entry per row.

    Args:
        text: the new text, without special tokens (None if the target has no tokenizer).
        token_ids: the new tokens, the end token included.
        finish_reason: `"eos"`, `"stop"`, `"length"` or `"stopping_criteria"`.
        drafted: per token, True if the drafter proposed it.
        stats: records and metrics.

    In a notebook it shows its text, every token coloured by its origin.
    """

    text: list[str | None]
    token_ids: list[list[int]]
    finish_reason: list[str | None]
    drafted: list[list[bool]]
    stats: Stats = field(repr=False)
    _texts: list[TextStream] = field(repr=False)
    _trace: Trace | None = field(repr=False)
    _twice: NodeByNode | None = field(repr=False)

    @property
    def trace(self) -> Trace:
        """The tree of every round, see `mmspec.visualization.Trace`.

        Raises:
            MMSpecError: if it was not recorded.
        """
        if self._trace is None:
            raise MMSpecError("the trees of this answer were not kept: call generate(..., trace=True)")
        return self._trace

    @property
    def scored_twice(self) -> NodeByNode:
        """The request whose trees were scored twice, see `NodeByNode`.

        Raises:
            MMSpecError: if they were not.
        """
        if self._twice is None:
            raise MMSpecError("the trees of this answer were scored once: call generate(..., node_by_node=True)")
        return self._twice

    def pieces(self, row: int = 0) -> list[str]:
        """Return the text that each token of a row completes: of a character in several tokens, the last one has it
        all."""
        texts = self._texts[row]
        pieces = [texts.text(number) for number in range(len(self.token_ids[row]))]
        return [*pieces[:-1], pieces[-1] + texts.rest()] if pieces else []

    def _repr_html_(self) -> str:
        """Return the text with every token coloured by its origin."""
        return answer(self)


class Transcript:
    """The text of a request, its statistics, and the ends of its rows.

    Args:
        context: the request on its target.
        stopping: the rules by which a row ends.
        pipeline: the processors of the logits, which are told how far each row has come.
        lossless: True if the verifier keeps the target's distribution.
        trace: the trees of its rounds, or None.
    """

    def __init__(
        self,
        context: Context,
        stopping: Stopping,
        pipeline: LogitsPipeline,
        lossless: bool,
        trace: Trace | None = None,
    ):
        self.context, self.stopping, self.pipeline, self.trace = context, stopping, pipeline, trace
        batch, self.tokenizer = context.batch_size, context.target.speller
        self.stats = Stats(prompt_tokens=context.request.lengths, new_tokens=[0] * batch, lossless=lossless)
        self.token_ids: list[list[int]] = [[] for _ in range(batch)]
        self.drafted: list[list[bool]] = [[] for _ in range(batch)]
        self.finish_reason: list[str | None] = [None] * batch
        self._texts = [TextStream(self.tokenizer) for _ in range(batch)]

    def begin(self, emitted: list[list[int]]) -> list[Piece]:
        """Write the first token of every row, which the prompt's pass gave."""
        return [self._write(row, tokens, [False]) for row, tokens in enumerate(emitted)]

    def add(self, emitted: list[list[int]], tree: DraftTree, settled: bool = False) -> list[Piece]:
        """Write what a round emitted, cut where a row ends, and record the round.

        Args:
            emitted: per row, the new tokens. All of them come from the draft but the last one, the bonus.
            tree: the candidates.
            settled: True if the target was not asked: the last one comes from the draft too.
        """
        batch = len(emitted)
        record = Round([0] * batch, [0] * batch, [0] * batch, tree.max_depth, unusable=[0] * batch, settled=settled)
        record.drafted_ahead = list(tree.drafted_ahead)
        self.stats.rounds.append(record)
        pieces, account = [], tree.account()
        for row, tokens in enumerate(emitted):
            if not self.context.active[row]:
                continue
            pieces.append(self._write(row, tokens, [True] * (len(tokens) - 1) + [settled]))
            origin = pieces[-1].drafted
            record.drafted[row], record.unusable[row] = account[row]
            record.accepted[row], record.emitted[row] = sum(origin), len(origin)
        return pieces

    def _write(self, row: int, tokens: list[int], origin: list[bool]) -> Piece:
        """Append tokens to a row, cut where it ends, and return them as a piece."""
        history = self.context.history[row]
        before = len(history) - len(tokens)
        tokens, reason = self.stopping.cut(history, self.token_ids[row], tokens)
        self.pipeline.settle(row, history, before, len(tokens), reason is not None)
        if reason is not None:
            self.finish_reason[row] = reason
            self.context.finish(row)
        origin, start = origin[: len(tokens)], len(self.token_ids[row])
        self.token_ids[row] += tokens
        self._texts[row].ids += tokens
        self.drafted[row] += origin
        self.stats.new_tokens[row] += len(tokens)
        return Piece(row, tokens, origin, len(self.stats.rounds), reason is not None, self._texts[row], start)

    def output(self) -> Output:
        """Return the result."""
        text = [whole_text(self.tokenizer, ids) for ids in self.token_ids]
        twice = self.context if isinstance(self.context, NodeByNode) else None
        return Output(
            text, self.token_ids, self.finish_reason, self.drafted, self.stats, self._texts, self.trace, twice
        )


def _merge(spans: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Join neighbours of one origin."""
    merged: list[tuple[str, bool]] = []
    for text, drafted in spans:
        if text and merged and merged[-1][1] == drafted:
            merged[-1] = (merged[-1][0] + text, drafted)
        elif text:
            merged.append((text, drafted))
    return merged
