"""Keyframes: frames whose grey histogram differs from that of the frame before."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmspec import MMSpecError
from mmspec.media import keyframes
from mmspec.media.histograms import grey_histogram, histogram_correlation


def noise(low: int, high: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(low, high, (16, 16, 1), dtype=np.uint8)
    return np.repeat(drawn, 3, axis=2)


def test_correlations_are_pearsons():
    one, other = noise(0, 200), noise(50, 256, seed=1)
    first, second = grey_histogram(one), grey_histogram(other)
    assert first.sum() == 256 and first[one[0, 0, 0]] >= 1
    assert histogram_correlation(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert histogram_correlation(first, 3 * first) == pytest.approx(1)  # pictures of other sizes
    flat = np.ones(256)
    assert histogram_correlation(flat, flat) == 1 and histogram_correlation(flat, first) == 0


def test_colours_weigh_as_eyes_see_them():
    red, green = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))
    assert grey_histogram(red).argmax() == round(0.299 * 255) and grey_histogram(green).argmax() == round(0.587 * 255)


def test_a_keyframe_differs_from_the_frame_before_it():
    dark, light = noise(0, 100), noise(150, 256)
    moved = np.roll(dark, 3, axis=0)  # the same grey values elsewhere
    frames = np.stack([dark, moved, dark, light, light, dark])
    assert keyframes(frames) == [0, 3, 5] == keyframes([Image.fromarray(frame) for frame in frames])
    assert keyframes(frames, below=-1) == [0] and keyframes([]) == []
    touched = dark.copy()
    touched[:4] = 0  # of which correlation is between the limits
    between = histogram_correlation(grey_histogram(dark), grey_histogram(touched))
    assert 0 < between < 0.8
    assert keyframes([dark, touched], between + 1e-6) == [0, 1] and keyframes([dark, touched], between - 1e-6) == [0]


@pytest.mark.parametrize("below", [1.5, -2, "0.8", float("nan"), True])
def test_a_limit_that_is_none(below):
    with pytest.raises(MMSpecError, match="must be a correlation, a number from -1 to 1"):
        keyframes([], below)
