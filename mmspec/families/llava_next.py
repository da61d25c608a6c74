"""LLaVA-NeXT and LLaVA-OneVision: a picture is seen whole and in tiles, with a learnt line break after every row."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from .base import Family
from .encoders import Encoder
from .vision import Grid, Vision


class Tiled(Encoder):
    """Pictures in tiles. What a picture's tokens saw is put together as the model puts its own together, with zeros at
    the line breaks."""

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Put the features of every picture together as the model puts its own together."""
        config = self.model.config
        parts, _ = self.model.model.pack_image_features(
            features.split(self._tiles(inputs)),
            inputs["image_sizes"],
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=features.new_zeros(features.shape[-1]),
        )
        return parts

    def _tiles(self, inputs: dict[str, Any]) -> list[int]:
        """Return the number of tiles of every picture, the whole one included."""
        tiles_of = importlib.import_module(type(self.model).__module__).image_size_to_num_patches
        pinpoints, edge = self.model.config.image_grid_pinpoints, self.model.config.vision_config.image_size
        return [tiles_of(size, pinpoints, edge) for size in inputs["image_sizes"]]

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return None for every picture: a thumbnail and tiles with line breaks are no rectangle."""
        return [None] * len(sizes)


class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`."""

    model_types = ("llava_next",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of pictures."""
        return [Tiled(model, "image", "pixel_values", "image_sizes")]


class TiledAlone(Tiled):
    """Pictures in tiles, if they are alone: of several pictures in one prompt none is in tiles."""

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Put the features of every picture together as the model puts its own together."""
        parts, _ = self.model.model.pack_image_features(
            features.split(self._tiles(inputs)),
            inputs["image_sizes"],
            image_newline=features.new_zeros(features.shape[-1]),
            vision_aspect_ratio=self.model.config.vision_aspect_ratio,
        )
        return parts

    def _tiles(self, inputs: dict[str, Any]) -> list[int]:
        """Return the number of tiles of every picture: 1 for one of several in a prompt."""
        tiles, counts = super()._tiles(inputs), inputs.get("batch_num_images")
        if counts is None:
            return tiles
        alone = [count == 1 for count in counts for _ in range(count)]
        return [count if tiled else 1 for count, tiled in zip(tiles, alone, strict=True)]


class PooledFrames(Encoder):
    """Videos whose frames are pooled, with one line break behind the last."""

    def read(self, output: Any, features: Tensor | None, inputs: dict[str, Any]) -> Vision:
        """Take the pooled frames, with one line break behind the last."""
        # In transformers 5.17 the line break is not there yet.
        newline = self.model.model.image_newline.to(output.pooler_output)
        output.pooler_output = [
            video if torch.equal(video[-1], newline) else torch.cat([video, newline[None]])
            for video in output.pooler_output
        ]
        return super().read(output, features, inputs)

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Pool the features as the model pools its own, with zeros at the line break."""
        frames = self.model.model.apply_pooling(features)
        videos = rearrange(frames, "(video frame) token size -> video (frame token) size", video=len(embeds))
        return [torch.cat([video, video.new_zeros(1, video.shape[-1])]) for video in videos]

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return the frames, and their rows and columns, behind which the line break is left over."""
        given = inputs.get(self.samples)
        if given is None:  # consumed by `generate`
            return [None] * len(sizes)
        frames = given.shape[1]
        edges = [math.isqrt((size - 1) // frames) for size in sizes]
        return [
            (frames, edge, edge) if frames * edge**2 == size - 1 else None
            for edge, size in zip(edges, sizes, strict=True)
        ]


class LlavaOneVision(Family):
    """`LlavaOnevisionForConditionalGeneration`, with videos."""

    model_types = ("llava_onevision",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoders of pictures and of videos."""
        pictures = TiledAlone(model, "image", "pixel_values", "image_sizes", "batch_num_images")
        return [pictures, PooledFrames(model, "video", "pixel_values_videos")]
