"""PaliGemma and PaliGemma 2: a prompt that is read in both directions, and positions that begin at 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Family
from .vision import Vision


class PaliGemma(Family):
    """`PaliGemmaForConditionalGeneration`.

    All tokens of type 0, the prompt, see one another; what follows is of type 1 and causal. Without `token_type_ids`
    transformers reads the prompt in both directions or in one, depending on back end and padding; here it is always
    read in both, as with those that the processor makes.
    """

    model_types = ("paligemma",)
    appended_type = 1

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return positions that begin at 1."""
        position_ids, position_offset = super().positions(inputs)
        return position_ids + 1, position_offset + 1

    def add_missing_inputs(self, inputs: dict[str, Any]) -> None:
        """Add the kinds of tokens: all are of the prompt."""
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the `token_type_ids`, from which the model builds its mask."""
        return {"token_type_ids": inputs["token_type_ids"]}

    def bidirectional_groups(self, inputs: dict[str, Any], kind: str | None = None) -> Tensor:
        """Return one group, the prompt."""
        return torch.where(inputs["token_type_ids"] == 0, 0, -1)

    def forward(self, **arguments: Any) -> Tensor:
        """Run a pass; masks by kind of layer, as PaliGemma 2 has them, go past the outer model, which takes none."""
        if isinstance(arguments.get("attention_mask"), dict):
            return self.forward_decoder(**arguments)
        return super().forward(**arguments)
