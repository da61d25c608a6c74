"""Open what an example refers to: its pictures, videos and sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..media import load_image
from ..media.places import data_url
from .examples import EMBEDDED, MEDIA, Example

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(reference: str | Image, folder: str | Path | None = None) -> Image:
    """Open the picture that an example refers to, in RGB, as `mmspec.media.load_image` reads all pictures.

    Args:
        reference: an entry of `Example.images`.
        folder: folder that relative paths start from.

    Raises:
        MMSpecError: if there is no such picture or it cannot be read.
    """
    if isinstance(reference, str) and reference.startswith(EMBEDDED):
        return _drawn(reference)
    return load_image(located(reference, folder))


def open_media(example: Example, folder: str | Path | None = None) -> dict[str, Any]:
    """Return the media of an example as lists by kind, as `mmspec.inputs.prepare` takes them for one prompt.

    Only the kinds that the example has are there. Pictures are opened here. Videos and sounds stay files: the processor
    of the model that reads them decides about frames and sampling rate.

    Args:
        example: the example.
        folder: folder that relative paths start from.

    Raises:
        MMSpecError: if a picture cannot be read.
    """
    opened = {"images": [open_image(image, folder) for image in example.images]}
    opened |= {name: [located(one, folder) for one in getattr(example, name)] for name in MEDIA if name != "images"}
    return {name: media for name, media in opened.items() if media}


def batched(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the media of several examples, see `open_media`, as `prepare` takes them for a list of prompts: by kind, a
    list per example."""
    return {name: [list(row.get(name, ())) for row in rows] for name in MEDIA if any(name in row for row in rows)}


def located(reference: Any, folder: str | Path | None) -> Any:
    """Return a reference with a relative path joined to its folder; for a list of frames, each of them."""
    if isinstance(reference, (list, tuple)) and all(isinstance(frame, str) for frame in reference):
        return [located(frame, folder) for frame in reference]
    if not isinstance(reference, str) or data_url(reference) or "://" in reference:
        return reference
    return Path(folder or "", reference)


def _drawn(reference: str) -> Image:
    from ..zoo import sample

    try:
        task, split, index = reference.removeprefix(EMBEDDED).split("/")
        return sample(task, split, int(index)).image
    except ValueError as error:
        raise MMSpecError(f"image {reference!r} is not of the form {EMBEDDED}TASK/SPLIT/INDEX: {error}") from None
