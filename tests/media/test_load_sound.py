"""Sounds are read in every form as one channel of the same samples, and what is none is refused in one line."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
import soundfile
import torch
from media_files import write_wave
from refusals import refused

from mmspec.media import load_sound

RATE = 16000
TONE = (0.5 * np.sin(np.arange(800) / 20)).astype(np.float32)


def saved(format: str = "WAV", samples: np.ndarray = TONE, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "readers", [("soundfile", "av"), ("soundfile",), ("av",), ()], ids=lambda r: "+".join(r) or "none"
)
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wave_file_is_the_same_sound_with_every_reader(tmp_path, monkeypatch, readers, width):
    for package in {"soundfile", "av"} - set(readers):
        monkeypatch.setitem(sys.modules, package, None)
    stereo = np.stack([TONE, np.zeros_like(TONE)], 1)
    write_wave(tmp_path / "one.wav", TONE, width=width)
    write_wave(tmp_path / "two.wav", stereo, width=width)
    content = (tmp_path / "one.wav").read_bytes()
    url = "data:audio/wav;base64," + base64.b64encode(content).decode()
    for source in (
        tmp_path / "one.wav",
        (tmp_path / "one.wav").as_uri(),
        content,
        url,
        {"bytes": content, "path": None},
    ):
        samples = load_sound(source, RATE)
        assert samples.dtype == np.float32 and samples.shape == TONE.shape
        assert np.abs(samples - TONE).max() < 2.0 ** (2 - 8 * min(width, 3))
    assert np.abs(load_sound(str(tmp_path / "two.wav"), RATE) - TONE / 2).max() < 2.0 ** (2 - 8 * min(width, 3))


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("reader", ["soundfile", "av"])
def test_other_formats(monkeypatch, format, reader):
    monkeypatch.setitem(sys.modules, {"soundfile": "av", "av": "soundfile"}[reader], None)
    samples = load_sound(saved(format, np.tile(TONE, 8)), RATE)
    middle = slice(1000, 5000)  # a codec may add a little at the ends
    assert np.corrcoef(samples[middle], np.tile(TONE, 8)[middle])[0, 1] > 0.5 and abs(len(samples) - 6400) < 2400


@pytest.mark.parametrize(
    "source",
    [
        (TONE, RATE),
        (TONE.astype(np.float64), float(RATE)),
        (TONE.tolist(), np.int64(RATE)),
        (torch.from_numpy(TONE), RATE),
        (np.rint(TONE * 2**15).astype(np.int16), RATE),
        (np.rint(TONE * 2**15 + 2**15).astype(np.uint16), RATE),
        [np.rint(TONE * 2.0**31).astype(np.int32), RATE],
        {"array": TONE, "sampling_rate": RATE, "path": "a.wav"},
    ],
)
def test_samples_in_memory(source):
    samples = load_sound(source, RATE)
    assert samples.dtype == np.float32 and np.abs(samples - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.wav", "sound 'missing.wav' does not exist"),
        (".", "it is a folder"),
        (b"no sound", "sound in bytes cannot be read"),
        (saved()[:40], "sound in bytes"),
        (saved(samples=TONE[:0]), "sound in bytes is empty"),
        ((TONE, 44100), "sound in memory has 44100 samples a second, but the model"),
        (([], RATE), "sound in memory is empty"),
        ((TONE * np.nan, RATE), "samples up to nan, where -1 to 1 are read"),
        ((TONE * 32768, RATE), "samples up to 16"),
        ((np.stack([TONE, TONE]), RATE), "array of float32 with shape (2, 800); pass ([samples], rate)"),
        ((TONE, "16000"), "its rate must be a whole number of samples a second, not"),
        ((TONE, 0.5), "must be a whole number"),
        (TONE, "an array alone, which does not say its rate: pass"),
        ({"sampling_rate": RATE}, "a mapping with sampling_rate; pass a path"),
        (3, "a sound is a int; pass a path"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line(source, message):
    refused(lambda: load_sound(source, RATE), message)


def test_without_a_reader_the_error_says_which_to_install(monkeypatch):
    for package in ("soundfile", "av"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: load_sound(saved("FLAC"), RATE), "other formats take soundfile or PyAV, ... [audio]")
