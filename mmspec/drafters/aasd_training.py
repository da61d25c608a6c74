"""The training of AASD: guesses of a lesson under the target-draft mask.

A guess sees what the target holds of the tokens before its root, and the layer's own slots from the root on, as it will
when it drafts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..lesson import Guess, Lesson
from ..models.keys_values import Entries
from .layer import DraftLayer, Rope, attend, attend_unrolled


class Roots(NamedTuple):
    """The roots of a lesson, from which chains are drafted, and what the target holds of its text.

    Args:
        ids: `[batch, length]` tokens of prompts and answers.
        slots: `[batch, roots]` index of the token before each root.
        positions: `[batch, roots]` or `[axes, batch, roots]` positions of the roots.
        states: `[batch, roots, hidden]` the target's states before them.
        visible: `[batch, 1, roots, entries]` which entries of `held` stand before them.
        held: keys and values of the target, projected, of the whole text.
    """

    ids: Tensor
    slots: Tensor
    positions: Tensor
    states: Tensor
    visible: Tensor
    held: Entries


class TargetDraft(Protocol):
    """A head with one layer, which attends to entries of the target and to slots of its own."""

    @property
    def layer(self) -> DraftLayer:
        """The layer."""

    def token_embeds(self, tokens: Tensor) -> Tensor:
        """Return embeddings of tokens."""

    def layer_input(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the layer, and its residual stream."""

    def next_state(self, output: Tensor) -> Tensor:
        """Return what stands for a state of the target, from the layer's output."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits from such states."""

    def _rope(self, like: Tensor, slots: Tensor) -> Rope:
        """Return cosines and sines for positions."""


def chains(drafter: TargetDraft, lesson: Lesson, at: Roots, steps: int, detach: bool) -> Iterator[Guess]:
    """Yield the guesses of every step, all roots in one pass a step, each with the states of the step before.

    Args:
        drafter: whose guesses they are.
        lesson: the answers.
        at: their roots.
        steps: tokens of a chain.
        detach: whether to stop gradients from a step into earlier ones.
    """
    layer, states = drafter.layer, at.states
    own: list[Entries] = []
    for step in range(steps):
        valid, places = lesson.drafted(step)
        if not valid.any():
            return
        # The root, and then the tokens that right guesses would have been; beyond an answer anything will do.
        tokens = at.ids.gather(1, (at.slots + step + 1).clamp(max=at.ids.shape[1] - 1))
        mixed, residual = drafter.layer_input(drafter.token_embeds(tokens), states)
        rope = drafter._rope(mixed, at.positions + step)
        own.append(layer.self_attn.keys_values(mixed, rope))
        attended = attend_unrolled(layer.self_attn.queries(mixed, rope), at.held, own, at.visible)
        output = drafter.next_state(layer.finish(residual, attended))
        yield Guess(drafter.logits(output[valid]), None, places, valid.flatten().nonzero()[:, 0])
        states = output.detach() if detach else output


def rounds(drafter: TargetDraft, lesson: Lesson, at: Roots, steps: int) -> Iterator[Guess]:
    """Yield guesses that come from one pass over the tokens of the answers, with true states [OUR]. Each token stands
    at a drawn place of a round, from 0 on: it sees its round's own slots up to itself, and before them what the target
    holds.

    Args:
        drafter: whose guesses they are.
        lesson: the answers.
        at: their roots.
        steps: tokens of a round.
    """
    batch, count = at.slots.shape
    numbers = torch.arange(count, device=at.ids.device)
    drawn = torch.randint(0, steps, (batch, count), device="cpu").to(numbers.device).minimum(numbers)
    first = numbers - drawn
    of_round = (numbers >= first[..., None]) & (numbers <= numbers[:, None])
    before = at.visible[:, 0].gather(1, first[..., None].expand(-1, -1, at.visible.shape[-1]))
    mixed, residual = drafter.layer_input(drafter.token_embeds(at.ids.gather(1, at.slots + 1)), at.states)
    rope = drafter._rope(mixed, at.positions)
    own = drafter.layer.self_attn.keys_values(mixed, rope)
    keys, values = (torch.cat(parts, dim=2) for parts in zip(at.held, own, strict=True))
    mask = torch.cat([before, of_round], dim=2)[:, None]
    attended = attend(drafter.layer.self_attn.queries(mixed, rope), keys, values, mask)
    output = drafter.next_state(drafter.layer.finish(residual, attended))
    valid, places = lesson.drafted(0)
    place = torch.zeros_like(at.slots).masked_scatter(valid, places)
    for step in range(steps):
        rows, here = (valid & (drawn == step)).nonzero(as_tuple=True)
        yield Guess(drafter.logits(output[rows, here]), None, place[rows, here], rows * count + here - step)
