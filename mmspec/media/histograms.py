"""Keyframes: the frames of a video that differ from the one before, by their grey histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MMSpecError
from ..settings.arguments import is_number
from .pictures import load_image

GREYS = 256


def grey_histogram(picture: Any) -> np.ndarray:
    """Return how many pixels of a picture have each grey value, `[256]`; the weights of the colours are ITU-R 601's.

    Args:
        picture: anything that `load_image` takes.
    """
    grey = np.asarray(load_image(picture).convert("L"))
    return np.bincount(grey.ravel(), minlength=GREYS).astype(np.float64)


def histogram_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's correlation of two histograms, from -1 to 1. Where one of them is flat, it is 1 if the other is
    flat too, and 0 otherwise."""
    first, second = first - first.mean(), second - second.mean()
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    if spread == 0:
        return float(np.array_equal(first, second))
    return float((first * second).sum() / spread)


def keyframes(frames: Sequence[Any], below: float = 0.8) -> list[int]:
    """Return the numbers of the keyframes: the first frame, and each whose grey histogram correlates with that of the
    frame before by less than `below`.

    Args:
        frames: the frames in order, anything that `load_image` takes; or the array of `mmspec.media.Video.frames`.
        below: from -1 (the first frame alone) to 1 (all that differ in the least).

    Raises:
        MMSpecError: for a limit that is none, and for what is no picture.
    """
    if not is_number(below) or not -1 <= below <= 1:
        raise MMSpecError(f"keyframes: below={below!r} must be a correlation, a number from -1 to 1")
    histograms = [grey_histogram(frame) for frame in frames]
    return [
        number
        for number, histogram in enumerate(histograms)
        if number == 0 or histogram_correlation(histograms[number - 1], histogram) < below
    ]
