"""Session: one request on one model. The only place that knows how caches, blocks, offsets and unread tokens belong
together; targets, draft models and draft heads use the same one.

A round reads any number of blocks of speculative nodes, one behind the other, and ends with `keep`, which leaves the
entries of one path in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache

from ..compat import CACHE
from ..errors import MMSpecError
from .cache import TreeCache, stored
from .layers_of_cache import LayersOfCache
from .masks import Mask, MaskForm, TreeMask, padding_mask
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


class Session:
    """The key-value cache of one request, whoever reads and writes it.

    Attributes:
        cache: the entries of the committed tokens.
        position_offset: `[batch]` or `[axes, batch]` number to add to the index of an entry to get the position of its
            token.

    Args:
        cache: the request's cache.
        windows: attention type to sliding window, see `TreeMask`.
        form: the form of the masks, see `TreeMask`.
        dtype: the dtype of additive masks.
    """

    def __init__(self, cache: TreeCache, windows: dict[str, int | None], form: MaskForm, dtype: torch.dtype):
        self.cache = cache
        self.masks = TreeMask(cache, windows, form, dtype)
        self.position_offset = torch.zeros_like(cache.lengths)
        self.history: list[list[int]] | None = None
        self._windows = any(window is not None for window in windows.values())
        self._depth: Tensor | None = None
        self._begun: tuple | None = None

    def follow(self, history: list[list[int]], active: list[bool], pending: int = 1) -> None:
        """Let `pending` tell from now on how far this session is behind a text that grows.

        Args:
            history: per row, the tokens so far; the list that the owner of the text appends to.
            active: per row, False once it has ended; the owner's list too.
            pending: how many of the last tokens are not in the cache at this moment.
        """
        self.history, self.active = history, active
        self._ahead = [len(tokens) - length - pending for tokens, length in zip(history, self.entries, strict=True)]

    @property
    def entries(self) -> list[int]:
        """Per row of the text, how many of its tokens are in the cache."""
        return self.cache.lengths_list

    @property
    def pending(self) -> list[int]:
        """Per row, how many of the last tokens of the text are certain but not read yet; 0 for a row that has ended."""
        assert self.history is not None, "call follow first"
        rows = zip(self.history, self.entries, self._ahead, self.active, strict=True)
        return [len(tokens) - length - ahead if active else 0 for tokens, length, ahead, active in rows]

    @contextmanager
    def block(
        self, visible: Tensor, depth: Tensor, extends_chain: bool = False
    ) -> Iterator[Mask | dict[str, Mask] | None]:
        """Open the pass that writes a block of speculative nodes into the cache, and close it behind the `with` block.

        Rows that have ended leave before the first block of a round: the pass runs on `present` rows only.

        Args:
            visible: `[batch, new, speculative + new]`, the speculative nodes that each new one sees, itself included.
            depth: `[batch, new]` distance from the last committed token, minus one.
            extends_chain: True for a single node that is known to see all earlier ones.

        Yields:
            The mask of the pass, see `TreeMask`.
        """
        if self.cache.speculative == 0:
            self._depth = None
            if self.history is not None:
                self.leave()
        new, total = visible.shape[1:]
        self.cache.begin(new, fixed=self.cache.compiled)
        if self._windows:  # for which distances count
            depth = self.present(depth)
            self._depth = depth if self._depth is None else torch.cat([self._depth, depth], dim=1)
        needed = self.masks.needed(total, extends_chain)
        yield self.masks.build(self.present(visible), self._depth) if needed else None
        self.cache.end()

    def leave(self) -> None:
        """Let rows go that have ended. Nothing is read for them any more."""
        self.cache.leave(self.going_on)

    @property
    def going_on(self) -> list[bool]:
        """One flag per row of the cache, True while its text goes on."""
        return self.active

    def present(self, values: Tensor) -> Tensor:
        """Return the rows that a pass runs on, of a `[batch, ...]` tensor."""
        return self.cache.present(values)

    def whole(self, values: Tensor) -> Tensor:
        """Return a `[batch, ...]` tensor from one of a pass; zeros stand in rows that have left."""
        return self.cache.whole(values)

    def positions(self, depth: Tensor) -> Tensor:
        """Return the positions, `[rows, new]` or `[axes, rows, new]`, of nodes that are `[rows, new]` tokens behind the
        last committed one, minus one."""
        return self._first() + depth

    def _first(self) -> Tensor:
        """Return the position of what follows the last committed token: `[rows, 1]` or `[axes, rows, 1]`, found once a
        round."""
        now = self.cache.commits, self.cache.rows, id(self.position_offset)
        if self._begun is None or self._begun[0] != now:
            first = self.cache.present(self.cache.lengths + self.position_offset, dim=-1)
            self._begun = now, first[..., None]
        return self._begun[1]

    def enter(self, layers: list[tuple[Tensor, Tensor]], counts: list[int]) -> None:
        """Take the keys and values of a prompt, `[batch, heads, length, dim]` of every layer; keep so many per row."""
        self.cache.begin(layers[0][0].shape[2])
        for layer, keys_values in zip(self.cache.tree_layers, layers, strict=True):
            layer.update(*keys_values)
        self.cache.end()
        self.keep(counts)

    def keep(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """End a round: keep a path of its nodes, drop the rest; see `TreeCache.commit`."""
        self.cache.commit(counts, path, kept)

    def drop(self) -> None:
        """End a round and forget its nodes."""
        self.keep([0] * len(self.entries))

    def take_back(self, counts: list[int]) -> None:
        """Forget the last tokens that were kept, so many per row: they are pending again."""
        self.cache.take_back(counts)

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a layer holds of committed tokens, twice `[batch, heads, longest, dim]`. They
        are views until a row has left; what lies behind the length of a shorter row means nothing."""
        entries, end = self.cache.tree_layers[layer], self.cache.longest
        return self.whole(entries.keys[:, :, :end]), self.whole(entries.values[:, :, :end])


class ModelSession(Session):
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
        index = to_device([columns.index(n - 1) for n in lengths], device)
        return Pass(logits[torch.arange(len(lengths), device=device), index], features)

    def read(self, tokens: Tensor, visible: Tensor, depth: Tensor, extends_chain: bool = False) -> Pass:
        """Read a block of speculative nodes behind those of this round's earlier blocks.

        Args:
            tokens: `[batch, new]` token ids.
            visible, depth, extends_chain: what each node sees and where it stands, see `Session.block`.
        """
        with self.block(visible, depth, extends_chain) as mask:
            tokens, positions = self.present(tokens), self.positions(self.present(depth))
            if self.model.compiled is not None:
                logits, features = self.model.compiled(tokens, mask, positions, self.cache, self.feature_layers)
            else:
                logits, features = self._run(input_ids=tokens, attention_mask=mask, position_ids=positions)
        return Pass(self.whole(logits), {layer: self.whole(states) for layer, states in features.items()})

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

    def _run(self, **arguments: Any) -> Pass:
        """Run a pass of the model; its results are on the device where drafters read them."""
        device = self.cache.lengths.device
        cache = self.cache if self.beside is None else EncoderDecoderCache(self.cache, self.beside)
        arguments |= self.extra | {"use_cache": True, CACHE: cache}
        if not self.feature_layers:
            return Pass(self.model.family.run(**arguments).to(device), {})
        with capture(self.model.family, self.feature_layers) as features:
            logits = self.model.family.run(**arguments)
        return Pass(logits.to(device), {layer: states.to(device) for layer, states in features.items()})

    def branch(self, layers: int | None = None, entries: list[list[int]] | None = None) -> ModelSession:
        """Return a session of the same model on the same text, for drafting with the target itself.

        Args:
            layers: read with the first so many layers only (their states go through the final norm and the head). The
                committed entries are this session's own, without a copy; what the branch reads itself lasts until the
                round ends. Call `drop` on the branch then, and `keep` on this session.
            entries: per row, the indices of the committed entries that the branch sees, ascending. They are copied
                once, keep their positions, and what the branch reads afterwards it keeps itself.

        Raises:
            MMSpecError: for both at once or neither, for layers that there are not, for entries under a sliding window.
        """
        if (layers is None) == (entries is None):
            raise MMSpecError("branch: give layers= or entries=, and not both")
        if entries is not None and len(entries) != self.cache.batch:
            raise MMSpecError(
                f"branch: entries must have one list of indices for each of the {len(self.entries)} rows of the text; "
                "session.entries tells how many entries each has"
            )
        if layers is not None:
            model = self.model.first_layers(layers)
            branch = self.sibling(model, self.cache.batch, cache=LayersOfCache(self.cache, layers))
            branch.position_offset, branch._ceilings = self.position_offset, self._ceilings
        else:
            if any(window is not None for window in self.model.windows.values()):
                raise MMSpecError(
                    f"branch(entries=): {type(self.model.model).__name__} has sliding windows, whose distances are "
                    "counted in entries, so none may be left out; use branch(layers=)"
                )
            assert entries is not None  # as was asked above
            branch = self.sibling(self.model, self.cache.batch, cache=self.cache.copy_of(entries))
            branch.position_offset = self.position_offset + self.cache.lengths - branch.cache.lengths
        branch.extra, branch.beside, branch._rows_beside = self.extra, self.beside, self._rows_beside
        branch.history, branch.active = self.history, self.active
        rows = zip(self._ahead, self.entries, branch.entries, strict=True)
        branch._ahead = [ahead + all_of_them - seen for ahead, all_of_them, seen in rows]
        return branch

    def sibling(self, *arguments: Any, **named: Any) -> ModelSession:
        """Make a session that reads as this one does, from arguments of `ModelSession`; for `branch`."""
        return ModelSession(*arguments, **named)


def rows_of(cache: Cache, places: list[int]) -> DynamicCache:
    """Return a cache of some rows of another one, by their places in it."""
    chosen = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = stored(layer)
        index = to_device(places, keys.device)
        chosen.update(keys[index], values[index], number)
    return chosen
