"""EAGLE-3 and EAGLE-3.1: one layer over features from three depths of the target, with a head of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from ..models.states import before_joining
from .feature import FeatureDrafter
from .feature_settings import FeatureSettings
from .head_config import initialise
from .layer import DraftLayer, normed_side_by_side
from .rope import axes_of

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class Eagle3Settings(FeatureSettings):
    """The settings of an `Eagle3Drafter`, beside those of `FeatureSettings`.

    Args:
        feature_layers: three layers of the target, by the state that enters them; null for 2, n / 2 and n - 3 of n.
        before_deepstack: whether they are read before visual features join them behind the target's first layers
            (DeepStack, of Qwen3-VL), as `hidden_states` of transformers are; without it they are read behind that.
        fc_norm: whether each of the three features is normed before they are fused (EAGLE-3.1).
        norm_output: whether the next draft step is handed the normed state (EAGLE-3.1).
        norm_before_fc: whether the three features are normed as one vector; not together with `fc_norm`.
        norm_before_residual: whether the residual stream is the normed state.
        rope: `1d`, or `mrope` for the target's positions of time, height and width in the prompt; `head` then has a
            `mrope_section` among its `rope_parameters`. What is drafted is text, whose axes are equal.
    """

    visual: bool = False  # as in the ports to vision-language models: pictures are seen through the features
    feature_layers: Sequence[int] | None = None
    before_deepstack: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    rope: Literal["1d", "mrope"] = "1d"

    any_width = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fc_norm and self.norm_before_fc:
            raise MMSpecError("fc_norm and norm_before_fc are two ways of doing the same: choose one")

    def fit(self, target: Target) -> Self:
        """Choose the layers, and refuse some that the target does not have, or embeddings of another size."""
        count = len(target.family.layers)
        usual = sorted((min(2, count - 1), count // 2, max(count - 3, 0)))  # few layers may turn them around
        chosen = list(self.feature_layers or usual)
        if len(chosen) != 3 or not all(0 <= layer < count for layer in chosen):
            raise MMSpecError(f"feature_layers={chosen} must be three layers of the target, from 0 to {count - 1}")
        fitted = super().fit(target)
        hidden, state = fitted.head["hidden_size"], target.hidden_size
        if self.visual and hidden != state:
            raise MMSpecError(
                f"visual=True: the target's visual embeddings have {state} numbers, and the hidden size is {hidden}; "
                "use visual=False"
            )
        return replace(fitted, feature_layers=chosen)


class Eagle3Drafter(FeatureDrafter):
    """The head of EAGLE-3 (arXiv 2503.01840, section 3.1) with the switches of EAGLE-3.1 (arXiv 2605.09992).

    `g_t = W [l_t; m_t; u_t]` fuses the states that enter a low, a middle and a high layer. The layer's attention reads
    `[norm(E(x_{t+1})); norm(g_t)]`, twice as wide as the residual stream, which is g itself; its output is the state of
    the next draft step, and normed it enters the drafter's own vocabulary head.

    Faithful: the released code (which has no further projection of `[g; e]`, although the paper's figure draws one),
    the features, the reduced vocabulary and the names of the weights. Our own: the vocabulary head starts as a copy of
    the target's rows, its scale included, if it is as wide.

    Lossless with every lossless verifier. Trained: everything but the embedding.

    The arguments are those of `FeatureDrafter`, and its settings those of `Eagle3Settings`. With an embedding of its
    own, the hidden size may be another than the target's, if pictures are seen through the features alone.
    """

    Settings = Eagle3Settings
    settings: Eagle3Settings
    guesses_features = False

    def build(self) -> None:
        """Make the fusion, the layer and the vocabulary head."""
        settings, hidden, state = self.settings, self.head.hidden_size, self.target.hidden_size
        if settings.rope == "mrope":
            assert self.head.head_dim is not None  # LlamaConfig fills it in
            self.axes = axes_of(dict(self.head.rope_parameters or {}), self.head.head_dim)
        assert settings.feature_layers is not None  # chosen by `fit`
        self.taps = tuple(settings.feature_layers)
        if settings.before_deepstack:
            self.taps = before_joining(self.taps, self.target.family.joined_layers)
        self.feature_layers = self.taps + self.feature_layers  # and what the compressor wants

        def norm(width: int) -> nn.RMSNorm:
            return nn.RMSNorm(width, eps=self.head.rms_norm_eps)

        self.fc = nn.Linear(3 * state, hidden, bias=False)
        self.fc_norm = nn.ModuleList([norm(state) for _ in range(3)]) if settings.fc_norm else None
        self.input_norm = norm(3 * state) if settings.norm_before_fc else None
        self.build_layers()
        self.norm = norm(hidden)
        self.lm_head = nn.Linear(hidden, self.draft_vocab_size or self.target.vocab_size, bias=False)
        initialise(self)
        self._copy_head()

    def build_layers(self) -> None:
        """Make the layer, under its name in the checkpoints."""
        self.midlayer = self.first_layer()

    def first_layer(self) -> DraftLayer:
        """Return a layer that reads embeddings and states side by side, each with a norm of its own."""
        hidden, eps = self.head.hidden_size, self.head.rms_norm_eps
        layer = DraftLayer(self.head, 2 * hidden)
        layer.hidden_norm, layer.input_layernorm = nn.RMSNorm(hidden, eps=eps), nn.RMSNorm(hidden, eps=eps)
        return layer

    @property
    def layer(self) -> DraftLayer:
        """The only layer."""
        return self.midlayer

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which target tokens can be drafted, and take their rows of the target's head."""
        super().choose_vocabulary(tokens)
        self._copy_head()

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return a linear map of the states of three layers."""
        return self.fused([features[layer].to(self._dtype) for layer in self.taps])

    def fused(self, streams: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        """Return the state `[..., hidden]` of three `[..., target hidden]` features."""
        if self.fc_norm is not None:
            streams = [norm(stream) for norm, stream in zip(self.fc_norm, streams, strict=True)]
        joined = torch.cat(streams, dim=-1)
        return self.fc(joined if self.input_norm is None else self.input_norm(joined))

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return embeddings and states, normed and side by side."""
        mixed = normed_side_by_side([embeds, states], [self.layer.input_layernorm, self.layer.hidden_norm])
        return mixed, mixed[..., embeds.shape[-1] :] if self.settings.norm_before_residual else states

    def next_state(self, output: Tensor) -> Tensor:
        """Return the output as the state of the next step, normed if `norm_output`."""
        return self.norm(output) if self.settings.norm_output else output

    def head_input(self, output: Tensor) -> Tensor:
        """Return the normed output."""
        return self.norm(output)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the drafter's own head."""
        return self.lm_head(hidden)

    def _rows(self) -> None:
        """Look nothing up of the target's head: this drafter has its own."""

    @torch.no_grad()
    def _copy_head(self) -> None:
        """Begin with the target's head, where the hidden sizes agree."""
        family = self.target.family
        if self.lm_head.weight.is_meta or self.head.hidden_size != self.target.hidden_size:
            return
        weight, _ = family.head_rows(self.draft_vocabulary)
        self.lm_head.weight.copy_(weight * family.logit_scale)
