"""Pictures as models read them: 8-bit RGB, upright, on white, the same through whichever door they come."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MMSpecError
from .arrays import as_array
from .places import located, quoted, reading

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = (255, 255, 255, 255)
SIXTEEN_BITS, EIGHT_BITS = 65535, 255
PHOTOGRAPHS_OF_PHONES = (".heic", ".heif", ".avif")
FORMS = "a PIL image, a path, a URL, the bytes of a picture file, or an array"


def load_image(source: Any, name: str | None = None) -> Image:
    """Return a PIL picture in RGB, 8 bits a channel.

    Photographs are turned as their EXIF orientation says. What is transparent is laid on white. Grey values of 16 bits
    are scaled to 8. Of several frames it is the one that a PIL image is at, which is the first one of a file.

    Args:
        source: a PIL picture; a path; a URL (`file:`, `data:`, or `https:` where there is a network); the bytes of a
            picture file; or an array of grey, RGB or RGBA values, `[height, width]` or `[height, width, channels]`, of
            uint8, uint16, bool, or of floating point numbers from 0 to 1.
        name: name of the picture in errors, by default that of its file.

    Raises:
        MMSpecError: if it is none of these, the file is missing, damaged or no picture, or its numbers have no known
            black and white.
    """
    from PIL import Image, ImageOps

    source = as_array(source)
    if isinstance(source, np.ndarray):
        name = name or "in an array"
        source = _from_array(source, name)
    elif (place := located("image", source, name)) is not None:
        source, name = place
    elif not isinstance(source, Image.Image):
        raise MMSpecError(f"an image is a {type(source).__name__}; pass {FORMS}")
    if isinstance(source, Image.Image):
        name = name or getattr(source, "filename", "") or "in memory"
        with _reading(name):  # it may have to be decoded only now
            return _in_rgb(ImageOps.exif_transpose(source), source.format, name)
    assert name is not None  # every other source has got one
    with _reading(name), Image.open(source) as image:
        return _in_rgb(ImageOps.exif_transpose(image), image.format, name)


def held_image(content: bytes, name: str) -> Image:
    """Return the picture in the bytes of a file, which `load_image` decodes later.

    Raises:
        MMSpecError: if it is in no format of pictures.
    """
    from PIL import Image

    with _reading(name):
        return Image.open(io.BytesIO(content))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say what `reading` says, and what to do about formats that Pillow does not know."""
    from PIL import UnidentifiedImageError

    with reading("image", name):
        try:
            yield
        except UnidentifiedImageError:
            hint = ""
            if name.lower().endswith(PHOTOGRAPHS_OF_PHONES):
                hint = "; save it as JPEG or PNG, or register a reader for it, such as that of pillow-heif"
            raise MMSpecError(f"image {quoted(name)} is not in a picture format that Pillow reads{hint}") from None


def _from_array(array: np.ndarray, name: str) -> Image:
    """Return an array as a picture, its channels last."""
    from PIL import Image

    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if channels not in (1, 3, 4) or not array.size:
        raise MMSpecError(
            f"an image is an array with shape {array.shape}; arrays are read as [height, width] or [height, width, "
            "channels] with 1, 3 or 4 channels (grey, RGB, RGBA): transpose it, or pass a PIL image or a path"
        )
    return Image.fromarray(_eight_bits(array[:, :, 0] if array.shape[2:] == (1,) else array, name))


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Values of another type as uint8, of which 0 is black and the largest is white."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * EIGHT_BITS
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in any order of the bytes
        scale = EIGHT_BITS / SIXTEEN_BITS
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise MMSpecError(
                f"image {quoted(name)} has floating point values from {low:.4g} to {high:.4g}, and only those from 0 "
                "(black) to 1 (white) are read: scale them, or convert them to uint8"
            )
        scale = EIGHT_BITS
    else:
        raise MMSpecError(
            f"image {quoted(name)} has {values.dtype} values, whose black and white are unknown: convert them to uint8 "
            "(0 to 255), or to floating point numbers from 0 to 1"
        )
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _in_rgb(image: Image, format: str | None, name: str) -> Image:
    """Return a picture of right orientation in RGB; `format` is that of the file it was opened from, if it was."""
    from PIL import Image

    if not all(image.size):
        raise MMSpecError(f"image {quoted(name)} is empty: it has {image.size[0]} x {image.size[1]} pixels")
    if image.mode.startswith("I;16"):
        # Pillow cuts such values off at 255 instead of scaling them, so that most pictures become white.
        return Image.fromarray(_eight_bits(np.asarray(image).astype(np.uint16), name)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray(_grey(np.asarray(image), format is not None, name)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), layer).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray, of_file: bool, name: str) -> np.ndarray:
    """Return 32-bit values as uint8: 16-bit ones as older versions of Pillow read them from files, or 8-bit ones in
    memory."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > SIXTEEN_BITS:
        raise MMSpecError(
            f"image {quoted(name)} has 32-bit values from {low} to {high}, whose black and white are unknown: convert "
            "it to 8 bits"
        )
    eight = not of_file and high <= EIGHT_BITS
    return _eight_bits(values.astype(np.uint8 if eight else np.uint16), name)
