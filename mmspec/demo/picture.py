"""Reads uploaded pictures: they are checked against the limits before they are decoded, and refused with a reason."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MMSpecError, cut
from ..media import load_image
from .limits import PageLimits

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are accepted from a visitor. Pillow reads many more, some of them with the help of other programs."""
NAME = 100
"""Number of characters of a picture's name that are shown."""


def read(path: str | Path, limits: PageLimits, name: str | None = None) -> Image:
    """Return an uploaded picture in RGB.

    Args:
        path: path of the file.
        limits: limits to check.
        name: name of the file on the visitor's machine, which is the only one that the visitor knows.

    Raises:
        MMSpecError: if the file is too large or is not a picture.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    name = cut(name or path.name, NAME)
    try:
        found = path.stat()
    except (OSError, ValueError):  # not there, or no name that a file could have
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise MMSpecError(f"image {name!r} is no longer there: drop it again")
    size = found.st_size / 1e6
    if size > limits.megabytes:
        raise MMSpecError(
            f"image {name!r} has {size:.1f} MB, but this page takes {limits.megabytes:g} MB at most: make it smaller, "
            f"or start the page with a larger upload_mb= than {limits.megabytes:g}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(path, formats=FORMATS) as opened:
                width, height = opened.size
    except UnidentifiedImageError:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise MMSpecError(f"image {name!r} is not in a picture format that this page reads: {known}") from None
    except Image.DecompressionBombError:
        raise MMSpecError(_too_many(name, "far more pixels", limits)) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise MMSpecError(f"image {name!r} cannot be read: {error}") from None
    if width * height > limits.megapixels * 1e6:
        pixels = f"{width} x {height} pixels, {width * height / 1e6:.1f} million"
        raise MMSpecError(_too_many(name, pixels, limits))
    return load_image(path, name)


def _too_many(name: str, pixels: str, limits: PageLimits) -> str:
    return (
        f"image {name!r} has {pixels}, but this page takes {limits.megapixels:g} million at most: scale it down, or "
        f"start the page with a larger megapixels= than {limits.megapixels:g}"
    )
