"""Sparrow: pictures teach the drafter, and are left out when it drafts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from ..compressors import DraftPrompt
from ..errors import MMSpecError, shown
from ..trees import DynamicTree, TreeBuilder
from .eagle import EagleDrafter, EagleSettings
from .msd import MsdDrafter
from .reading import TargetView

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class SparrowSettings(EagleSettings):
    """The settings of a `SparrowDrafter`, beside those of `EagleSettings`, with other defaults of the scopes.

    Args:
        bridge: whether the slots of visual tokens, where they are attended to, hold states of a middle layer of the
            target; otherwise they hold the same fusion as those of text.
        bridge_layer: the layer that these states enter; null for half of the target's layers.
    """

    attention_scope: Literal["all", "text"] = "text"
    training_scope: Literal["all", "text"] | None = "all"
    bridge: bool = True
    bridge_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bridge and not self.visual:
            raise MMSpecError("visual=False leaves bare placeholders at visual tokens: say bridge=False as well")

    def fit(self, target: Target) -> Self:
        """Choose the layer, and refuse one that the target does not have."""
        count = len(target.family.layers)
        layer = count // 2 if self.bridge_layer is None else self.bridge_layer
        if not 0 <= layer < count:
            raise MMSpecError(f"bridge_layer={shown(layer)} must be a layer of the target, from 0 to {count - 1}")
        return replace(super().fit(target), bridge_layer=layer)


class SparrowDrafter(MsdDrafter):
    """The head of Sparrow (arXiv 2602.15318): EAGLE's layer, which attends to text alone when it drafts.

    A text slot is EAGLE's, `z_t = W [E(x_{t+1}); h_t] + b` ("hidden state reuse"): the target's state h has looked at
    the video, so the drafter need not. Its cache has no visual entries, and a draft costs the same behind any number of
    visual tokens ("text-only attention", `attention_scope`). In training the slots of visual tokens are there, and
    hold the state of their token that enters a middle layer of the target, as it is ("intermediate-layer visual
    bridge"): `m* = L / 2`. Chains of several steps go on from the drafter's own states, the visual slots unchanged
    ("multi-token prediction", the recipe's `steps`).

    Faithful, as far as the paper was read: the slots, what is attended to in training and in use, the middle layer, the
    tree of 30 nodes, four levels and eight children. Loss, noise and learning rate are EAGLE's, and are our own choice;
    so is that a chain of training sees true text up to its root, as it will in use, and its own states behind it. A
    bridge at layer 0 is MSD; without a bridge the slots of pictures are EAGLE's.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `sparrow`).

    The arguments are those of `FeatureDrafter`, and its settings those of `SparrowSettings`.

    Raises:
        MMSpecError: for settings that do not fit the target, such as a layer that it does not have.
    """

    Settings = SparrowSettings
    settings: SparrowSettings

    def native_tree(self) -> TreeBuilder:
        """Return the paper's dynamic tree."""
        return DynamicTree(depth=4, top_k=8, total=30)

    def build(self) -> None:
        """Make EAGLE's layers, and ask for the states that drafting reads."""
        super().build()
        self.take_scope(self.settings.attention_scope)

    def take_scope(self, scope: Literal["all", "text"]) -> None:
        """Attend to another part of the prompt from now on; where that is all of it, ask for the bridge's states."""
        super().take_scope(scope)
        if scope == "all":
            self.feature_layers = self._with_bridge()

    @property
    def lesson_layers(self) -> tuple[int, ...]:
        """States that drafting reads, and those of the bridge where training attends to visual tokens."""
        scope = self.settings.training_scope or self.settings.attention_scope
        return self._with_bridge() if scope == "all" else self.feature_layers

    def _with_bridge(self) -> tuple[int, ...]:
        """Return the layers that are read, with that of the bridge."""
        layer = self.settings.bridge_layer
        assert layer is not None  # chosen by `fit`
        return tuple(dict.fromkeys([*self.feature_layers, *([layer] if self.settings.bridge else [])]))

    def entering(self, view: TargetView, visual: Tensor, scope: str) -> Tensor:
        """Return the embeddings that the target read, and at visual tokens, if they will be seen, the bridge's
        states."""
        embeds, layer = view.embeds, self.settings.bridge_layer
        if not self.settings.bridge or scope == "text":
            return embeds
        assert layer is not None  # chosen by `fit`
        return torch.where(visual[..., None], view.features[layer].to(embeds), embeds)

    def prompt_input(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor]:
        """Return the fusion at text slots, and at visual ones the bridge's states as they are."""
        if self.settings.bridge:
            return super().prompt_input(prompt)
        return EagleDrafter.prompt_input(self, prompt)
