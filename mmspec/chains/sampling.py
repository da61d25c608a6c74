"""`sample`: a batch of chains through the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..decoding.stats import Round, Stats
from ..errors import MMSpecError
from ..loop import Run
from ..settings.arguments import as_int
from .context import ChainContext
from .draft import StateDraft
from .drafters import StateDrafter
from .gaussian import GaussianChain
from .reflection import Reflection


@dataclass
class StatePiece:
    """The states that one round adds to one row.

    Args:
        row: its number in the batch.
        states: `[count, *shape]` the new states.
        drafted: per state, whether the drafter proposed it.
        round: its number; 0 is the beginning, which gives the first state.
        last: whether the chain ends with it.
    """

    row: int
    states: Tensor
    drafted: list[bool]
    round: int
    last: bool


@dataclass
class Samples:
    """The result of `sample`.

    Args:
        states: `[batch, *shape]` where the chains have ended.
        path: `[batch, steps + 1, *shape]` all states, the first one included.
        drafted: per row and state, whether the drafter proposed it.
        calls: how often the target was asked, one time after the other, for any number of states at once. Plain
            sampling asks once a step.
        stats: records and metrics, in which a state counts as a token and the first one as the prompt's.
    """

    states: Tensor
    path: Tensor = field(repr=False)
    drafted: list[list[bool]] = field(repr=False)
    calls: int
    stats: Stats = field(repr=False)


class StateTranscript:
    """The states of a batch of chains, and a record of every round."""

    def __init__(self, context: ChainContext, lossless: bool):
        self.context, batch = context, context.batch_size
        self.stats = Stats(prompt_tokens=[0] * batch, new_tokens=[0] * batch, lossless=lossless)
        self.states: list[list[Tensor]] = [[] for _ in range(batch)]
        self.drafted: list[list[bool]] = [[] for _ in range(batch)]

    def begin(self, root: Tensor) -> list[StatePiece]:
        """Write the first state of every row."""
        return [self._write(row, state[None], [False]) for row, state in enumerate(root)]

    def add(self, emitted: list[Tensor], draft: StateDraft, settled: bool = False) -> list[StatePiece]:
        """Write what a round emitted: drafted states, and one that the target supplied."""
        accepted = [max(len(states) - 1, 0) for states in emitted]
        self.stats.rounds.append(
            Round(draft.usable, accepted, [len(states) for states in emitted], draft.max_depth, settled=settled)
        )
        return [
            self._write(row, states, [True] * (len(states) - 1) + [settled])
            for row, states in enumerate(emitted)
            if len(states)
        ]

    def _write(self, row: int, states: Tensor, drafted: list[bool]) -> StatePiece:
        self.states[row].append(states)
        self.drafted[row] += drafted
        self.stats.new_tokens[row] += len(states)
        return StatePiece(row, states, drafted, len(self.stats.rounds), not self.context.active[row])

    def output(self) -> Samples:
        """Return the chains as a whole."""
        path = torch.stack([torch.cat(states) for states in self.states])
        return Samples(path[:, -1], path, self.drafted, self.context.calls, self.stats)


class ChainRun(Run):
    """One call of `sample` on its way through the loop.

    Args:
        chain: the target.
        drafter: a fork for this request.
        verifier: one too.
        first: `[batch, *shape]` the first states, or None to draw them.
        batch_size: rows.
        seed: what all draws follow from.
    """

    def __init__(
        self,
        chain: GaussianChain,
        drafter: StateDrafter,
        verifier: Reflection,
        first: Tensor | None,
        batch_size: int,
        seed: int,
    ):
        super().__init__(chain.device)
        self.context = ChainContext(chain, batch_size, seed)
        self.drafter, self.verifier, self._first = drafter, verifier, first

    @torch.inference_mode()
    def begin(self) -> list[StatePiece]:
        """Draw the first states, or take those that were given."""
        self.clock.resume()
        context = self.context
        if self._first is None:
            self.root = torch.stack([context.chain.first(one) for one in context.streams("beginning of chain")])
        else:
            self.root = self._first.to(context.chain.device, context.chain.dtype)
        self.transcript = StateTranscript(context, self.verifier.lossless)
        self.drafter.start(context)
        self.verifier.start(context)
        self.clock.lap("prefill")
        return self.closed(self.transcript.begin(self.root))


def sample(
    chain: GaussianChain,
    drafter: StateDrafter | None = None,
    batch_size: int | None = None,
    *,
    first: Tensor | None = None,
    verifier: Reflection | None = None,
    seed: int = 0,
) -> Samples:
    """Sample chains speculatively: a drafter proposes several states, and the target judges all of them in one call.

    Args:
        chain: the target, whose law is preserved.
        drafter: what proposes states; None samples step by step through the same loop.
        batch_size: chains, each of which keeps as many states as it can; by default 1, or the rows of `first`.
        first: `[batch, *shape]` the first states; by default they are drawn.
        verifier: by default `Reflection()`, which is lossless.
        seed: an integer from which all draws follow. Those of a row do not depend on the other rows.

    Raises:
        MMSpecError: for anything the caller can put right.
    """
    if not isinstance(chain, GaussianChain):
        raise MMSpecError(f"chains.sample takes a GaussianChain, and this is a {type(chain).__name__}")
    if not isinstance(drafter, StateDrafter | None):
        raise MMSpecError(f"drafter is a {type(drafter).__name__}; of chains it must be a StateDrafter, or None")
    if (whole := as_int(seed)) is None:
        raise MMSpecError(f"seed={seed!r} must be an integer, such as 0")
    if first is not None and (tuple(first.shape[1:]) != chain.shape or not len(first)):
        raise MMSpecError(
            f"first has shape {tuple(first.shape)}; it must be [batch, {', '.join(map(str, chain.shape))}]"
        )
    rows = 1 if first is None else len(first)
    wanted = rows if batch_size is None else as_int(batch_size) or 0
    if wanted < 1 or (first is not None and wanted != rows):
        raise MMSpecError(f"batch_size={batch_size!r} must be a positive integer, and that of first= if it is given")
    drafter, verifier = (drafter or StateDrafter()).fork(), (verifier or Reflection()).fork()
    run = ChainRun(chain, drafter, verifier, first, wanted, whole)
    for _ in run.rounds():
        pass
    return run.transcript.output()
