"""BlockSettings: what all drafters that fill a block in one pass can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from ...errors import MMSpecError, shown
from ...models.states import LAST
from ...settings.arguments import number, positive
from ..head_config import MOST_AT_ONCE
from ..layer_head import LayerSettings

if TYPE_CHECKING:
    from ...target import Target


@dataclass(frozen=True, kw_only=True)
class BlockSettings(LayerSettings):
    """The settings of a `BlockDrafter`, beside those of `LayerSettings`.

    Args:
        layers: number of layers.
        block_size: slots of a block, the anchor's included.
        layout: `same` if a slot speaks of the token at its own place, so that the anchor's says nothing; `shifted` if
            it speaks of the token behind it, so that there are as many drafts as slots.
        feature_layers: layers of the target whose entering states are fused (-1 is the state after the final norm);
            null for five, spread as DFlash does, and behind the layers that visual features join.
        before_deepstack: whether the states are read before visual features join them behind the target's first layers
            (DeepStack, of Qwen3-VL), as `hidden_states` of transformers are; without it they are read behind that.
        mask_token_id: the token whose embedding stands in slots without a token, and which is never proposed; null for
            a vector of the drafter's own, which is trained.
        qk_norm: whether queries and keys are normed per head.
        norms_turned: whether that is done once they are turned, and not before: nobody has said which of the two the
            published drafter of HunyuanOCR wants.
        causal: whether a slot sees nothing of the slots behind it (JetSpec).
        windows: per layer, the tokens back to which it sees, or null for all; null for no windows.
        causal_windows: whether that is so in the layers with a window, as in DFlash's release.
        rope: `1d`, or `mrope` for the target's positions of time, height and width in the prompt; `head` then has a
            `mrope_section` among its `rope_parameters`.
        fusion: how the states of the target's layers become one: `linear`, by a map (DFlash), `mix`, weighed by every
            layer in its own way (DFlare), or `both`, the sum of these (DFly).
        context_maps: whether the layers have maps of their own for the target's states (DFlare), instead of those that
            make the block's keys and values.
        conv_kernel: slots that a convolution around attention and MLP reads, itself included (DFlash 2); 0 for none.
        conv_group: numbers of a state that share what the convolution makes of the state itself.
        own_head: whether it has a vocabulary head of its own, instead of the target's.
        embedding_scale: the factor of the rows of the target's embedding table; null to embed as the target does.
        logit_scale: the factor of the target's head; null for the target's own.
        logit_cap: the bound that logits approach, 0 for none; null for the target's own.
    """

    layers: int = 2
    block_size: int = 9
    layout: Literal["same", "shifted"] = "same"
    feature_layers: Sequence[int] | None = None
    before_deepstack: bool = False
    mask_token_id: int | None = None
    qk_norm: bool = True
    norms_turned: bool = False
    causal: bool = False
    windows: Sequence[int | None] | None = None
    causal_windows: bool = True
    rope: Literal["1d", "mrope"] = "1d"
    fusion: Literal["linear", "mix", "both"] = "linear"
    context_maps: bool = False
    conv_kernel: int = 0
    conv_group: int = 16
    own_head: bool = False
    embedding_scale: float | None = None
    logit_scale: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, layers=self.layers, block_size=self.block_size, conv_group=self.conv_group)
        if self.block_size > MOST_AT_ONCE:
            raise MMSpecError(
                f"block_size={shown(self.block_size)} is more than a pass can guess, {MOST_AT_ONCE}: use a smaller one"
            )
        if self.conv_kernel < 0:
            raise MMSpecError(f"conv_kernel={self.conv_kernel} must be 0, for no convolution, or a positive integer")
        if self.first_slot >= self.block_size:
            raise MMSpecError("block_size=1 leaves no slot to guess in with layout='same', where the anchor has one")
        if self.norms_turned and not self.qk_norm:
            raise MMSpecError("norms_turned=True is about norms that qk_norm=False leaves out: leave one of them out")
        for name in ("embedding_scale", "logit_scale"):
            if (factor := getattr(self, name)) is not None:
                number(self, above=0, **{name: factor})
        if self.logit_cap is not None:
            number(self, lowest=0, logit_cap=self.logit_cap)
        for window in self.windows or ():
            if window is not None:
                positive(self, windows=window)
        if self.windows is not None and len(self.windows) != self.layers:
            raise MMSpecError(f"windows={shown(self.windows)} must be one for each of the {self.layers} layers")

    @property
    def first_slot(self) -> int:
        """The first slot that guesses a token."""
        return int(self.layout == "same")

    @property
    def drafts(self) -> int:
        """The number of tokens that a pass guesses."""
        return self.block_size - self.first_slot

    def fit(self, target: Target) -> Self:
        """Choose the layers to read, and refuse layers and a mask token that the target does not have."""
        count, mask = len(target.family.layers), self.mask_token_id
        usual = usual_layers(count, joined=target.family.joined_layers)
        chosen = list(usual if self.feature_layers is None else self.feature_layers)
        if not chosen or not all(LAST <= layer < count for layer in chosen):
            raise MMSpecError(
                f"feature_layers={shown(chosen)} must be layers of the target, from 0 to {count - 1}, or {LAST}"
            )
        if mask is not None and not 0 <= mask < target.vocab_size:
            raise MMSpecError(f"mask_token_id={shown(mask)} is none of the target's {target.vocab_size} tokens")
        fitted = replace(super().fit(target), feature_layers=chosen)
        hidden = fitted.head["hidden_size"]
        if self.fusion != "linear" and hidden != target.hidden_size:
            raise MMSpecError(
                f"fusion={self.fusion!r} adds the target's states up, whose size is not its own, {hidden}"
            )
        if self.conv_kernel and hidden % self.conv_group:
            raise MMSpecError(f"conv_group={self.conv_group} does not divide the hidden size {hidden}")
        return fitted


def usual_layers(count: int, taps: int = 5, joined: int = 0) -> list[int]:
    """Return the layers that DFlash reads of a target, by the states that enter them: `taps` from the second layer, or
    behind those that visual features join, to the last but two, fewer in a target that has not so many.

    Args:
        count: number of layers of the target.
        taps: number of layers to read.
        joined: number of first layers behind which visual features join.
    """
    first, last = max(1, joined), max(count - 3, joined)
    outputs = [round(first + i * (last - first) / (taps - 1)) for i in range(taps)]
    return sorted({min(max(output, 0) + 1, count - 1) for output in outputs})
