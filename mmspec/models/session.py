"""ModelSession: one request on one model, with branches that draft for it and passes that go on from theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ..compat import CACHE
from ..errors import MMSpecError
from .cache_layer import shape_of, stored
from .cache_session import Session
from .entries import ChosenEntries
from .layers_of_cache import LayersOfCache
from .masks import padding_mask
from .own_layers import places_of
from .read_ahead import ReadAhead, missing_block
from .reading import Pass, ReadingSession, Rest
from .skipping import attentions_left, untouched
from .slots import pick
from .states import entering
from .tensor_parallel import refuse_divided

if TYPE_CHECKING:
    from .model import Model

__all__ = ["ModelSession", "Pass", "Session"]


class ModelSession(ReadingSession):
    """A request on a model, which drafters may branch off.

    Args:
        arguments, named: see `ReadingSession`.
    """

    _left_out: list[int]  # of a branch by `entries`: per row of the cache, how many of them it does not see

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a layer holds of committed tokens, see `Session.keys_values`.

        Raises:
            MMSpecError: if the heads are divided among processes.
        """
        refuse_divided(self.model)
        return super().keys_values(layer)

    def go_on(self, ahead: ReadAhead, tokens: Tensor, visible: Tensor, depth: Tensor) -> Pass:
        """Read a block whose nodes the first layers have read already, or some of them: only the others pass through
        these layers, and all of them through the rest.

        Args:
            ahead: what was read, by a branch of this session.
            tokens, visible, depth: the block, see `read`; the first one of its round.
        """
        branch, entries = ahead.branch, ahead.entries
        missing = missing_block(ahead, visible, branch.cache.speculative)
        if missing is not None:
            nodes, there, entries = missing
            branch.read(tokens.gather(1, nodes), there, depth.gather(1, nodes), logits=False)
        return self.go_on_from(branch, None if ahead.ordered else entries, tokens, visible, depth)

    def go_on_from(
        self, branch: ReadingSession, entries: Tensor | None, tokens: Tensor, visible: Tensor, depth: Tensor
    ) -> Pass:
        """Read a block whose nodes the first layers have all read.

        Args:
            branch: the branch that has read them.
            entries: `[batch, nodes]` the entries that it has of these nodes; None if they are all of its entries, in
                their order.
            tokens, visible, depth: the block, see `go_on`.
        """
        rest = branch.rest
        assert branch.states is not None and rest is not None
        states = {layer: torch.cat(parts, dim=1) for layer, parts in branch.states.items()}
        if entries is not None:
            entries = self.present(entries)
            self.cache.arrange(entries, rest.shared)
            states = {layer: pick(each, entries) for layer, each in states.items()}
        places = {layer: self.model.layer_entered(layer) for layer in self.feature_layers}
        upper = tuple(layer for layer, place in places.items() if place not in states)
        with self.block(visible, depth) as mask:
            tokens, positions = self.present(tokens), self.positions(self.present(depth))
            with entering(rest.model.family.layers[0], states[rest.first]):
                read = self._run(rest.model, upper, input_ids=tokens, attention_mask=mask, position_ids=positions)
        features = {layer: read.features[layer] if layer in upper else states[place] for layer, place in places.items()}
        return self._of_all_rows(Pass(read.logits, features))

    def branch(
        self,
        layers: int | None = None,
        entries: ChosenEntries | list[list[int]] | None = None,
        above: Sequence[nn.Module] = (),
        skipped: Collection[int] | None = None,
    ) -> ModelSession:
        """Return a session of the same model on the same text, for drafting with the target itself.

        Args:
            layers: read with the first so many layers only (their states go through the final norm and the head). The
                committed entries are this session's own, without a copy; what the branch reads itself lasts until the
                round ends, and this session may `go_on` from there. Call `drop` on the branch then, and `keep` on this
                session.
            entries: per row, the indices of the committed entries that the branch sees, ascending, or `ChosenEntries`
                that differ by layer and head. They are copied once and keep their positions. What is committed
                afterwards the branch reads and keeps itself, or takes from this session by `catch_up`.
            above: further layers that the branch puts above its first ones, see `mmspec.models.own_layers`. They read
                the prompt at once; afterwards their entries are in this session's cache, where every token has some
                that the branch has read: let it read all, by `go_on`. This session must keep the states that enter
                layer number `layers` (`feature_layers`).
            skipped: read without these sub-layers (`mmspec.models.skipping`), otherwise as with `layers`: this session
                may go on from behind the layers before the first one that lacks something.

        Raises:
            MMSpecError: for several of these at once or none, for layers that there are not, for entries under a
                sliding window.
        """
        if sum(one is not None for one in (layers, entries, skipped)) != 1:
            raise MMSpecError("branch: give one of layers=, entries= and skipped=")
        if isinstance(entries, list):
            entries = ChosenEntries.of_rows(entries, len(self.cache.tree_layers), self.cache.lengths.device)
        if entries is not None and len(entries.lengths) != self.cache.batch:
            raise MMSpecError(
                f"branch: entries must have one list of indices for each of the {len(self.entries)} rows of the text; "
                "session.entries tells how many entries each has"
            )
        if layers is not None:
            model = self.model.first_layers(layers, above)
            if above:
                self._read_prompt(layers, above)
            own = [*range(layers), *places_of(above)]
            branch = self._above(model, own, layers, own)
        elif skipped is not None:
            total = len(self.model.family.layers)
            first = untouched(skipped, total)
            model = self.model.without(skipped)
            branch = self._above(model, attentions_left(skipped, total), first, range(first))
        else:
            if any(window is not None for window in self.model.windows.values()):
                raise MMSpecError(
                    f"branch(entries=): {type(self.model.model).__name__} has sliding windows, whose distances are "
                    "counted in entries, so none may be left out; use branch(layers=)"
                )
            assert entries is not None  # as was asked above
            branch = self.sibling(self.model, self.cache.batch, cache=self.cache.copy_of(entries))
            branch.position_offset = self.position_offset + self.cache.lengths - branch.cache.lengths
            ends = zip(self.cache.lengths_list, branch.cache.lengths_list, strict=True)
            branch._left_out = [whole - seen for whole, seen in ends]
        branch.extra, branch.beside, branch._rows_beside = self.extra, self.beside, self._rows_beside
        branch.history, branch.active = self.history, self.active
        rows = zip(self._ahead, self.entries, branch.entries, strict=True)
        branch._ahead = [ahead + all_of_them - seen for ahead, all_of_them, seen in rows]
        return branch

    def catch_up(self, other: ModelSession) -> None:
        """Take over what another session has committed since this one was branched off from it by `entries`: copies of
        its entries, without reading the tokens. Call it between two rounds of both."""
        both = zip(other.cache.lengths_list, self.cache.lengths_list, self._left_out, self.going_on, strict=True)
        self.cache.take_from(other.cache, [whole - out - seen if on else 0 for whole, seen, out, on in both])

    def _above(self, model: Model, written: Iterable[int], first: int, shared: Iterable[int]) -> ModelSession:
        """Return a branch on this session's own entries.

        Args:
            model: what the branch reads with; its first layers are those of this session's model.
            written: numbers of the cache's layers that it writes to.
            first: the number of these first layers.
            shared: see `Rest`.
        """
        lower = [place for place in map(self.model.layer_entered, self.feature_layers) if 0 <= place < first]
        cache = LayersOfCache(self.cache, written)
        branch = self.sibling(model, self.cache.batch, 0, dict.fromkeys([*lower, first]), cache=cache)
        branch.position_offset, branch._ceilings = self.position_offset, self._ceilings
        branch.states = {}
        if 0 < first < len(self.model.family.layers):
            branch.rest = Rest(first, self.model.last_layers(first), tuple(shared))
        return branch

    @torch.inference_mode()
    def _read_prompt(self, first: int, above: Sequence[nn.Module]) -> None:
        """Let layers above the first ones read the prompt, and keep their entries in the cache."""
        assert self._prompt is not None, "branches of branches have no layers of their own"
        places, (positions, lengths, once, features) = places_of(above), self._prompt
        if not places:
            return
        if places[0] != len(self.cache.tree_layers):
            raise MMSpecError(
                f"layers above the first {first} are to have entries of their own, but others have theirs in this "
                "request already: let one drafter alone put layers above the target's"
            )
        if self.cache.commits != 1:
            raise MMSpecError("layers above the first ones must read the prompt before the first round: branch earlier")
        states, read = features[first], DynamicCache()
        width = states.shape[1]
        family = self.model.only_layers(above).family
        arguments = {name: value for name, value in once.items() if name not in family.first_layers_alone}
        with entering(above[0], states):
            family.run(
                inputs_embeds=states,
                attention_mask=padding_mask(lengths, width, states.device),
                position_ids=positions,
                logits_to_keep=torch.zeros(0, dtype=torch.long, device=states.device),
                use_cache=True,
                **{CACHE: read if self.beside is None else EncoderDecoderCache(read, self.beside)},
                **arguments,
                **self.extra,
            )
        pairs = [stored(read.layers[place]) for place in places]
        self.cache.add_layers([(shape_of(keys), shape_of(values)) for keys, values in pairs])
        for place, (keys, values) in zip(places, pairs, strict=True):
            layer = self.cache.tree_layers[place]
            layer.keys[:, :, :width], layer.values[:, :, :width] = keys, values

    def sibling(self, *arguments: Any, **named: Any) -> ModelSession:
        """Make a session that reads as this one does, from arguments of `ModelSession`; for `branch`."""
        return ModelSession(*arguments, **named)
