"""ReadingSession: the passes of one request on a Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache

from ..compat import CACHE
from ..errors import MMSpecError
from .cache import TreeCache
from .cache_layer import stored
from .cache_session import Session
from .masks import MaskForm, padding_mask
from .states import capture
from .transfer import to_device

if TYPE_CHECKING:
    from .model import Model


class Pass(NamedTuple):
    """The result of a pass over a block.

    Args:
        logits: `[batch, new, vocab]`; of a prompt `[batch, vocab]`, after each row's last token.
        features: layer to `[batch, new, hidden]`, the hidden states asked for.
    """

    logits: Tensor
    features: dict[int, Tensor]


class Rest(NamedTuple):
    """The layers of a model behind its first ones.

    Args:
        first: number of the first of them.
        model: the model of these layers.
        shared: numbers of the cache's layers whose entries, as a branch has written them, are to be kept.
    """

    first: int
    model: Model
    shared: tuple[int, ...]


class PromptPass(NamedTuple):
    """The pass that has read a prompt: positions, lengths and further arguments; and the features that came of it, of
    all rows of the cache."""

    positions: Tensor
    lengths: list[int]
    once: dict[str, Any]
    features: dict[int, Tensor]


class ReadingSession(Session):
    """A request on a Hugging Face model: the prompt in one pass, then blocks of tree nodes.

    Args:
        model: the model, with its family and what its cache stores.
        batch_size: number of rows.
        capacity: slots to allocate at once, in tokens per row.
        feature_layers: hidden states to keep from each pass: layer numbers (the state entering that layer) and `LAST`.
        cache: the cache to use instead of a new one.

    Attributes:
        extra: arguments of every pass, `[rows, ...]` for the rows that have not left: all that the layers attend to
            beside the text, such as the states of an encoder.
        beside: keys and values of these states, computed by the prompt's pass once and for all; None for models without
            cross-attention. Nothing is ever pruned in it.
        states: the features of every pass of this round, `[rows, new, hidden]` by layer, where they are kept for a pass
            that goes on from them; None where they are not.
        rest: the layers that a pass must still run through which goes on from a branch; None of other sessions, and
            where none are left or none is saved.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int,
        capacity: int = 0,
        feature_layers: Iterable[int] = (),
        cache: TreeCache | None = None,
    ):
        if cache is None:
            compiled = model.compiled is not None
            cache = TreeCache(model.cache_shapes, batch_size, capacity, compiled, model.device)
        super().__init__(cache, model.windows, MaskForm(model.attention), model.dtype)
        self.model, self.feature_layers = model, tuple(feature_layers)
        self.states: dict[int, list[Tensor]] | None = None
        self.rest: Rest | None = None
        self._prompt: PromptPass | None = None
        self._ceilings: list[int] | None = None  # see `mmspec.families.frequencies`
        self._highest: Tensor | None = None  # the same on the device
        self.extra: dict[str, Any] = {}
        self.beside: Cache | None = DynamicCache() if model.family.cross_attends else None
        self._rows_beside = self.cache.rows_present

    def prefill(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        position_offset: Tensor,
        lengths: list[int],
        once: dict[str, Any],
        extra: dict[str, Any] | None = None,
    ) -> Pass:
        """Read and keep a right-padded prompt.

        Args:
            embeds: `[batch, length, hidden]`.
            position_ids: `[batch, length]` or `[axes, batch, length]`.
            position_offset: `[batch]` or `[axes, batch]` position of what follows minus its index, see
                `Family.positions`.
            lengths: number of tokens per row.
            once: further arguments of this pass.
            extra: further arguments of this pass and of all that follow.
        """
        length, device = embeds.shape[1], self.cache.lengths.device
        self.position_offset, self.extra = position_offset, extra or {}
        # The head runs on the last tokens only: on the distinct columns in which they stand.
        columns = sorted({n - 1 for n in lengths})
        self.cache.begin(length)
        logits, features = self._run(
            inputs_embeds=embeds,
            attention_mask=padding_mask(lengths, length, embeds.device),
            position_ids=position_ids,
            logits_to_keep=to_device(columns, embeds.device),
            **once,
        )
        self.cache.end()
        self.cache.commit(lengths)
        self._prompt = PromptPass(position_ids, lengths, once, features)
        index = to_device([columns.index(n - 1) for n in lengths], device)
        return Pass(logits[torch.arange(len(lengths), device=device), index], features)

    def read(
        self,
        tokens: Tensor,
        visible: Tensor,
        depth: Tensor,
        extends_chain: bool = False,
        logits: bool = True,
    ) -> Pass:
        """Read a block of speculative nodes behind those of this round's earlier blocks.

        Args:
            tokens: `[batch, new]` token ids.
            visible, depth, extends_chain: what each node sees and where it stands, see `Session.block`.
            logits: False to leave the head out, and return logits of no node.
        """
        if self.states is not None and self.cache.speculative == 0:
            self.states = {layer: [] for layer in self.feature_layers}
        with self.block(visible, depth, extends_chain) as mask:
            tokens, positions = self.present(tokens), self.positions(self.present(depth))
            if self.model.compiled is not None:
                read = Pass(*self.model.compiled(tokens, mask, positions, self.cache, self.feature_layers))
            else:
                kept: dict[str, Any] = {} if logits else {"logits_to_keep": tokens.new_zeros(0)}
                read = self._run(input_ids=tokens, attention_mask=mask, position_ids=positions, **kept)
        if self.states is not None:
            for layer, states in read.features.items():
                self.states[layer].append(states)
        return self._of_all_rows(read)

    def _of_all_rows(self, read: Pass) -> Pass:
        """Return the result of a pass for all rows; zeros stand in those that have left."""
        return Pass(self.whole(read.logits), {layer: self.whole(states) for layer, states in read.features.items()})

    def leave(self) -> None:
        """Let rows go that have ended, here and among what the passes attend to beside the text."""
        super().leave()
        rows = self.cache.rows_present
        if self._rows_beside == rows:
            return
        places = [self._rows_beside.index(row) for row in rows]
        self.extra = {name: value[to_device(places, value.device)] for name, value in self.extra.items()}
        if self.beside is not None:
            self.beside = rows_of(self.beside, places)
        self._rows_beside = rows

    def positions(self, depth: Tensor) -> Tensor:
        """Return the positions as `Session` does, but nodes beyond a row's ceiling are on it: those that no answer can
        reach must not change the rotary frequencies of those that it can.

        Raises:
            MMSpecError: if a root is there already: one that has not just ended its row.
        """
        if self._ceilings is not None:
            lengths = self.cache.lengths_list
            if any(length > last + 1 for length, last in zip(lengths, self._ceilings, strict=True)):
                raise MMSpecError(
                    f"a row has {max(lengths)} tokens, and {type(self.model.model).__name__} has other rotary "
                    f"frequencies beyond {min(self._ceilings) + 1}; begin anew with the whole text as the prompt"
                )
            if self._highest is None:
                self._highest = to_device(self._ceilings, depth.device)
            depth = depth.minimum(self.present(self._highest - self.cache.lengths)[:, None])
        return super().positions(depth)

    def _run(self, model: Model | None = None, features: tuple[int, ...] | None = None, **arguments: Any) -> Pass:
        """Run a pass; its results are on the device where drafters read them.

        Args:
            model: the layers to run, if not all of the session's own model.
            features: the states to keep, if not all of `feature_layers`; by the numbers of the session's own model.
            arguments: see `Family.run`.
        """
        device, run = self.cache.lengths.device, (model or self.model).family.run
        cache = self.cache if self.beside is None else EncoderDecoderCache(self.cache, self.beside)
        arguments |= self.extra | {"use_cache": True, CACHE: cache}
        wanted = self.feature_layers if features is None else features
        if not wanted:
            return Pass(run(**arguments).to(device), {})
        with capture(self.model.family, wanted) as found:
            logits = run(**arguments)
        return Pass(logits.to(device), {layer: states.to(device) for layer, states in found.items()})


def rows_of(cache: Cache, places: list[int]) -> DynamicCache:
    """Return a cache of some rows of another one, by their places in it."""
    chosen = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = stored(layer)
        index = to_device(places, keys.device)
        chosen.update(keys[index], values[index], number)
    return chosen
