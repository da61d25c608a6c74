"""P-EAGLE: EAGLE-3's head, run once for all depths: where the draft's own tokens and states would stand, it reads a
mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt
from ..errors import MMSpecError, shown
from ..lesson import Guess, Lesson
from ..models.slots import pick, pick_numbers
from ..settings.arguments import positive
from ..trees import Chain, TreeBuilder
from ..trees.growth import Block
from ..trees.proposals import IMPOSSIBLE
from .eagle3 import Eagle3Drafter, Eagle3Settings
from .head_config import MOST_AT_ONCE
from .layer import DraftLayer, Rope, attend_causally, attend_unrolled
from .layer_pass import LayerPass
from .reading import view_of
from .step import Trunk, guesses_below
from .vocabulary import place_of

if TYPE_CHECKING:
    from ..target import Target

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`."""


@dataclass(frozen=True, kw_only=True)
class PEagleSettings(Eagle3Settings):
    """The settings of a `PEagleDrafter`, beside those of `Eagle3Settings`; `norm_output` changes nothing here, for no
    state is handed on.

    Args:
        layers: number of layers.
        depths: tokens that a pass guesses. No weight depends on it, but what was trained for less is worth little.
        mask_token_id: the token whose embedding stands at all depths but the first, and which is never proposed; null
            for a vector of the drafter's own, which is trained.
    """

    layers: int = 4
    depths: int = 8
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, layers=self.layers, depths=self.depths)
        if self.depths > MOST_AT_ONCE:
            raise MMSpecError(f"depths={shown(self.depths)} are more than a pass can guess, {MOST_AT_ONCE}: use fewer")

    def fit(self, target: Target) -> Self:
        """Refuse a mask token that has no embedding."""
        mask, rows = self.mask_token_id, self.own_embedding or target.vocab_size
        if mask is not None and not 0 <= mask < rows:
            raise MMSpecError(f"mask_token_id={shown(mask)} is none of the {rows} tokens that have an embedding")
        return super().fit(target)


class PEagleDrafter(Eagle3Drafter):
    """The head of P-EAGLE (arXiv 2602.01469): EAGLE-3 with several layers and a single pass for all depths.

    Depth 0 is EAGLE-3's true pair, `[norm(E(x_{t+1})); norm(g_t)]`, of every token that has a state. Depth d below the
    root has no token and no state yet, and reads the same two vectors at all of them: the embedding of a mask, and the
    fusion `W m` of a learned m in place of the target's three states. It stands d places behind the root, and sees all
    of depth 0 up to the root and the depths above it. The keys and values of depth 0 stay in the cache; those of deeper
    ones are dropped after each pass, and accepted tokens come back at depth 0, with true states.

    So all nodes of a depth have one distribution, whatever tokens stand above them, and a tree is made from the
    marginals of the pass.

    Faithful: first layer, further layers (pre-norm, as in Llama), mask, positions, names and shapes of the weights as
    in the library speculators, and the switches of EAGLE-3.1 as far as they are about what is read. Our own: any target
    with pictures in any batch, trees; a trained vector in place of a mask token's embedding (`mask_token_id` null),
    where the paper trains the whole embedding; and that the mask token is never proposed.

    Lossless with every lossless verifier. Trained: everything but the embedding (recipe `peagle`). Rounds that a gate
    settles without the target are refused: no output of this head stands for a state of the target.

    The arguments are those of `FeatureDrafter`, and its settings those of `PEagleSettings`.

    Raises:
        MMSpecError: for settings that do not fit the target, such as a mask token that it does not have.
    """

    Settings = PEagleSettings
    settings: PEagleSettings
    independent = True
    cheap_levels = True
    drafts_unread = False

    def native_tree(self) -> TreeBuilder:
        """Return a chain of all tokens that a pass guesses."""
        return Chain(self.settings.depths)

    def build(self) -> None:
        """Make EAGLE-3's parts, the further layers and what stands at the deeper slots."""
        super().build()
        self.max_depth = self.settings.depths
        self.mask_hidden = nn.Parameter(torch.randn(1, 1, 3 * self.target.hidden_size))
        self.mask_embedding = None
        if self.settings.mask_token_id is None:
            self.mask_embedding = nn.Parameter(torch.empty(self.head.hidden_size).normal_(std=0.02))

    def build_layers(self) -> None:
        """Make the layers: EAGLE-3's, and ordinary ones behind it."""
        hidden, eps = self.head.hidden_size, self.head.rms_norm_eps
        self.layers = nn.ModuleList([self.first_layer()])
        for _ in range(self.settings.layers - 1):
            layer = DraftLayer(self.head, hidden)
            layer.input_layernorm = nn.RMSNorm(hidden, eps=eps)
            self.layers.append(layer)

    @property
    def layer(self) -> DraftLayer:
        """The first layer."""
        return self._stack[0]

    @property
    def _stack(self) -> list[DraftLayer]:
        """All layers."""
        return cast(list[DraftLayer], list(self.layers))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., draft_vocab]` of `[..., hidden]` normed states: none for the mask token."""
        logits = super().logits(hidden)
        return logits if self._barred is None else logits.index_fill(-1, self._barred, IMPOSSIBLE)

    def _prepare(self) -> None:
        """Look up what stays the same for a request, or for a batch of lessons: what enters at a mask among it."""
        super()._prepare()
        self._barred: Tensor | None = None
        embedding: Tensor | None = self.mask_embedding
        if self.settings.mask_token_id is not None:
            token = torch.tensor([[self.settings.mask_token_id]], device=self.mask_hidden.device)
            embedding = self.token_embeds(token)
            self._barred = place_of(token[0], self.draft_vocabulary, self.target.vocab_size)
        assert embedding is not None, "one of the two is there"
        state = self.fused(self.mask_hidden.chunk(3, dim=-1))
        self._mask = self.layer_input(embedding.expand_as(state), state)

    # Drafting.

    def passes(self) -> tuple[LayerPass, ...]:
        """Return the layers as a request runs them."""
        return tuple(map(LayerPass, self._stack))

    def prefill_kv(self, prompt: DraftPrompt) -> list[Entries]:
        """Return keys and values of all slots of a prompt, for every layer."""
        entries, *_ = self._read_all(prompt)
        return entries

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, and guess all depths in the same pass; return the logits of the
        first."""
        session, masks = self.session, self.settings.depths - 1
        trunk = self.newest(root, session.pending)
        width = trunk.tokens.shape[1]
        true = self.layer_input(self.token_embeds(trunk.tokens), self._states[:, :width])
        mixed, residual = (
            torch.cat([part, mask.expand(len(root), masks, -1)], dim=1)
            for part, mask in zip(true, self._mask, strict=True)
        )
        output = self._run(self._with_masks(trunk, masks), (mixed, residual))
        session.keep(trunk.counts, kept=trunk.kept)
        output = torch.cat([trunk.last_of(output[:, :width])[:, None], output[:, width:]], dim=1)
        levels = torch.arange(output.shape[1], device=output.device)[None, :, None]
        self._marginals = self.logits(self.head_input(self.corrected(output, levels)))
        return self._marginals[:, 0]

    def _with_masks(self, trunk: Trunk, masks: int) -> Trunk:
        """Return the trunk with a number of masks behind it, which are no tokens: each sees what is certain in its row,
        and the masks down to itself."""
        width = trunk.tokens.shape[1]
        numbers = torch.arange(width + masks, device=trunk.tokens.device)
        if min(trunk.counts) == width:
            visible = (numbers <= numbers[:, None]).expand(len(trunk.tokens), -1, -1)
            return replace(trunk, depth=numbers.expand(len(visible), -1), visible=visible)
        assert trunk.kept is not None, "rows differ"
        certain = trunk.kept[:, None]
        depth = torch.where(numbers < width, numbers, numbers - width + certain)
        there = (numbers < certain) | (numbers >= width)
        return replace(trunk, depth=depth, visible=there[:, None] & (depth[:, None] <= depth[..., None]))

    def _layers(self, mixed: Tensor, residual: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        for number, layer in enumerate(self._passes):
            if number:
                mixed = self._stack[number].input_layernorm(residual)
            residual = layer.finish(residual, self._attended(number, mixed, mask, rope))
        return residual

    def expand(self, block: Block) -> Tensor:
        """Return the logits after the nodes of a block, which are those of their depth."""
        return guesses_below(self._marginals, block)

    def marginals(self, depth: int) -> Tensor:
        """Return the logits of the first `depth` tokens."""
        return self._marginals[:, :depth]

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: step i is depth i below every root, and all of them
        come from one pass. There are no more steps than depths, and no state is handed on that could be detached.

        Only what a lesson asks for is computed, so that `Lesson.thinned` saves the work of the depths that it drops.
        """
        self._prepare()
        drafted = [lesson.drafted(step) for step in range(min(steps, self.settings.depths))]
        drafted = [(valid, places) for valid, places in drafted if valid.any()]
        if not drafted:
            return
        # Of every row the roots with the longest chains come first: a depth then has the first so many of them.
        reach = torch.stack([valid for valid, _ in drafted]).sum(0)
        order = reach.sort(dim=1, descending=True, stable=True).indices
        counts = [int(valid.sum(1).max()) for valid, _ in drafted]
        hidden, rank = self._unrolled(lesson, order, counts), order.argsort(dim=1)
        for step, (states, (valid, places)) in enumerate(zip(hidden, drafted, strict=True)):
            rows, roots = valid.nonzero(as_tuple=True)
            chosen = self.corrected(states, step)[rows, rank[rows, roots]]
            yield Guess(self.logits(self.head_input(chosen)), None, places, valid.flatten().nonzero()[:, 0])

    def _unrolled(self, lesson: Lesson, order: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the outputs of every depth, `[batch, count, hidden]`.

        Args:
            lesson: the lesson that is guessed at.
            order: `[batch, roots]` numbers of its roots.
            counts: for every depth, at how many of these it is asked for.
        """
        prompt = self.read(view_of(lesson))
        entries, true, positions = self._read_all(prompt)
        slots = (lesson.root_slots - prompt.removed[:, None]).gather(1, order)
        columns = torch.arange(entries[0][0].shape[2], device=slots.device)
        visible = columns <= slots[:, None, :, None]
        places = [pick_numbers(positions, slots[:, :count]) + depth for depth, count in enumerate(counts)]
        rope = self._rope(true[0], torch.cat(places, dim=-1))
        below = rope[0][:, counts[0] :], rope[1][:, counts[0] :]
        mixed, residual = (part.expand(len(slots), sum(counts[1:]), -1) for part in self._mask)
        widths = [0, *counts[1:]]
        for number, (layer, prefix) in enumerate(zip(self._stack, entries, strict=True)):
            attention, here = layer.self_attn, below
            if number:
                mixed = layer.input_layernorm(residual)
            parts = zip(*(part.split(counts[1:], dim=2) for part in attention.keys_values(mixed, below)), strict=True)
            own = list(parts)
            if number + 1 == len(entries):  # where depth 0 is asked at the roots, too
                here, widths = rope, list(counts)
                roots = slots[:, : counts[0]]
                mixed, residual = (
                    torch.cat([pick(states, roots), part], dim=1)
                    for states, part in zip(true, (mixed, residual), strict=True)
                )
            queries = attention.queries(mixed, here).split(widths, dim=2)
            attended = []
            for depth, (query, width) in enumerate(zip(queries, widths, strict=True)):
                above = [(keys[:, :, :width], values[:, :, :width]) for keys, values in own[:depth]]
                attended.append(attend_unrolled(query, prefix, above, visible[:, :, :width]))
            residual = layer.finish(residual, torch.cat(attended, dim=2))
        return residual.split(widths, dim=1)

    def _read_all(self, prompt: DraftPrompt) -> tuple[list[Entries], tuple[Tensor, Tensor], Tensor]:
        """Read all slots of a prompt at depth 0.

        Returns:
            Keys and values of every layer; what enters the last layer, see `layer_input`; and the slots' positions.
        """
        mixed, residual = self.prompt_input(prompt)
        positions = self.slot_positions(prompt)
        rope, entries = self._rope(mixed, positions), []
        for number, layer in enumerate(self._stack):
            attention = layer.self_attn
            if number:
                mixed = layer.input_layernorm(residual)
            entries.append(attention.keys_values(mixed, rope))
            if number + 1 < len(self._stack):
                residual = layer.finish(residual, attend_causally(attention.queries(mixed, rope), *entries[-1]))
        return entries, (mixed, residual), positions
