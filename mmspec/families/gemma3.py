"""Gemma 3: alternating sliding-window layers, and pictures whose tokens see each other in both directions."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Family


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration`. Answers are causal: the bidirectional blocks only concern the prompt."""

    model_types = ("gemma3",)

    @property
    def vision_projector(self) -> nn.Module:
        # The projector pools the patches first; its norm is the first module that sees one vector per visual token.
        return self.model.model.multi_modal_projector.mm_soft_emb_norm

    def prefill_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The model builds its block mask from `token_type_ids` (1 on visual tokens)."""
        types = inputs.get("token_type_ids")
        if types is None:
            types = (inputs["input_ids"] == self.image_token_id).long()
        return {"token_type_ids": types}
