"""Count the cost of a round on any device by phase: operations that are launched, bytes that they write, values that
the host waits for, and copies to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..decoding.clock import PHASES, PhaseClock
from ..loop import Run

MEMORY_ONLY = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"),
    *("_unsafe_view", "lift_fresh", "detach_"),
}
"""Operations that launch nothing, besides views: they reserve memory, or say how to read it."""

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal"}
"""Operations after which the host has to know a value, or a size, before it can go on."""

FUSED = {"rms_norm"}
"""Operations that are one kernel on an accelerator and several on a processor."""

ATTENTION = {"scaled_dot_product_attention"}

INTO = {"index_put_": 2, "_index_put_impl_": 2, "index_copy_": 3, "scatter_": 3}
"""Operations that write into a part of a tensor: the place of the argument that is as large as what they write."""


@dataclass
class Counts:
    """Numbers of operations, reads and copies.

    Args:
        operations: number of operations that launch a kernel on an accelerator. Views and reservations of memory are
            none.
        reads: number of values that the host reads, each of which waits for the device.
        copies: number of values that are copied from the host to the device.
        written: bytes that the operations write, attention and its masks left out: these alone may grow with a prompt.
    """

    operations: int = 0
    reads: int = 0
    copies: int = 0
    written: int = field(default=0, compare=False)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class OperationCounter(TorchDispatchMode):
    """Counts the operations of this thread as they are dispatched, and composite ones by their parts.

    Args:
        counts: counts to add to.
    """

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name not in FUSED and func._can_decompose():
            written = self.counts.written
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                if name in ATTENTION:
                    self.counts.written = written
                return parts
        if name in WAITING or _chosen_by_mask(name, args):
            self.counts.reads += 1
        if name != "_local_scalar_dense" and name not in MEMORY_ONLY and not func.is_view:
            self.counts.operations += 1
            result = func(*args, **kwargs)
            self.counts.written += _written(name, args, result)
            return result
        return func(*args, **kwargs)


def _written(name: str, args: tuple, result: Any) -> int:
    """Return the bytes that an operation writes."""
    if name in INTO:
        part = args[INTO[name]]
        return part.nbytes if isinstance(part, Tensor) else 0
    tensors = result if isinstance(result, (tuple, list)) else [result]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def _chosen_by_mask(name: str, args: tuple) -> bool:
    """Return True if entries are looked up by a boolean mask, whose true values have to be counted first."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


@contextmanager
def counting() -> Iterator[Counts]:
    """Count operations, reads and copies inside."""
    counts = Counts()

    def reads(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts.reads += 1
            return function(*args, **kwargs)

        return call

    def copies(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts.copies += not isinstance(kwargs.get("device"), str)  # who says "cpu" means to stay there
            return function(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in ("tolist", "numpy"):
            patches.enter_context(patch.object(Tensor, name, reads(getattr(Tensor, name))))
        for name in ("tensor", "as_tensor", "from_numpy"):
            patches.enter_context(patch.object(torch, name, copies(getattr(torch, name))))
        patches.enter_context(OperationCounter(counts))
        yield counts


def count_rounds(pieces: Iterable, most: int | None = None) -> list[dict[str, Counts]]:
    """Run a request, and count what every round does in each phase.

    Args:
        pieces: generator that `mmspec.stream` returned, not begun.
        most: number of rounds after which the request is left; None for all.
    """
    rounds: list[dict[str, Counts]] = []
    plain, lap = Run.round, PhaseClock.lap

    def counted(run: Run) -> list:
        phases = dict.fromkeys(PHASES, Counts())
        rounds.append(phases)
        with counting() as counts:

            def booked(clock: PhaseClock, phase: str) -> Any:
                phases[phase] = phases[phase] + Counts(*astuple(counts))
                counts.operations = counts.reads = counts.copies = counts.written = 0
                return lap(clock, phase)

            with patch.object(PhaseClock, "lap", booked):
                return plain(run)

    with patch.object(Run, "round", counted):
        for _ in pieces:
            if len(rounds) == most:
                break
    return rounds
