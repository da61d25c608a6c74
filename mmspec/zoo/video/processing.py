"""The processor of the video target: Qwen2.5-VL's own, with a reader of videos that does without torchvision.

Qwen2.5-VL's stock video processor needs torchvision; its stock picture processor does not. A video is cut into patches
just as pictures are, except that a patch spans two frames where a picture's holds one twice. So here the picture
processor reads every frame, and pairs of frames are put together. What is saved names the stock class, which makes the
same of a video wherever torchvision is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import BatchFeature, PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from transformers.utils import PushToHubMixin
from transformers.video_utils import VideoMetadata, make_batched_metadata, make_batched_videos

from mmspec.zoo.video.architecture import MERGE, PATCH
from mmspec.zoo.video.frames import FRAMES_PER_STEP
from mmspec.zoo.video.vocabulary import CHAT_TEMPLATE, build_clip_tokenizer

STOCK = "Qwen2VLVideoProcessor"
SIZES = {"shortest_edge": 4 * (PATCH * MERGE) ** 2, "longest_edge": 16 * 16 * (PATCH * MERGE) ** 2}
"""Fewest and most pixels of a frame: those of 4 and of 256 visual tokens. Larger frames are made smaller."""


class FrameProcessor(PushToHubMixin):
    """A video processor that reads frames with the stock picture processor, and makes patches of pairs of them.

    Args:
        settings: those of `Qwen2VLImageProcessorPil`: `patch_size`, `merge_size`, `temporal_patch_size`, `size`,
            `image_mean`, `image_std`.
    """

    model_input_names = ["pixel_values_videos", "video_grid_thw"]
    _auto_class = None  # `save_pretrained` asks for it, and for the base class

    def __init__(self, **settings: Any):
        self.settings = settings
        self.patch_size, self.merge_size = settings["patch_size"], settings["merge_size"]
        self.temporal_patch_size = settings["temporal_patch_size"]
        self.pictures = Qwen2VLImageProcessorPil(**settings)

    def __call__(
        self,
        videos: Any,
        video_metadata: Any = None,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        do_sample_frames: bool = False,
        **options: Any,
    ) -> BatchFeature:
        """Cut videos into patches.

        Args:
            videos: one or several, each an array `[frames, height, width, 3]` or a list of pictures.
            video_metadata: what is known of each.
            return_metadata: whether it is returned as well.
            return_tensors: `"pt"` for tensors, which is what is returned in any case.
            do_sample_frames: must be False: the frames are chosen before.
            options: settings that a caller gives beside those of the processor; none is taken.

        Returns:
            `pixel_values_videos` `[patches, colours * frames * height * width]` and `video_grid_thw` `[videos, 3]`.

        Raises:
            ValueError: for options, and if frames are to be chosen.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if do_sample_frames or given:
            raise ValueError(f"frames are read as they are given, without {', '.join(given) or 'do_sample_frames'}")
        batch: list[Any] = make_batched_videos(videos)
        read = [self._patches(list(frames)) for frames in batch]
        data: dict[str, Any] = {
            "pixel_values_videos": torch.cat([patches for patches, _ in read]),
            "video_grid_thw": torch.tensor([grid for _, grid in read]),
        }
        if return_metadata:
            known = make_batched_metadata(batch, video_metadata=video_metadata)
            data["video_metadata"] = [m if isinstance(m, VideoMetadata) else VideoMetadata(**m) for m in known]
        return BatchFeature(data)

    def _patches(self, frames: list[Any]) -> tuple[torch.Tensor, list[int]]:
        """Return the patches of one video, and its steps, rows and columns of them."""
        span = self.temporal_patch_size
        frames += frames[-1:] * (-len(frames) % span)
        read = self.pictures([numpy.asarray(frame) for frame in frames], return_tensors="pt")
        (_, rows, columns), *_ = read["image_grid_thw"].tolist()
        # [step, frame, patch, colour, copy, pixel]: the copies of a frame are one, and its place is taken by the pair
        shape = (len(frames) // span, span, rows * columns, 3, span, self.patch_size**2)
        pairs = read["pixel_values"].view(shape)[..., 0, :].permute(0, 2, 3, 1, 4)
        return pairs.reshape(-1, 3 * span * self.patch_size**2), [len(frames) // span, rows, columns]

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: the settings under the name of the stock class."""
        return {**self.settings, "video_processor_type": STOCK}


class _Unchecked(Qwen2_5_VLProcessor):
    """The stock processor, which while it is made asks of its parts whether they are of the classes that it knows. The
    one of video processors is not there without torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Take any video processor."""
        if argument_name == "video_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)


def build_clip_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> Qwen2_5_VLProcessor:
    """Return the processor that a user calls: it turns text, pictures and videos into model inputs."""
    settings: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": FRAMES_PER_STEP,
        "size": dict(SIZES),
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor: Qwen2_5_VLProcessor = _Unchecked(
        image_processor=Qwen2VLImageProcessorPil(**settings),
        tokenizer=tokenizer if tokenizer is not None else build_clip_tokenizer(),
        video_processor=FrameProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )
    processor.__class__ = Qwen2_5_VLProcessor  # made without the question, it is the stock one, and saved as that
    return processor


def load_clip_processor(folder: str | Path) -> Qwen2_5_VLProcessor:
    """Return the processor of a saved video target, with or without torchvision."""
    return build_clip_processor(PreTrainedTokenizerFast.from_pretrained(folder))
