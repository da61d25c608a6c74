"""The target's first layers as drafter, perhaps with a small network that imitates the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from ..errors import MMSpecError, shown
from ..lesson import Guess, Lesson
from ..models.masks import whole_mask
from ..models.own_layers import ResidualMLP, in_place_of, layer_like
from ..models.states import entering
from ..models.whole_texts import read_states
from ..settings.arguments import positive
from ..trees import TreeBuilder
from .head import HeadSettings
from .own_layers import OwnLayersDrafter
from .step import StepDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target

IMITATIONS = ("block", "mlp")
"""Kinds of imitation networks: a layer as the target's own, or a residual MLP."""


@dataclass(frozen=True, kw_only=True)
class EarlyExitSettings(HeadSettings):
    """The settings of an `EarlyExitDrafter`.

    Args:
        layers: number of the target's first layers to use; null for half of them, or a quarter below an imitation.
        imitation: `block` for a layer of the target's own kind, with keys and values of its own, above them; `mlp` for
            a residual MLP; null for nothing, which needs no training.
        blocks: number of such layers or MLPs.
        inner: width of the MLP; null for that of the target's own.
    """

    layers: int | None = None
    imitation: str | None = None
    blocks: int = 1
    inner: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, blocks=self.blocks)
        if self.inner is not None:
            positive(self, inner=self.inner)
        if self.imitation is not None and self.imitation not in IMITATIONS:
            raise MMSpecError(f"imitation={shown(self.imitation)} is unknown; there are {', '.join(IMITATIONS)}")

    def fit(self, target: Target) -> Self:
        """Take a share of the target's layers where no number is given, and refuse numbers that do not fit it."""
        total = len(target.family.layers)
        layers = max(total // (2 if self.imitation is None else 4), 1) if self.layers is None else self.layers
        target.first_layers(layers)  # refuses what cannot be
        if layers < total:
            target.last_layers(layers)
        if self.imitation is not None and layers + self.blocks > total:
            raise MMSpecError(
                f"layers={layers} and blocks={self.blocks} are more than the {total} layers of "
                f"{type(target.model).__name__}, whose last ones are to be imitated: use fewer"
            )
        inner = self.inner or getattr(target.family.text_config, "intermediate_size", None) or 4 * target.hidden_size
        return replace(self, layers=layers, inner=inner if self.imitation == "mlp" else self.inner)


class EarlyExitDrafter(OwnLayersDrafter):
    """A drafter that is the first layers of the target, its final norm and its head; between them perhaps a small
    network that imitates the layers left out (FastVLM, arXiv 2510.22641). Without one this is LayerSkip's
    self-speculation (arXiv 2404.16710), without the training that makes early layers good at it.

    It shares the target's cache, in which a block of the network has entries of its own, beside those of the target's
    layers. What the first layers computed of the drafted nodes is not computed again: the pass that scores them begins
    behind these layers, with their states, and only nodes that were not expanded (the last one of a chain) pass through
    the first layers too (`ModelSession.go_on`).

    Faithful: first layers, imitation network, shared head and keys and values, verification from the cached states.
    Our own, as the paper's text does not say: the network is a layer of the target's own class, which begins with the
    weights of the first layer left out, or a residual MLP; its losses have weight 1 (recipe `fastvlm`). The target is
    not fine-tuned. A target with compiled passes, and one whose layers are all used, scores from the first layer on.

    Lossless with every lossless verifier. Trained: the imitation network; without one nothing is, and little is guessed
    right.

    Args:
        target: the model to draft for, and with.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of five.
        settings: fields of `EarlyExitSettings`.

    Raises:
        MMSpecError: for layers that the target does not have, whose layers are spread over devices, or whose last
            layers read more than the states before them; for an imitation block with compiled passes.
    """

    Settings = EarlyExitSettings
    settings: EarlyExitSettings

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        super().__init__(target, tree=tree, **settings)
        kind, first = self.settings.imitation, self.first
        if kind == "block" and target.compile:
            raise MMSpecError(
                "imitation='block' has entries for every token that its target reads, but compile=true reads some "
                "without it: load the target without compile, or choose imitation='mlp'"
            )
        self.imitation = nn.ModuleList(self._new(kind, number) for number in range(self.settings.blocks if kind else 0))
        self.feature_layers = (first,) if kind else ()

    def _new(self, kind: str | None, number: int) -> nn.Module:
        """Return a new layer of the imitation network."""
        target, like, inner = self.target, self.first + number, self.settings.inner
        if kind == "block":
            layer = layer_like(target.family, like, place=len(target.family.layers) + number)
        else:
            assert inner is not None  # as `fit` made them
            layer = in_place_of(ResidualMLP(target.hidden_size, inner), like)
        # It works amid the target's layers, on their states.
        return layer if next(layer.parameters()).is_meta else layer.to(target.device, target.dtype)

    @property
    def reads_every_round(self) -> bool:  # type: ignore[override]
        """True with an imitation block, which has entries of its own for every token."""
        return self.settings.imitation == "block"

    def join(self, others: Sequence[StepDrafter]) -> None:
        """Refuse a mixture with an imitation block, see `StepDrafter.join`: the pass that scores does not go on from a
        member's states, and would leave tokens without entries of the block."""
        if self.reads_every_round:
            raise MMSpecError(
                f"MixtureDrafter: a {type(self).__name__} with imitation='block' has to read every node that its "
                "target reads, and a mixture does not let it: choose imitation='mlp' or none"
            )

    @property
    def first(self) -> int:
        """The number of the target's first layers, and so of the layer that is left out first."""
        assert self.settings.layers is not None  # as `fit` made them
        return self.settings.layers

    def start(self, context: Context) -> None:
        """Open a branch of the target's session."""
        super().start(context)
        self.session = context.branch(layers=self.first, above=list(self.imitation))

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of all steps, see `Drafter.unroll`. The first layers read right guesses as the answer
        itself, so one pass of the imitation network over their states gives the guesses of all steps.

        Raises:
            MMSpecError: without an imitation network.
        """
        if not self.imitation:
            raise MMSpecError(
                "EarlyExitDrafter: imitation=None has no weights to train; choose imitation='block' or 'mlp'"
            )
        part, request = self.target.only_layers(list(self.imitation)), lesson.request
        family, dtype = part.family, next(self.imitation.parameters()).dtype
        states = lesson.features[self.first].to(dtype)
        mask = whole_mask(request.lengths, states.shape[1], states.device)
        positions, _ = family.positions_until(lesson.prompt.inputs, states.shape[1])
        further = family.prefill_inputs(request.inputs) | family.lasting_inputs(lesson.vision)
        with entering(self.imitation[0], states):
            found = read_states(family, [len(self.imitation)], states, mask, positions, further)
        _, first = lesson.drafted(0)
        output = replace(lesson, features={self.first: found[len(self.imitation)]}).states(self.first)[first]
        logits = family.head(family.final_norm(output))
        for chosen, places, roots in lesson.each_step(steps):
            yield Guess(logits[chosen], output[chosen], places, roots)
