"""Small files of pictures, videos and sounds, written with Pillow, PyAV and the standard library."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import numpy as np
from PIL import Image


def pictures(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """`[count, height, width, 3]`: the n-th is grey, brighter by 10 a frame, with a black left half."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, width // 2 :] = (20 + 10 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return frames


def write_video(path: str | Path | io.BytesIO, frames: np.ndarray, fps: int = 10, **options) -> None:
    """A video of a few large areas, which a lossy codec leaves alone but for a few grey values."""
    with av.open(path if isinstance(path, io.BytesIO) else str(path), "w", **options) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def brightness(frames: np.ndarray) -> list[int]:
    """The number of each frame of `pictures`, told by how bright its right half is."""
    bright = frames[:, :, frames.shape[2] * 3 // 4].astype(float).mean((1, 2))
    return np.rint((bright - 20) / 10).astype(int).tolist()


def write_wave(path: str | Path | io.BytesIO, samples: np.ndarray, rate: int = 16000, width: int = 2) -> None:
    """`[samples]` or `[samples, channels]` from -1 to 1 as a WAV file of `width` bytes a sample."""
    channels = samples.shape[1] if samples.ndim == 2 else 1
    whole = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype("<i4").reshape(-1, 1)
    content = (whole + 128).astype(np.uint8) if width == 1 else whole.view(np.uint8)[:, :width]
    with wave.open(path if isinstance(path, io.BytesIO) else str(path), "w") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.ascontiguousarray(content).tobytes())


def jpeg(width: int = 8, height: int = 4, orientation: int = 1) -> bytes:
    """Return a picture of noise as a file that says how a camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, format="JPEG", exif=exif)
    return buffer.getvalue()
