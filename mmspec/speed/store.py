"""Keep costs on disk, so that a machine is measured once."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.identity import content_hash
from ..files.storage import atomic_write_text
from .costs import Costs

FORMAT = 1


def cache_folder() -> Path:
    """Return `$MMSPEC_CACHE`, or `mmspec` in the user's cache folder (`$XDG_CACHE_HOME`, or else `~/.cache`)."""
    own = os.environ.get("MMSPEC_CACHE")
    if own:
        return Path(own).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mmspec"


def file_of(key: Mapping[str, Any]) -> Path:
    """Return the file for costs measured under these conditions."""
    name = content_hash(json.dumps(key, sort_keys=True, default=str).encode())
    return cache_folder() / "costs" / f"{name}.json"


def load(key: Mapping[str, Any]) -> Costs | None:
    """Load the costs that were measured under these conditions before; None if there are none. A file that cannot be
    read is left out with a warning: measuring again repairs it."""
    path = file_of(key)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        _warn(path, error)
        return None
    try:
        held = json.loads(text)
        if held["format"] == FORMAT:
            return Costs.from_dict(held["costs"])
        _warn(path, f"it has format {held['format']!r}, and this version reads {FORMAT}")
    except (KeyError, TypeError, ValueError, MMSpecError) as error:
        _warn(path, error)
    return None


def store(key: Mapping[str, Any], costs: Costs) -> Path | None:
    """Store costs atomically, so that another process never reads half a file. If they cannot be written there is a
    warning, because decoding can continue without them; the path is returned, None if there is no file."""
    path = file_of(key)
    text = json.dumps({"format": FORMAT, "costs": costs.to_dict()}, indent=1, default=str) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text, shared=True)
    except OSError as error:
        warnings.warn(
            f"the measured costs cannot be kept in {path}: {error.strerror or error}; they will be measured again next "
            "time (set MMSPEC_CACHE to a folder that can be written)",
            stacklevel=2,
        )
        return None
    return path


def _warn(path: Path, reason: object) -> None:
    warnings.warn(f"the measured costs in {path} cannot be read ({reason}); measuring again", stacklevel=3)
