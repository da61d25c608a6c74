"""Gemma 3: alternating sliding-window layers, and pictures whose tokens see each other in both directions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .base import Family
from .encoders import Encoder
from .vision import Vision


class Pooled(Encoder):
    """An encoder whose projector pools the patches first; its norm is the first module that sees one vector per visual
    token."""

    @property
    def projector(self) -> nn.Module:
        """The norm in the projector."""
        return self.model.model.multi_modal_projector.mm_soft_emb_norm


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration`. Answers are causal: the bidirectional blocks only concern the prompt."""

    model_types = ("gemma3",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [Pooled(model, "image", "pixel_values")]

    def add_missing_inputs(self, inputs: dict[str, Any]) -> None:
        """Add the kinds of tokens."""
        inputs.setdefault("token_type_ids", self.is_visual(inputs["input_ids"]).long())

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the `token_type_ids` (1 on visual tokens), from which the model builds its block mask."""
        return {"token_type_ids": inputs["token_type_ids"]}

    def bidirectional_groups(self, inputs: dict[str, Any], kind: str | None = None) -> Tensor:
        """Return a group for the tokens of every picture: a run of visual tokens."""
        seen = inputs["token_type_ids"] == 1
        begins = seen & ~functional.pad(seen, (1, 0))[:, :-1]
        return (begins.long().cumsum(1) - 1).masked_fill(~seen, -1)
