"""Open what an example refers to: its pictures, videos and sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..media import Video, load_image
from ..media.places import data_url
from .examples import DRAWN, DRAWN_CLIP, DRAWN_PICTURE, MEDIA, Example

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
    if not is_drawn(reference):
        return load_image(located(reference, folder))
    if str(reference).startswith(DRAWN_PICTURE):
        return _picture(str(reference))
    return load_image(_frames(str(reference))[0])


def open_media(example: Example, folder: str | Path | None = None) -> dict[str, Any]:
    """Return the media of an example as lists by kind, as `mmspec.inputs.prepare` takes them for one prompt.

    Only the kinds that the example has are there. Pictures are opened and drawn here, clips drawn. Videos and sounds
    stay files: the processor of the model that reads them decides about frames and sampling rate.

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


def is_drawn(reference: Any) -> bool:
    """Return whether a reference is to something that an embedded generator draws."""
    return isinstance(reference, str) and reference.startswith(DRAWN)


def located(reference: Any, folder: str | Path | None) -> Any:
    """Return a reference with a relative path joined to its folder, for a list of frames each of them; or the clip that
    is drawn."""
    if isinstance(reference, (list, tuple)) and all(isinstance(frame, str) for frame in reference):
        return [located(frame, folder) for frame in reference]
    if is_drawn(reference):
        from ..zoo.video.frames import FRAMES_PER_SECOND

        return Video(_frames(reference), fps=FRAMES_PER_SECOND)
    if not isinstance(reference, str) or data_url(reference) or "://" in reference:
        return reference
    return Path(folder or "", reference)


def _picture(reference: str) -> Image:
    from ..zoo import sample

    try:
        task, split, index = reference.removeprefix(DRAWN_PICTURE).split("/")
        return sample(task, split, int(index)).image
    except ValueError as error:
        form = f"{DRAWN_PICTURE}TASK/SPLIT/INDEX"
        raise MMSpecError(f"image {reference!r} is not of the form {form}: {error}") from None


def _frames(reference: str) -> Any:
    from ..zoo.video.data import watch

    try:
        task, split, length, index = reference.removeprefix(DRAWN_CLIP).split("/")
        return watch(task, split, int(index), length).frames
    except ValueError as error:
        form = f"{DRAWN_CLIP}TASK/SPLIT/LENGTH/INDEX"
        raise MMSpecError(f"clip {reference!r} is not of the form {form}: {error}") from None
