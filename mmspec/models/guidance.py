"""Classifier-free guidance: a session that reads two rows for every row of the text, and judges what the pair says.

The idea is that of Ho and Salimans (arXiv 2207.12598), and Sanchez et al. (arXiv 2306.17806) for language models: the
logits after the prompt move away from those after another prompt, `other + scale * (prompt - other)`. Both rows of a
pair get the same tokens, so their entries are kept together; their prompts may differ in length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..context import Context
from ..families import Family
from ..inputs import Request, stack
from .entries import ChosenEntries
from .reading import ReadingSession
from .session import ModelSession, Pass


@dataclass(frozen=True)
class Guidance:
    """A direction for a text: what it is led away from, and how far.

    Args:
        scale: 1 is no guidance, 0 follows the other prompts alone.
        other: the other prompts, one per row.
        normalised: what is made of the logits of both sides before they are combined, see `Family.guided_logits`.
    """

    scale: float
    other: Request
    normalised: Callable[[Tensor], Tensor]

    def combine(self, logits: Tensor) -> Tensor:
        """Return `[batch, ...]` logits from `[2 * batch, ...]`, in float32; those of the prompts stand first."""
        prompt, other = self.normalised(logits.to(torch.promote_types(logits.dtype, torch.float32))).chunk(2)
        return other + (prompt - other) * self.scale


def twice(values: Tensor) -> Tensor:
    """Return `[batch, ...]` values for both rows of every pair, `[2 * batch, ...]`."""
    return values.repeat(2, *[1] * (values.ndim - 1))


class Pairs(ModelSession):
    """A session in whose cache every row of the text has two: the first half of the rows read the prompts, the second
    half the others. Whoever uses it sees the rows of the text, but for `cache` and `position_offset`, which hold all.

    Attributes:
        guidance: set before anything is read.
    """

    guidance: Guidance

    @property
    def entries(self) -> list[int]:
        """The entries of the prompts' rows, which stand for both."""
        return self.cache.lengths_list[: self.cache.batch // 2]

    @property
    def going_on(self) -> list[bool]:
        """One flag per row of the cache, True while its text goes on: both rows of a pair end together."""
        return [*self.active, *self.active]

    def prefill(self, *arguments, **named) -> Pass:
        """Read the prompts and the others; see `ModelSession.prefill`."""
        return self._judged(super().prefill(*arguments, **named))

    def read(
        self, tokens: Tensor, visible: Tensor, depth: Tensor, extends_chain: bool = False, logits: bool = True
    ) -> Pass:
        """Read a block behind both rows of every pair; see `ModelSession.read`."""
        tokens, visible, depth = map(twice, (tokens, visible, depth))
        return self._judged(super().read(tokens, visible, depth, extends_chain, logits))

    def go_on_from(
        self, branch: ReadingSession, entries: Tensor | None, tokens: Tensor, visible: Tensor, depth: Tensor
    ) -> Pass:
        """Read a block behind both rows of every pair; see `ModelSession.go_on_from`."""
        entries = None if entries is None else twice(entries)
        tokens, visible, depth = map(twice, (tokens, visible, depth))
        return self._judged(super().go_on_from(branch, entries, tokens, visible, depth))

    def keep(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """End a round for both rows of every pair; see `Session.keep`."""
        path, kept = None if path is None else twice(path), None if kept is None else twice(kept)
        super().keep([*counts, *counts], path, kept)

    def take_back(self, counts: list[int]) -> None:
        """Forget the last tokens in both rows of every pair; see `Session.take_back`."""
        super().take_back([*counts, *counts])

    def _judged(self, read: Pass) -> Pass:
        features = {layer: states.chunk(2)[0] for layer, states in read.features.items()}
        return Pass(self.guidance.combine(read.logits), features)

    def branch(
        self,
        layers: int | None = None,
        entries: ChosenEntries | list[list[int]] | None = None,
        above: Sequence[nn.Module] = (),
        skipped: Collection[int] | None = None,
    ) -> ModelSession:
        """Return a branch as every session does. It sees all entries of the other prompts, for `entries` is about the
        text."""
        if entries is not None:
            if isinstance(entries, list):
                entries = ChosenEntries.of_rows(entries, len(self.cache.tree_layers), self.cache.lengths.device)
            entries = entries.with_rows(self.cache.lengths_list[self.cache.batch // 2 :])
        return super().branch(layers, entries, above, skipped)

    def sibling(self, *arguments, **named) -> GuidedSession:
        """Make a session of pairs under the same guidance."""
        return GuidedSession(self.guidance, *arguments, **named)


class GuidedSession(Pairs):
    """A branch of a session of pairs.

    Args:
        guidance: the other prompts, and how far to go.
        arguments, named: see `ModelSession`.
    """

    def __init__(self, guidance: Guidance, *arguments, **named):
        super().__init__(*arguments, **named)
        self.guidance = guidance


class GuidedContext(Pairs, Context):
    """One request under guidance. `features` and `embeds` are those of its own prompts.

    Args:
        guidance: the other prompts, and how far to go.
        arguments: see `Context`.
    """

    def __init__(self, guidance: Guidance, *arguments: Any):
        self.guidance = guidance
        super().__init__(*arguments)

    def rows_of(self, request: Request, family: Family) -> Request:
        """Return the prompts with the others below them."""
        both = [request, self.guidance.other]
        if any("position_ids" in one.inputs for one in both):
            both = [
                replace(one, inputs={**one.inputs, "position_ids": family.positions(one.inputs)[0]}) for one in both
            ]
        return stack(*both)

    @property
    def spare_capacity(self) -> int:
        """The tokens per row that fit into the cache before it must grow."""
        return self.cache.capacity - max(self.request.max_length, self.guidance.other.max_length)

    @property
    def lengths(self) -> Tensor:
        """The committed tokens in the prompts' rows of the cache, `[batch]`."""
        return self.cache.lengths[: self.batch_size]
