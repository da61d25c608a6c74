"""Keep what was learnt about a target and a drafter, in this process and on disk."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.identity import content_hash
from ..files.storage import atomic_write_text
from .knowledge import Knowledge

FORMAT = 4

_KNOWN: dict[Path, Knowledge] = {}
_LOCK = threading.Lock()


def cache_folder() -> Path:
    """Return `$MMSPEC_CACHE`, or `mmspec` in the user's cache folder (`$XDG_CACHE_HOME`, or else `~/.cache`)."""
    own = os.environ.get("MMSPEC_CACHE")
    if own:
        return Path(own).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mmspec"


def file_of(conditions: Mapping[str, Any]) -> Path:
    """Return the file of what was learnt under these conditions."""
    name = content_hash(json.dumps(conditions, sort_keys=True, default=str).encode())
    return cache_folder() / "rounds" / f"{name}.json"


def knowledge_of(conditions: Mapping[str, Any], share: float, cheap: bool = False) -> Knowledge:
    """Return what earlier requests taught under the same conditions: the same object for all requests of this process,
    which begins with what is on disk.

    A file that cannot be read is left out with a warning: it is written anew.

    Args:
        conditions: see `describe`.
        share, cheap: see `RoundCosts`.
    """
    path = file_of(conditions)
    with _LOCK:
        if path not in _KNOWN:
            _KNOWN[path] = _loaded(path, share, cheap)
        return _KNOWN[path]


def keep(conditions: Mapping[str, Any], known: Knowledge) -> None:
    """Write what is known atomically, so that another process never reads half a file. If it cannot be written there is
    a warning, because decoding can continue without it."""
    path = file_of(conditions)
    held = {"format": FORMAT, "conditions": conditions, "knowledge": known.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(held, default=str) + "\n", shared=True)
    except OSError as error:
        warnings.warn(
            f"what tree=auto has learnt cannot be kept in {path}: {error.strerror or error}; it will be learnt again "
            "next time (set MMSPEC_CACHE to a folder that can be written)",
            stacklevel=2,
        )


def forget() -> None:
    """Forget what this process has learnt; what is on disk stays."""
    with _LOCK:
        _KNOWN.clear()


def _loaded(path: Path, share: float, cheap: bool) -> Knowledge:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise ValueError(f"it has format {held['format']!r}, and this version reads {FORMAT}")
        known = Knowledge(share=share, cheap=cheap)
        known.load(held["knowledge"])
        return known
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, MMSpecError) as error:
        warnings.warn(f"what tree=auto has learnt in {path} cannot be read ({error}); learning again", stacklevel=4)
    return Knowledge(share=share, cheap=cheap)
