"""Unlisted: vision-language models without a family, taken at their word and checked."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import MMSpecError
from .base import Family
from .rope import MultiAxisRope


class Unlisted(Family):
    """A model with `get_image_features`, one placeholder per visual token, and what LLaVA or Qwen-VL do with positions.

    Nothing is assumed that the target does not check when it is made, see `mmspec.check`. What the vision tower saw is
    not known, so drafters that share it cannot be used.

    Raises:
        MMSpecError: if the model has no encoder of pictures, or its config names no placeholder.
    """

    verified = False
    vision_projector = None

    def __init__(self, model):
        super().__init__(model)
        missing = [
            name
            for name, found in {
                "a get_image_features method": hasattr(model, "get_image_features"),
                "an image_token_id in its config": self._token("image") is not None,
            }.items()
            if not found
        ]
        if missing:
            raise MMSpecError(
                f"model type {model.config.model_type!r} is a vision-language model that no family in mmspec.families "
                f"handles, and it has not got {' nor '.join(missing)}, so it cannot be read like one that is listed. A "
                "new family is one small file: see mmspec/families/__init__.py"
            )
        self.image_inputs = self._arguments("get_image_features")
        if self._token("video") is not None and hasattr(model, "get_video_features"):
            self.video_inputs = self._arguments("get_video_features")

    @property
    def image_token_id(self) -> int:
        return self._token("image")

    def _token(self, kind: str) -> int | None:
        config = self.model.config
        return getattr(config, f"{kind}_token_id", None) or getattr(config, f"{kind}_token_index", None)

    def _arguments(self, name: str) -> tuple[str, ...]:
        """What an encoder of pictures is called with, the pixels first."""
        inner = getattr(self.model.base_model, name, getattr(self.model, name))
        parameters = inspect.signature(inner).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)

    def grids(self, inputs: dict[str, Any], vision) -> list[None]:
        return [None] * len(vision.sizes)


class UnlistedMultiAxis(MultiAxisRope, Unlisted):
    """The same with `get_rope_index`, as Qwen-VL has it."""

    further_inputs = ("second_per_grid_ts",)
