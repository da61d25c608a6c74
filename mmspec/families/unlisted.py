"""Unlisted: models with eyes or ears that have no family, taken at their word and checked."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

from ..errors import MMSpecError
from ..media import KINDS
from .base import Family
from .encoders import Encoder
from .rope import MultiAxisRope
from .vision import Grid


class Unknown(Encoder):
    """An encoder that is called as its signature says. What its tower saw is not known, so drafters that share it
    cannot be used, nor how its tokens stand."""

    projector = None

    def __init__(self, model: PreTrainedModel, kind: str):
        name = f"get_{kind}_features"
        parameters = inspect.signature(getattr(model.base_model, name, getattr(model, name))).parameters.values()
        super().__init__(model, kind, *(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD))

    @property
    def token(self) -> int | None:
        """The placeholder token that the configuration names."""
        return token_of(self.model, self.kind)

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return None for each: nothing is known."""
        return [None] * len(sizes)


def token_of(model: PreTrainedModel, kind: str) -> int | None:
    """Return the placeholder token that a configuration names."""
    return getattr(model.config, f"{kind}_token_id", None) or getattr(model.config, f"{kind}_token_index", None)


class Unlisted(Family):
    """A model with `get_image_features` or `get_audio_features`, one placeholder for every token that these give, and
    what LLaVA or Qwen-VL do with positions.

    Nothing is assumed that the target does not check when it is made, see `mmspec.check`.

    Raises:
        MMSpecError: if the model has no encoder of pictures or sounds, or its config names no placeholder.
    """

    verified = False

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return an encoder for every medium that the model has a method and a placeholder for."""
        sees = getattr(model.config, "vision_config", None) is not None
        kind = "image" if sees else "audio"
        missing = [
            name
            for name, found in {
                f"a get_{kind}_features method": hasattr(model, f"get_{kind}_features"),
                f"an {kind}_token_id in its config": token_of(model, kind) is not None,
            }.items()
            if not found
        ]
        if missing:
            what = "a vision-language model" if sees else "a model that hears"
            raise MMSpecError(
                f"model type {model.config.model_type!r} is {what} that no family in mmspec.families handles, and it "
                f"has not got {' nor '.join(missing)}, so it cannot be read like one that is listed. A new family is "
                "one small file: see mmspec/families/__init__.py"
            )
        there = [k for k in KINDS if hasattr(model, f"get_{k}_features") and token_of(model, k) is not None]
        return [Unknown(model, kind) for kind in there]


class UnlistedMultiAxis(MultiAxisRope, Unlisted):
    """An unlisted model with `get_rope_index`, as Qwen-VL has it."""

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return an encoder for every medium; a video has a clock besides."""
        encoders = super().encoders_of(model)
        for encoder in encoders:
            encoder.further = ("second_per_grid_ts",) if encoder.kind == "video" else ()
        return encoders
