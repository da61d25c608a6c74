"""EAGLE-3, as speculators and vLLM read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...drafters import Eagle3Drafter
from ...errors import MMSpecError
from .writer import Writer, check_taps, zero_bias

TOKENS = 5
"""Length of the chains that a server drafts unless something else is asked for."""


class Eagle3Writer(Writer[Eagle3Drafter]):
    """EAGLE-3, with the switches of EAGLE-3.1 or without. Both sides number features by the layer that a state enters,
    so the numbers are written unchanged."""

    kind, architecture, model_type = "eagle3", "Eagle3Speculator", "llama"

    def check(self) -> None:
        """Refuse visual embeddings, a corrector and a layer that is read twice, besides what all writers refuse."""
        super().check()
        name = type(self.drafter).__name__
        if self.drafter.corrector is not None:
            raise MMSpecError(
                f"this {name} looks at pictures through a corrector, which vLLM does not have: train one with "
                "corrector=null"
            )
        if self.drafter.settings.visual:
            raise MMSpecError(
                f"this {name} reads visual embeddings (visual=True), but vLLM gives a drafter the placeholder's "
                "embedding: train one with visual=False"
            )
        check_taps(self.drafter.taps, name)

    def length(self, wished: int | None) -> int:
        """Return the length as it is wished: a level is as good as the next one."""
        return TOKENS if wished is None else wished

    @property
    def _taps(self) -> list[int]:
        """The layers of the three features, in the drafter's order."""
        return list(self.drafter.settings.feature_layers or ())

    def fields(self) -> dict[str, Any]:
        """Return the features and the switches."""
        settings = self.drafter.settings
        return {
            "eagle_aux_hidden_state_layer_ids": sorted(self._taps),
            "norm_before_residual": settings.norm_before_residual,  # vLLM takes True where it is missing
            "norm_before_fc": settings.norm_before_fc,
            "fc_norm": settings.fc_norm,
            "norm_output": settings.norm_output,
            "embed_requires_grad": False,
        }

    def layer(self) -> dict[str, Any]:
        """Return the configuration of the one layer."""
        return super().layer() | {"num_hidden_layers": 1, "mlp_bias": self.drafter.head.mlp_bias}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights; the embedding is among them, and a reduced vocabulary's tables."""
        drafter, target = self.drafter, self.drafter.target
        weights = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in drafter.state_dict().items()}
        if drafter.draft_vocab_size == target.vocab_size:  # the library knows no tables of a whole vocabulary
            del weights["d2t"], weights["t2d"]
        # What the drafter reads of a token, a factor of the target's embedding (Gemma) included.
        tokens = torch.arange(target.vocab_size, device=target.device)
        weights["embed_tokens.weight"] = drafter.token_embeds(tokens[None])[0]
        if drafter.head.attention_bias:  # there it includes the output projection, which has none here
            weights |= zero_bias(weights, "layers.0")
        return weights | self._ascending(weights)

    def _ascending(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights on the three features in the order of their layers, in which vLLM collects them."""
        order = sorted(range(3), key=lambda number: self._taps[number])
        sorted_weights: dict[str, Tensor] = {}
        for name in ("fc.weight", "input_norm.weight"):
            if name in weights:
                parts = weights[name].chunk(3, dim=-1)
                sorted_weights[name] = torch.cat([parts[number] for number in order], dim=-1)
        if self.drafter.fc_norm is not None:
            sorted_weights |= {f"fc_norm.{i}.weight": weights[f"fc_norm.{n}.weight"] for i, n in enumerate(order)}
        return sorted_weights
