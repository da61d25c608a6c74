"""Videos as models read them: some frames in 8-bit RGB, and where in the video they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MMSpecError, first_line
from .arrays import as_array
from .pictures import load_image
from .places import located, quoted
from .video_files import open_video

FORMS = "a path, a URL, the bytes of a video file, an array of frames, or a list of pictures"
MOST_FRAMES = 1024
"""Frames that are read of a video where nothing says how many."""

Chooser = Callable[[dict[str, Any]], Sequence[int]]
"""From a video's metadata (see `Video.metadata`) to the numbers of the frames to read, in order."""


@dataclass
class Video:
    """Frames of a video.

    Args:
        frames: `[frames, height, width, 3]` of uint8.
        fps: frames a second of the whole video; None where nobody knows.
        total: frames of the whole video; by default those that are here.
        indices: number of each frame in the whole video; by default they count from 0.

    Raises:
        MMSpecError: for a frame rate that is none, and for another number of indices than frames.
    """

    frames: np.ndarray = field(repr=False)
    fps: float | None = None
    total: int | None = None
    indices: list[int] | None = None

    def __post_init__(self):
        self.total = len(self.frames) if self.total is None else self.total
        self.indices = list(range(len(self.frames))) if self.indices is None else list(self.indices)
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise MMSpecError(f"Video: fps={self.fps!r} must be above 0; None says that nobody knows it")
        if len(self.indices) != len(self.frames):
            raise MMSpecError(f"Video: indices has {len(self.indices)} numbers for {len(self.frames)} frames")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def timestamps(self) -> list[float] | None:
        """When each frame is shown, in seconds; None if the frame rate is not known."""
        return None if self.fps is None else [index / self.fps for index in self.indices or []]

    def metadata(self) -> dict[str, Any]:
        """Return what processors of transformers want to know of a video whose frames were chosen already."""
        return _metadata(self.total or 0, self.fps, self.frames.shape[1:3]) | {
            "frames_indices": list(self.indices or [])
        }


def load_video(
    source: Any,
    frames: int | None = None,
    fps: float | None = None,
    choose: Chooser | None = None,
    name: str | None = None,
) -> Video:
    """Read frames of a video.

    A file is decoded frame by frame, and what is not chosen is not kept, so that it may be of any length.

    Args:
        source: a path, a URL (`file:`, `data:`, or `https:` where there is a network) or the bytes of a file, which
            PyAV or torchcodec reads, whichever is installed; an array or a tensor `[frames, height, width, channels]`,
            whose values are those that `load_image` takes; a list of pictures of one size, anything that `load_image`
            takes; or a `Video`.
        frames: at most so many, evenly spaced.
        fps: frames a second; all where the video has no more. With `frames`, at most so many of these.
        choose: decides which ones in place of both.
        name: name of the video in errors; by default that of its file.

    Returns:
        The chosen frames, upright; all of them if nothing says which.

    Raises:
        MMSpecError: if it is none of these, missing, damaged or without frames; if no reader is installed; for more
            than `MOST_FRAMES` frames of which nothing says how many to read; for `fps` of a video whose frame rate is
            not known.
    """
    if frames is not None and not frames >= 1:
        raise MMSpecError(f"frames={frames} of a video: read at least one")
    if fps is not None and not 0 < fps < float("inf"):
        raise MMSpecError(f"fps={fps} of a video must be above 0")
    if isinstance(source, Video):
        source, known = source.frames, source
    else:
        known = None

    def chosen(total: int, rate: float | None, size: tuple[int, int] | None, name: str) -> list[int]:
        if not total:
            raise MMSpecError(f"video {quoted(name)} has no frames")
        if choose is None:
            return _spaced(total, rate, frames, fps, name)
        try:
            numbers = [int(number) for number in choose(_metadata(total, rate, size))]
        except Exception as error:  # of a processor, which may want to know more
            raise MMSpecError(f"video {quoted(name)}: no frames were chosen: {first_line(error)}") from error
        if not numbers or min(numbers) < 0 or max(numbers) >= total or numbers != sorted(numbers):
            raise MMSpecError(
                f"video {quoted(name)}: of its {total} frames {numbers[:8]}... were chosen: choose at least "
                "one, in order"
            )
        return numbers

    if (place := located("video", source, name)) is not None:
        with open_video(*place) as file:
            indices, pictures = file.read(lambda total: chosen(total, file.fps, file.size, file.name))
            return Video(pictures, file.fps, file.total, indices)
    name = name or "in memory"
    source = as_array(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise MMSpecError(
                f"a video is an array with shape {source.shape}; arrays are read as [frames, height, width, channels]"
            )
    elif not isinstance(source, (list, tuple)):
        raise MMSpecError(f"a video is a {type(source).__name__}; pass {FORMS}")
    rate = None if known is None else known.fps
    size = source.shape[1:3] if known is not None and isinstance(source, np.ndarray) else None
    indices = chosen(len(source), rate, size, name)
    pictures = _one_size([source[index] for index in indices], indices, name)
    if known is None:
        return Video(pictures, rate, len(source), indices)
    return Video(pictures, rate, known.total, [known.indices[index] for index in indices])


def _metadata(total: int, fps: float | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what transformers' `VideoMetadata` holds; `size` is height and width in pixels."""
    height, width = size or (None, None)
    duration = total / fps if fps else None
    return {"total_num_frames": total, "fps": fps, "height": height, "width": width, "duration": duration}


def _spaced(total: int, rate: float | None, frames: int | None, fps: float | None, name: str) -> list[int]:
    """Numbers of frames that are evenly spaced."""
    if fps is None:
        if frames is None and total > MOST_FRAMES:
            raise MMSpecError(
                f"video {quoted(name)} has {total} frames, and more than {MOST_FRAMES} are read only when asked for: "
                "say frames= or fps="
            )
        numbers = list(range(total))
    elif rate is None:
        raise MMSpecError(
            f"video {quoted(name)} has no known frame rate, so fps={fps:g} says nothing: pass frames=, or "
            "Video(frames, fps=...)"
        )
    else:
        step = max(rate / fps, 1.0)
        count = int(np.ceil(total / step - 1e-9))
        numbers = [min(int(step * number), total - 1) for number in range(count)]
    return numbers if frames is None else [numbers[place] for place in evenly(len(numbers), frames)]


def evenly(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers below `total`, evenly spaced."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _one_size(pictures: Sequence[Any], indices: Sequence[int], name: str) -> np.ndarray:
    """Pictures as frames `[frames, height, width, 3]`."""
    read = [
        np.asarray(load_image(picture, None if isinstance(picture, str) else f"{index + 1} of the video {name}"))
        for picture, index in zip(pictures, indices, strict=True)
    ]
    for index, one in zip(indices, read, strict=True):
        if one.shape != read[0].shape:
            (height, width, _), (first_height, first_width, _) = one.shape, read[0].shape
            raise MMSpecError(
                f"frame {index + 1} of the video {name} has {width} x {height} pixels but another {first_width} x "
                f"{first_height}: give frames of one size"
            )
    return np.stack(read)
