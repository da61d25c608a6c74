"""A draft model that sees through its target's eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...compressors import VisualCompressor
from ...errors import MMSpecError
from ...families import Family, Vision
from ...inputs import Request
from ...trees import TreeBuilder
from .base import DraftModelDrafter
from .projector import VisualProjector

if TYPE_CHECKING:
    from ...target import Target


class SharedVisionDrafter(DraftModelDrafter):
    """A language model that reads the pictures as the target's tower has encoded them, once for both; a projector maps
    the tower's features into it (Spec-LLaVA, arXiv 2509.11961; MASSV, arXiv 2505.10526).

    Lossless with every lossless verifier. `recipe=small_vlm` trains one.

    Args:
        target: the model to draft for.
        model: a causal language model.
        projector: a module from `[tokens, vision_hidden]` to `[tokens, draft_hidden]`, such as `VisualProjector`.
        processor, tree, compressor: see `DraftModelDrafter`.
    """

    mode = "shared_vision"

    def __init__(
        self,
        target: Target,
        model: nn.Module,
        projector: nn.Module,
        processor: Any = None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
    ):
        super().__init__(target, model, processor, tree)
        self.projector = projector
        if compressor is not None:
            self.take_compressor(compressor)

    @property
    def reads_pictures(self) -> bool:
        """True."""
        return True

    @property
    def eyes(self) -> Family:
        """The target's family."""
        return self.target.family

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the prompt as the target has it; refuse pictures of which only the target's embeddings are known."""
        if vision is not None and vision.features is None:
            raise MMSpecError(
                "what the vision tower saw is not known, which SharedVisionDrafter reads: the pictures were passed "
                "encoded (then pass their pixels instead of mm_encoder_outputs), or "
                f"{type(self.target.model).__name__} is of no listed family; use OwnEncoderDrafter or TextOnlyDrafter"
            )
        return request, vision

    def embed(self, request: Request, vision: Vision | None) -> Tensor:
        """Return embeddings with projected features in place of the pictures."""
        embeds = super().embed(request, vision)
        if vision is None:
            return embeds
        assert vision.features is not None, "refused in prompt_of"
        visual = self.target.family.is_visual(request.inputs["input_ids"])
        dtype = next(self.projector.parameters(), vision.features[0]).dtype
        projected = [self.projector(features.to(dtype)) for features in vision.features]
        return embeds.masked_scatter(visual[..., None], torch.cat(projected).to(embeds))

    def config(self) -> dict[str, Any]:
        """Return the settings of the model, the compressor and the projector."""
        if not isinstance(self.projector, VisualProjector):
            raise MMSpecError(f"a {type(self.projector).__name__} projector cannot be saved; use VisualProjector")
        return {**super().config(), "projector": self.projector.sizes}

    @classmethod
    def parts_of(cls, config: dict[str, Any], target: Target) -> dict[str, Any]:
        """Return the model, the compressor and the projector."""
        projector = VisualProjector(*config["projector"]).to(target.dtype)
        return {**super().parts_of(config, target), "projector": projector}
