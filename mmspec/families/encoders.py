"""Encoder: how pictures, videos or sounds enter a model, beside its language part."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import MMSpecError, shown
from ..models.hooks import Ear, listening
from .vision import Grid, Vision, runs

LAYERS = ("vision_feature_layers", "vision_feature_layer")
"""Settings of configurations that say which states of a tower are read. Where the first is there, the second is another
name of it."""


def check_layers(model: PreTrainedModel) -> None:
    """Refuse a configuration that reads states which the tower has not; transformers finds that with the first picture.

    Raises:
        MMSpecError: for such a configuration.
    """
    count = getattr(getattr(model.config, "vision_config", None), "num_hidden_layers", None)
    for name in LAYERS:
        value = getattr(model.config, name, None)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(count, int) and isinstance(number, int) and not -count - 1 <= number <= count:
                raise MMSpecError(
                    f"{type(model).__name__}: {name} {shown(number)} of its configuration is none of the states of "
                    f"the {count} layers of its tower; set {-count - 1} to {count}"
                )


class Encoder:
    """One medium of a model: the way from what a processor makes of it to what is read in place of its tokens.

    The base class describes what most models have: `get_image_features`, `get_video_features` or `get_audio_features`,
    and a placeholder token for every vector that they give. Nothing of a request is kept.

    Args:
        model: the whole model.
        kind: `"image"`, `"video"` or `"audio"`.
        inputs: arguments of the encoding method, as processors name them, the pixels or samples first.
        further: other outputs of the processor that say something about the medium.
    """

    def __init__(self, model: PreTrainedModel, kind: str, *inputs: str, further: tuple[str, ...] = ()):
        self.kind, self.inputs, self.further = kind, inputs, further
        self.model: Any = model  # its modules have the names that its architecture gives them

    @property
    def token(self) -> int | None:
        """The placeholder token, one for every token that the language model reads; None where there is none."""
        return getattr(self.model.config, f"{self.kind}_token_id", None)

    @property
    def samples(self) -> str:
        """The processor's output that holds pixels, or samples of sound."""
        return self.inputs[0]

    @property
    def projector(self) -> nn.Module | None:
        """The module whose input is `Vision.features`: `[pictures, tokens, hidden]`; None if there is none."""
        return None if self.kind == "audio" else self.model.model.multi_modal_projector

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which pixels or samples are read: the tower's, whatever the language model's is."""
        tower = self.model.get_encoder(modality=self.kind).parameters()
        return next((weight.dtype for weight in tower if weight.is_floating_point()), None)

    def encode(self, inputs: dict[str, Any]) -> Vision:
        """Run the encoder on a batch.

        Args:
            inputs: inputs of the request, with `samples` among them.
        """
        captured: list[Tensor] = []
        projector = self.projector
        ears = [] if projector is None else [Ear(projector, before=lambda args, _: captured.append(args[0]))]
        with listening(ears):
            # The name of the first argument is not the same in all versions of transformers, its place is.
            name = f"get_{self.kind}_features"
            encode = getattr(self.model if hasattr(self.model, name) else self.model.base_model, name)
            output = encode(
                self.cast(inputs[self.samples]),
                **{name: inputs[name] for name in self.inputs[1:] if inputs.get(name) is not None},
                return_dict=True,
            )
        return self.read(output, captured[0] if captured else None, inputs)

    def cast(self, samples: Tensor) -> Tensor:
        """Return pixels or samples in the encoder's dtype: they may have been made for a target of another one."""
        return samples.to(self.dtype) if samples.is_floating_point() else samples

    def read(self, output: Any, features: Tensor | None, inputs: dict[str, Any]) -> Vision:
        """Take what the model's own encoder returned apart, into one entry for every picture, video or sound.

        Args:
            output: output of the encoding method.
            features: what entered the projector; None where transformers encoded the medium itself.
            inputs: inputs of the request.
        """
        pooled = output.pooler_output
        if torch.is_tensor(pooled) and pooled.ndim == 2:  # one behind the other, cut where the prompt is
            lengths = runs(inputs["input_ids"].tolist(), self.token)
            pooled = pooled.split(lengths) if sum(lengths) == len(pooled) else [pooled]
        embeds = [part.reshape(-1, part.shape[-1]) for part in pooled]
        aligned = None if features is None else self.align(features, embeds, inputs)
        return Vision(embeds, aligned, [self.kind] * len(embeds))

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor] | None:
        """Cut the projector's input into one tensor per picture, in the order of the visual tokens."""
        return list(features.flatten(0, -2).split([picture.shape[0] for picture in embeds]))

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return times, rows and columns of the tokens of every picture, video or sound; None where they are no cuboid.

        By default a picture is a square, a sound has times only, and of a video nothing is known.

        Args:
            sizes: number of tokens of each.
            inputs: inputs of the request; inside `generate`, the processor's are gone.
        """
        if self.kind == "audio":
            return [(size, 1, 1) for size in sizes]
        edges = [math.isqrt(size) if self.kind == "image" else 0 for size in sizes]
        return [(1, edge, edge) if edge**2 == size else None for edge, size in zip(edges, sizes, strict=True)]
