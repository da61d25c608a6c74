"""Video files, read with PyAV or torchcodec: whichever is installed."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import MMSpecError
from ..extras import how_to_install
from .places import quoted, reading

Choice = Callable[[int], Sequence[int]]
"""From the number of frames of a video to the numbers of those to read, in order."""


class VideoFile(Protocol):
    """A video that is open.

    Attributes:
        name: in errors.
        total: frames.
        fps: frames a second; None where the file does not say.
        size: height and width in pixels, as the frames are stored.
    """

    name: str
    total: int
    fps: float | None
    size: tuple[int, int]

    def read(self, choice: Choice) -> tuple[list[int], np.ndarray]:
        """Return the numbers of the chosen frames, and the frames `[frames, height, width, 3]`."""
        ...


@contextmanager
def open_video(source: Path | io.BytesIO, name: str) -> Iterator[VideoFile]:
    """Open a video file.

    Raises:
        MMSpecError: if no reader is installed, or the file is damaged or no video.
    """
    for package, kind in (("av", _WithPyAV), ("torchcodec", _WithTorchcodec)):
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError):  # torchcodec looks for ffmpeg when it is imported
            continue
        with reading("video", name):
            file = kind(source, name)
            try:
                yield file
            finally:
                file.close()
        return
    raise MMSpecError(
        f"video {quoted(name)}: to read video files takes PyAV or torchcodec, and neither is installed: "
        f"{how_to_install('video')}, or pass the frames as an array or a list of pictures"
    )


class _WithPyAV:
    def __init__(self, source: Path | io.BytesIO, name: str):
        self.name, self.source = name, source
        with self._opened() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            self.size = stream.height, stream.width
            # Some containers do not say how many frames they have; there is a packet for each.
            self.total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))

    @contextmanager
    def _opened(self):
        import av

        if isinstance(self.source, io.BytesIO):
            self.source.seek(0)
        with av.open(self.source if isinstance(self.source, io.BytesIO) else str(self.source)) as container:
            if not container.streams.video:
                raise MMSpecError(f"video {quoted(self.name)} has no pictures in it, only sound")
            container.streams.video[0].thread_type = "AUTO"
            yield container

    def read(self, choice: Choice) -> tuple[list[int], np.ndarray]:
        indices, frames = self._read(choice)
        if frames is None:  # the file has fewer than it says, as one that was cut has: choose again
            indices, frames = self._read(choice)
        if frames is None:
            raise MMSpecError(f"video {quoted(self.name)} cannot be read twice alike: it may be damaged")
        return indices, frames

    def _read(self, choice: Choice) -> tuple[list[int], np.ndarray | None]:
        indices = list(choice(self.total))
        wanted, kept, number = set(indices), {}, -1
        with self._opened() as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    kept[number] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    if len(kept) == len(wanted):
                        return indices, np.stack([kept[index] for index in indices])
        self.total = number + 1
        return indices, None

    def close(self) -> None:
        pass


class _WithTorchcodec:
    def __init__(self, source: Path | io.BytesIO, name: str):
        from torchcodec.decoders import VideoDecoder

        self.name = name
        place = source.getvalue() if isinstance(source, io.BytesIO) else str(source)
        self.decoder = VideoDecoder(place, dimension_order="NHWC")
        facts = self.decoder.metadata
        self.total, self.fps, self.size = facts.num_frames, facts.average_fps, (facts.height, facts.width)

    def read(self, choice: Choice) -> tuple[list[int], np.ndarray]:
        indices = list(choice(self.total))
        return indices, self.decoder.get_frames_at(indices).data.numpy()

    def close(self) -> None:
        del self.decoder
