"""Relay: layers in a row during one request, each of which hands its states on to the next, a token further ahead."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from ..models.cache import TreeCache
from ..models.masks import MaskForm
from ..models.session import Session
from ..models.slots import pick
from ..models.transfer import to_device
from ..trees.growth import Block
from .layer import DraftLayer, Rope, attend
from .layer_pass import LayerPass
from .step import Trunk

if TYPE_CHECKING:
    from ..context import Context


class Entries(NamedTuple):
    """The slots of a layer in a prompt.

    Args:
        keys: `[batch, key_value_heads, slots, head_dim]`.
        values: likewise.
        states: `[batch, slots, hidden]` that the layer hands on; no slots where nobody reads them.
    """

    keys: Tensor
    values: Tensor
    states: Tensor


class InARow(Protocol):
    """A head whose layers stand in a row."""

    @property
    def layer(self) -> DraftLayer:
        """The first layer."""

    def token_embeds(self, tokens: Tensor) -> Tensor:
        """Return embeddings of tokens."""

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the input of the layer of a step, and its residual stream."""

    def normed(self, output: Tensor, number: int) -> Tensor:
        """Return the states that a layer hands on, from its output."""

    def _rope(self, like: Tensor, slots: Tensor) -> Rope:
        """Return cosines and sines for positions."""


class Relay:
    """The layers of a multi-token head while a request drafts with them.

    A slot of a layer belongs to a token x_p. Layer k (from 0) reads there E(x_p) and the state that layer k - 1 made in
    the slot of the token before, in the same path; layer 0 the target's. So what a slot holds depends on tokens up to
    x_p and on states of the target up to h_{p-k-1} alone, and layer k can guess what follows a node k tokens below the
    root. For this it needs its slots of all tokens above the node: certain ones that it has not read yet (the trunk)
    and drafted ones, which it reads in one pass together with the node's level, whenever a level asks for it.

    After a verification every layer keeps its slots of the trunk, which were computed from certain tokens and states of
    the target, and forgets those of drafted tokens, whatever of them was accepted: their slots are computed anew, as
    layers below have then states of the target that they did not have before. transformers crops its caches and reads
    those tokens again, which comes to the same.

    In prompts that have fewer tokens than there are layers, tokens without a slot in a layer are hidden there.

    Args:
        drafter: the head.
        first: the first layer's session, which has read the prompt.
        passes: the layers as a request runs them.
        begun: what the layers have made of the prompt.
        context: the request.
        recursive: whether the last layer goes on alone behind its token.
    """

    def __init__(
        self,
        drafter: InARow,
        first: Session,
        passes: Sequence[LayerPass],
        begun: Sequence[Entries],
        context: Context,
        recursive: bool,
    ):
        self._drafter: InARow = weakref.proxy(drafter)  # which has this: as a circle both would outlive the request
        self._passes, self._recursive = passes, recursive
        counts, size = first.entries, context.request.max_length + context.spare_capacity
        self.sessions = [first]
        self._handed: list[Tensor] = []  # by every layer, in the slot of the newest certain token it has read
        slot = drafter.layer.self_attn.slot
        for number, entries in enumerate(begun):
            if number:
                cache = TreeCache([(slot, slot)], context.batch_size, size)
                session = Session(cache, {"full_attention": None}, MaskForm.BOOLEAN, slot.dtype)
                session.enter([(entries.keys, entries.values)], [max(count - number, 0) for count in counts])
                session.follow(context.history, context.active)
                self.sessions.append(session)
            states = entries.states
            if not states.shape[1]:
                self._handed.append(states.new_zeros(len(states), 1, states.shape[2]))
            else:
                last = to_device([max(count - 1 - number, 0) for count in counts], states.device)
                self._handed.append(pick(states, last[:, None]))
        self._begun = False

    def begin(self, trunk: Trunk, states: Tensor) -> Tensor:
        """Begin a round: read certain tokens with the first layer.

        Args:
            trunk: the tokens, the root last.
            states: `[batch, width, hidden]` the target's states before them.

        Returns:
            `[batch, hidden]` what the vocabulary head reads at the root.
        """
        drafter, first = self._drafter, self.sessions[0]
        batch, width = trunk.tokens.shape
        device, count = trunk.tokens.device, len(self._passes)
        self._begun, self._trunk, self._width, self._states = True, trunk, width, states
        self._kept = torch.full((batch, 1), width, device=device) if trunk.kept is None else trunk.kept[:, None]
        steps = torch.arange(max(width, count), device=device)
        # By node, in the order in which they came: block by block, the trunk first.
        self._ends = [width]
        self._embeds = [drafter.token_embeds(trunk.tokens)]
        self._above = [steps[:width].expand(batch, -1)]  # places among the outputs, of which those of a layer begin
        self._outputs = [[handed] for handed in self._handed]  # with what it handed on before the trunk
        self._visible = [trunk.visible]
        self._below = [torch.zeros_like(trunk.tokens)]  # distance from the root, or 0
        self._done = [0] * count
        self._missing = [[max(number - entries, 0) for entries in first.entries] for number in range(count)]
        self._start = (first.cache.lengths + first.position_offset)[..., None]
        depth = torch.cat([steps[:width].expand(batch, -1), self._kept + steps[:count]], dim=1)
        cos, sin = self._rope(depth)
        self._levels: Rope = (cos[:, width:], sin[:, width:])
        self._ropes = [(cos[:, :width], sin[:, :width])]
        self._advance(0, width)
        return trunk.last_of(self._outputs[0][-1])

    def go_on(self, block: Block) -> Tensor:
        """Read a block of nodes; return `[batch, new, hidden]` what the vocabulary head reads at them."""
        new = block.tokens.shape[1]
        last, before = len(self._passes) - 1, self._ends[-1]
        self._ends.append(before + new)
        self._embeds.append(self._drafter.token_embeds(block.tokens))
        # The root (number 0) is the last token of the trunk.
        self._above.append(torch.where(block.parents == 0, self._kept, block.parents + self._width))
        certain = torch.arange(self._width, device=self._kept.device) < self._kept
        self._visible.append(torch.cat([certain[:, None].expand(-1, new, -1), block.visible], dim=2))
        self._below.append(block.depth + 1)
        if block.level is not None and block.level <= last:
            cos, sin = (part[:, block.level : block.level + 1].expand(-1, new, -1) for part in self._levels)
            self._ropes.append((cos, sin))
        else:
            self._ropes.append(self._rope(self._kept + block.depth))
        if block.level is not None:
            number = min(block.level + 1, last)
            self._advance(number, self._ends[-1])
            return self._outputs[number][-1][:, -new:]
        for number in range(1, last + 1):  # a builder may mix depths
            self._advance(number, self._ends[-1])
        outputs = self._outputs[1][-1][:, -new:]
        for number in range(2, last + 1):
            outputs = torch.where((block.depth + 1 >= number)[..., None], self._outputs[number][-1][:, -new:], outputs)
        return outputs

    def end(self) -> None:
        """End a round: keep what every layer knows of the trunk, and nothing that was drafted."""
        if not self._begun:  # a round that drafted nothing
            return
        self._begun = False
        counts, width = self._trunk.counts, self._width
        for number, session in enumerate(self.sessions):
            self._advance(number, width)
            missing = self._missing[number]
            if any(missing):
                device = self._kept.device
                steps = torch.arange(width, device=device)
                path = (to_device(missing, device)[:, None] + steps).clamp(max=width - 1)
                session.keep([max(count - gone, 0) for count, gone in zip(counts, missing, strict=True)], path)
            else:
                session.keep(counts, kept=self._trunk.kept)
            made = torch.cat(self._outputs[number][1:], dim=1)[:, :width]
            self._handed[number] = self._trunk.last_of(made)[:, None]
        self._outputs = []

    def _advance(self, number: int, end: int) -> None:
        """Let a layer read all nodes before a place in their order that it has not read, and before it those that hand
        states on to it."""
        done = self._done[number]
        if done >= end:
            return
        if number:  # a node stands in a later block than the one above it, unless both are certain
            before = max((bound for bound in self._ends if bound < end), default=0)
            self._advance(number - 1, max(before, self._width))
        drafter, session, layer = self._drafter, self.sessions[number], self._passes[number]
        embeds = torch.cat(self._embeds, dim=1)[:, done:end]
        mixed, residual = drafter.layer_input(embeds, self._states_for(number, done, end), number)
        cos, sin = (torch.cat(parts, dim=1)[:, done:end] for parts in zip(*self._ropes, strict=True))
        visible = self._visible_to(number, done, end)
        with session.block(visible, torch.cat(self._below, dim=1)[:, done:end]) as mask:
            assert mask is None or isinstance(mask, Tensor)  # as the session was made
            mixed, residual = session.present(mixed), session.present(residual)
            queries, own_keys, own_values = layer.project(mixed, (session.present(cos), session.present(sin)))
            keys, values = session.cache.tree_layers[0].update(own_keys, own_values)
        output = layer.finish(residual, attend(queries, keys, values, mask))
        self._outputs[number].append(drafter.normed(session.whole(output), number))
        self._done[number] = end

    def _states_for(self, number: int, start: int, end: int) -> Tensor:
        """Return the states that a layer reads beside some nodes, `[batch, nodes, hidden]`."""
        above = torch.cat(self._above, dim=1)[:, start:end]

        def handed(outputs: Tensor) -> Tensor:
            return pick(outputs, above.clamp(max=outputs.shape[1] - 1))  # beyond them stand nodes that nobody asks for

        states = handed(torch.cat(self._outputs[number - 1], dim=1) if number else self._states)
        last = len(self._passes) - 1
        if number == last and self._recursive and len(self._ends) > 1:
            deep = torch.cat(self._below, dim=1)[:, start:end] > last
            states = torch.where(deep[..., None], handed(torch.cat(self._outputs[last], dim=1)), states)
        return states

    def _visible_to(self, number: int, start: int, end: int) -> Tensor:
        """Return which nodes some nodes see in a layer, `[batch, nodes, end]`."""
        rows, at = [], 0
        for visible, bound in zip(self._visible, self._ends, strict=True):
            if bound > start and at < end:
                unseen = visible.new_zeros(*visible.shape[:2], end - visible.shape[2])
                rows.append(torch.cat([visible, unseen], dim=2))
            at = bound
        seen = torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
        if any(self._missing[number]):
            columns = torch.arange(end, device=seen.device)
            there = columns >= to_device(self._missing[number], seen.device)[:, None]
            seen = seen & (there[:, None] | (columns == columns[start:, None]))
        return seen

    def _rope(self, depth: Tensor) -> Rope:
        """Return cosines and sines of nodes that are `[batch, new]` tokens behind the last slot that is kept, minus
        one."""
        return self._drafter._rope(self._embeds[0], self._start + depth)
