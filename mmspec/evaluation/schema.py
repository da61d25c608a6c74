"""Checks what is in the files of a bundle. They may come from anywhere, so nothing in them is taken as it is.

A shape is written as the value would be: a type, a list with the shape of its elements, a mapping with the shape of
each key (`?` behind a key that may be missing, `ANY` for every other key), a tuple of alternatives, or None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import MMSpecError

ANY = "*"
LARGEST = 2**53
"""Largest number that is taken: up to here a float holds every integer."""


class Count(int):
    """In a shape: an integer that is not negative."""


class Amount(float):
    """In a shape: a number that is not negative."""


FAILURE = {"reason": str, "traceback?": (str, None), "final?": bool}
SIDE = {
    "label": str,
    "engine": str,
    "settings": {ANY: object},
    "drafter": (str, None),
    "tree": (str, None),
    "budget": (Count, None),
    "lossless": bool,
    "failed?": (FAILURE, None),
    ANY: object,
}
MANIFEST = {
    "format": Count,
    "mmspec": str,
    "status": str,
    "error": (str, None),
    "started": str,
    "git": {"revision?": (str, None), "dirty?": (bool, None), ANY: object},
    "versions": {ANY: str},
    "machine": {"cpu": str, "cpus": (Count, None), "threads": Count, "device": str, ANY: object},
    "target": {"name": str, "fingerprint": str, "dtype": str, ANY: object},
    "sampling": {ANY: (float, bool, None)},
    "max_new_tokens": Count,
    "batch": Count,
    "repeats": Count,
    "seed": int,
    "requests": Count,
    "skipped": [{"id": str, "reason": str}],
    "sides": [SIDE],
    "written?": {"blocks": Count, "requests": Count, "rounds": Count},
    "overrides?": ([str], None),
    "config_dir?": (str, None),
    ANY: object,
}
PLACE = {"request": Count, "turn": Count, "repeat": Count, "side": str}
DIVERGENCE = {"row": Count, "position": Count, "margin": (float, None), "tie": bool, ANY: object}
REQUEST = PLACE | {
    "ids": [str],
    "task": str,
    "wall": Amount,
    "seconds": {ANY: Amount},
    "prompt_tokens": [Count],
    "new_tokens": [Count],
    "first_tokens": [Count],
    "passes": Count,
    "same": (bool, None),
    "divergence": ([DIVERGENCE], None),
    "repeatable?": bool,
    "token_ids?": [[Count]],
    "text?": [(str, None)],
    "retokenized?": [(Count, None)],
    "metric?": (str, None),
    "accuracy?": ([({"points": Amount, "of": Amount}, None)], None),
    "similarity?": ([Amount], None),
    ANY: object,
}
ROUND = PLACE | {
    "drafted": [Count],
    "accepted": [Count],
    "emitted": [Count],
    "depth": Count,
    "seconds": {ANY: Amount},
    ANY: object,
}

MISSING = object()
NAMES = {str: "a text", bool: "true or false", int: "an integer", float: "a number", None: "null"}
NAMES |= {Count: "an integer from 0", Amount: "a number from 0"}


def require(value: Any, shape: Any, where: str) -> None:
    """Check a value against a shape.

    Args:
        value: from a file.
        shape: see the head of this file.
        where: it stands, for the error.

    Raises:
        MMSpecError: with the place and the value, if it has another shape.
    """
    place = _wrong(value, shape)
    if place is not None:
        path, found, wanted = place
        path = path.lstrip(".")
        raise MMSpecError(
            f"{where}: {f'{path[:80]} is' if path else 'it holds'} {_brief(found)} and must be {wanted}; the file was "
            "changed, or another program wrote it"
        )


def _wrong(value: Any, shape: Any) -> tuple[str, Any, str] | None:
    """Return the first place where a value has another shape: its path, what is there, and what should be."""
    if shape is object:
        return None
    if isinstance(shape, tuple):
        each = [_wrong(value, one) for one in shape]
        deep = next((one for one in each if one is not None and one[0]), None)
        return None if None in each else deep or ("", value, " or ".join(_name(one) for one in shape))
    if isinstance(shape, list):
        if not isinstance(value, list):
            return "", value, _name(shape)
        return next((_under(f"[{i}]", found) for i, one in enumerate(value) if (found := _wrong(one, shape[0]))), None)
    if isinstance(shape, dict):
        return _wrong_mapping(value, shape)
    return None if _is(value, shape) else ("", value, _name(shape))


def _wrong_mapping(value: Any, shape: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    if not isinstance(value, dict):
        return "", value, _name(shape)
    for key, of_key in shape.items():
        name = key.removesuffix("?")
        if key == ANY or (name != key and name not in value):
            continue
        if name not in value:
            return f".{name}", MISSING, _name(of_key)
        if (found := _wrong(value[name], of_key)) is not None:
            return _under(f".{name}", found)
    if ANY in shape:
        for key, one in value.items():
            if key not in shape and f"{key}?" not in shape and (found := _wrong(one, shape[ANY])) is not None:
                return _under(f".{key}", found)
    return None


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind in (str, bool):
        return isinstance(value, kind)
    numbers = int if kind in (int, Count) else (int, float)
    if not isinstance(value, numbers) or isinstance(value, bool):
        return False
    small = -LARGEST <= value <= LARGEST and math.isfinite(value)
    return small and (value >= 0 or kind not in (Count, Amount))


def _under(name: str, found: tuple[str, Any, str]) -> tuple[str, Any, str]:
    return (f"{name}{found[0]}", *found[1:])


def _name(shape: Any) -> str:
    if isinstance(shape, dict | list):
        return "a mapping" if isinstance(shape, dict) else "a list"
    return NAMES.get(shape, "a value")


def _brief(value: Any) -> str:
    """Return a value as an error shows it."""
    if value is MISSING:
        return "missing"
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
