"""Keep costs on disk, so that a machine is measured once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
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
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "costs" / f"{digest[:20]}.json"


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
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            unfinished = Path(file.name)
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        warnings.warn(
            f"the measured costs cannot be kept in {path}: {error.strerror or error}; they will be measured again next "
            "time (set MMSPEC_CACHE to a folder that can be written)",
            stacklevel=2,
        )
        return None
    return path


def _warn(path: Path, reason: object) -> None:
    warnings.warn(f"the measured costs in {path} cannot be read ({reason}); measuring again", stacklevel=3)
