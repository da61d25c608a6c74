"""Sounds as models read them: one channel of samples from -1 to 1, at the rate that the model was trained with."""

from __future__ import annotations

import importlib
import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MMSpecError
from ..extras import how_to_install
from .arrays import as_array
from .places import located, quoted, reading

FORMS = 'a path, a URL, the bytes of a sound file, (samples, rate), or {"array": samples, "sampling_rate": rate}'
LOUDEST = 16.0
"""Samples are numbers around -1 to 1; what is beyond this was not scaled."""


def load_sound(source: Any, rate: int, name: str | None = None) -> np.ndarray:
    """Read a sound.

    Args:
        source: a path, a URL (`file:`, `data:`, or `https:` where there is a network) or the bytes of a file: WAV, and
            what soundfile and PyAV read where they are installed; `(samples, rate)`; or a mapping with `array` and
            `sampling_rate`, or with the `bytes` or the `path` of a file, as `datasets` has them. Samples are
            `[samples]` of floating point numbers around -1 to 1, or of whole numbers, which are scaled by the largest
            of their type.
        rate: samples a second that the model reads.
        name: name of the sound in errors; by default that of its file.

    Returns:
        `[samples]` of float32: the mean of the channels of a file.

    Raises:
        MMSpecError: if it is none of these, missing, damaged, empty, of another rate, or not finite.
    """
    if isinstance(source, Mapping):
        if source.get("array") is not None and source.get("sampling_rate") is not None:
            source = source["array"], source["sampling_rate"]
        elif (content := source.get("bytes")) is not None or (content := source.get("path")) is not None:
            source, name = content, name or source.get("path")
        else:
            raise MMSpecError(f"a sound is a mapping with {', '.join(map(str, source)) or 'nothing'}; pass {FORMS}")
    if (place := located("sound", source, name)) is not None:
        name = place[1]
        with reading("sound", name):
            samples, found = _from_file(*place)
    else:
        name = name or "in memory"
        if isinstance(as_array(source), np.ndarray):
            raise MMSpecError("a sound is an array alone, which does not say its rate: pass (samples, rate)")
        if not (isinstance(source, (tuple, list)) and len(source) == 2):
            raise MMSpecError(f"a sound is a {type(source).__name__}; pass {FORMS}")
        samples, found = _from_array(source[0], source[1], name)
    if found != rate:
        raise MMSpecError(
            f"sound {quoted(name)} has {found} samples a second, but the model reads {rate}: resample it, for instance "
            f"with `ffmpeg -i in.wav -ar {rate} out.wav`"
        )
    if not samples.size:
        raise MMSpecError(f"sound {quoted(name)} is empty: it has no samples")
    if not (loudest := float(np.abs(samples).max())) <= LOUDEST:  # NaN is not
        raise MMSpecError(
            f"sound {quoted(name)} has samples up to {loudest:g}, where -1 to 1 are read: scale them, or pass whole "
            "numbers as they are"
        )
    return samples


def _from_array(samples: Any, rate: Any, name: str) -> tuple[np.ndarray, int]:
    """Samples in memory as float32, and their rate."""
    array = np.asarray(as_array(samples))
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise MMSpecError(
            f"sound {quoted(name)} is an array of {array.dtype} with shape {array.shape}; pass ([samples], rate): of "
            "several channels their mean"
        )
    known = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not known or not float(rate).is_integer():
        raise MMSpecError(f"sound {quoted(name)}: its rate must be a whole number of samples a second, not {rate!r}")
    return _scaled(array), int(rate)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Whole numbers as float32 from -1 to 1; in 8 bits without a sign, 128 is silence."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    most = 2.0 ** (8 * samples.dtype.itemsize - 1)
    middle = most if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - middle) / most).astype(np.float32)


def _from_file(source: Path | io.BytesIO, name: str) -> tuple[np.ndarray, int]:
    """Samples of a file, and their rate: by the first of the readers that are installed and know its format."""
    failure: Exception | None = None
    for package, read in (("soundfile", _with_soundfile), ("av", _with_pyav), ("wave", _with_wave)):
        try:
            importlib.import_module(package)
        except (ImportError, OSError):  # soundfile looks for its library when it is imported
            continue
        if isinstance(source, io.BytesIO):
            source.seek(0)
        try:
            return read(source)
        except Exception as error:  # each library has its own
            failure = failure or error
            only_wave = package == "wave" and failure is error
    if only_wave:
        raise MMSpecError(
            f"sound {quoted(name)} is no WAV file of whole numbers ({failure}), and other formats take soundfile or "
            f"PyAV, which are not installed: {how_to_install('audio')}"
        )
    assert failure is not None, "wave is always there"
    raise failure


def _with_soundfile(source: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    import soundfile

    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    return samples.mean(1, dtype=np.float32), rate


def _with_pyav(source: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    import av

    with av.open(source if isinstance(source, io.BytesIO) else str(source), mode="r") as container:
        if not container.streams.audio:
            raise ValueError("it has no sound")
        rate = container.streams.audio[0].rate
        to_floats = av.AudioResampler(format="fltp", rate=rate)
        parts = [part for frame in container.decode(audio=0) for part in to_floats.resample(frame)]
        parts += to_floats.resample(None)
        samples = [part.to_ndarray() for part in parts]
    return (np.concatenate(samples, 1).mean(0, dtype=np.float32) if samples else np.zeros(0, np.float32)), rate


def _with_wave(source: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    with wave.open(source if isinstance(source, io.BytesIO) else str(source)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        content = file.readframes(file.getnframes())
    if width == 3:  # to four bytes, the lowest of which is 0
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0]
    else:
        samples = np.frombuffer(content, np.dtype({1: "u1", 2: "<i2", 4: "<i4"}[width]))
    return _scaled(samples).reshape(-1, channels).mean(1, dtype=np.float32), rate
