"""Drafters as their authors published them: recognised by their keys, checked, and loaded as this library's classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MMSpecError, cut, did_you_mean, first_line
from .base import Format
from .block import BlockFormat
from .checkpoint import Checkpoint
from .dream import Dream
from .eagle import Eagle, Msd
from .eagle3 import Eagle3
from .gemma4 import Gemma4Assistant
from .hivis import HiVis
from .medusa import Medusa
from .mtp import Mtp
from .peagle import PEagle
from .vispec import ViSpec

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target

FORMATS: tuple[Format, ...] = (
    Eagle(),
    Msd(),
    Eagle3(),
    PEagle(),
    ViSpec(),
    HiVis(),
    Dream(),
    Medusa(),
    BlockFormat(),
    Mtp(),
    Gemma4Assistant(),
)
"""Formats that `load_drafter` knows. At most one of them matches a checkpoint."""

logger = logging.getLogger(__name__)

__all__ = ["FORMATS", "Checkpoint", "Format", "load_published", "recognise"]


def load_published(folder: str | Path, target: Target, format: str | None = None) -> Drafter | None:
    """Load a published drafter; return None if the folder holds weights of another kind, such as a whole model.

    Args:
        folder: where the checkpoint is, see `Checkpoint`.
        target: the model to draft for.
        format: name of its format, for a checkpoint that is not recognised, or to load it as another format.

    Raises:
        MMSpecError: see `Checkpoint`, `recognise` and `Format.build`.
    """
    checkpoint = Checkpoint(folder)
    found = recognise(checkpoint, format)
    if found is None:
        return None
    if format is None and (doubt := found.doubt(checkpoint.shapes)):
        logger.warning("%s is taken for format=%r, but %s", checkpoint, found.name, doubt)
    try:
        drafter = found.build(checkpoint, target)
    except MMSpecError:
        raise
    except Exception as error:  # of the libraries behind it, about values of any kind
        reason = cut(f"{type(error).__name__}: {first_line(error)}", 200)
        raise MMSpecError(f"{checkpoint} cannot be read as format={found.name!r} ({reason}); fetch it again") from error
    logger.info("%s is loaded as format=%r (%s)", checkpoint, found.name, type(drafter).__name__)
    return drafter


def recognise(checkpoint: Checkpoint, name: str | None = None) -> Format | None:
    """Return the format of a checkpoint, or the one with that name; None if the checkpoint has none of the formats.

    Raises:
        MMSpecError: for an unknown name, or a checkpoint that several formats claim.
    """
    if name is not None:
        formats = {format.name: format for format in FORMATS}
        if name not in formats:
            raise MMSpecError(f"format={name!r} is unknown.{did_you_mean(str(name), formats)}")
        return formats[name]
    found = [format for format in FORMATS if format.matches(checkpoint.shapes, checkpoint.config)]
    if len(found) > 1:
        names = ", ".join(repr(format.name) for format in found)
        raise MMSpecError(f"{checkpoint} looks like {names}; say which it is with format=")
    return found[0] if found else None
