"""Tell whether two contents are the same, and in what two sets of settings differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..errors import shown


def content_hash(content: bytes) -> str:
    """Return sixteen characters that change when the content does, for names of files and for descriptions of data."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List what differs between two mappings of settings, for an error.

    Args:
        then: settings that were noted before, from a file that may hold anything.
        now: settings of this run.
        prefix: text before every key, such as `"optimizer."`.

    Returns:
        `key was x, now y` for every value that differs. Keys of nested mappings are joined with dots, and a key that is
        missing on one side counts as None.
    """
    found = []
    for key in dict.fromkeys([*then, *now]):
        one, other = then.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} was {shown(one)}, now {shown(other)}")
    return found
