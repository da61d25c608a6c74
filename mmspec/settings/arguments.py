"""Checks of arguments: a value out of range raises an error that names the owner, the argument and the range."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MMSpecError, did_you_mean, shown

Kind = TypeVar("Kind")


def number(
    owner: object,
    *,
    lowest: float | None = None,
    above: float | None = None,
    highest: float | None = None,
    **argument: float,
) -> float:
    """Return a finite number as a float. It is given as one keyword argument.

    Args:
        owner: object that takes the argument.
        lowest, above, highest: bounds of the range; `above` itself is outside.
        argument: name and value of the argument.

    Raises:
        MMSpecError: for any other value.
    """
    ((name, value),) = argument.items()
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    ok = ok and (lowest is None or value >= lowest) and (above is None or value > above)
    if not ok or (highest is not None and value > highest):
        raise MMSpecError(f"{type(owner).__name__}: {name}={value!r} must be a number {_range(lowest, above, highest)}")
    return float(value)


def whole_number(owner: object, *, lowest: int, **argument: int) -> int:
    """Return a whole number that is at least `lowest`. It is given as one keyword argument.

    Raises:
        MMSpecError: for any other value.
    """
    ((name, value),) = argument.items()
    found = as_int(value)
    if found is None or found < lowest:
        wanted = "a positive integer" if lowest == 1 else f"a whole number, {lowest} or more"
        raise MMSpecError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")
    return found


def instance(owner: object, kind: type[Kind], such_as: str, **argument: Kind) -> Kind:
    """Return an object of a class. It is given as one keyword argument.

    Args:
        owner: object that takes the argument.
        kind: the class.
        such_as: an example, for the error.
        argument: name and value of the argument.

    Raises:
        MMSpecError: for anything else, such as the class itself.
    """
    ((name, value),) = argument.items()
    if not isinstance(value, kind):
        raise MMSpecError(
            f"{type(owner).__name__}: {name}={shown(value)} is no {kind.__name__}; pass an instance, such as {such_as}"
        )
    return value


def one_of(owner: object, names: Sequence[str], **argument: Any) -> Any:
    """Return a name out of several. It is given as one keyword argument.

    Raises:
        MMSpecError: for any other value.
    """
    ((name, value),) = argument.items()
    if value not in names:
        raise MMSpecError(f"{type(owner).__name__}: {name}={shown(value)} is unknown.{did_you_mean(str(value), names)}")
    return value


def _range(lowest: float | None, above: float | None, highest: float | None) -> str:
    if lowest is not None and highest is not None:
        return f"from {lowest:g} to {highest:g}"
    words = [] if lowest is None else [f"of at least {lowest:g}"]
    words += [] if above is None else [f"above {above:g}"]
    words += [] if highest is None else [f"at most {highest:g}"]
    return " and ".join(words)


def positive(owner: object, **values: int) -> None:
    """Refuse constructor arguments that are not whole numbers of 1 or more."""
    for name, value in values.items():
        whole_number(owner, lowest=1, **{name: value})


def as_int(value: Any) -> int | None:
    """Return a whole number of any type (Python's, NumPy's, a tensor with one element) as an int; None for anything
    else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def file_path(value: Any, name: str) -> Path:
    """Return the name of a file as a path.

    Args:
        value: the name.
        name: what an error calls it.

    Raises:
        MMSpecError: for anything else than a text or a path.
    """
    if not isinstance(value, str | Path):
        raise MMSpecError(f"{name}={shown(value, 60)} must be the name of a file")
    return Path(value)


def flags(owner: object, **values: bool) -> None:
    """Refuse constructor arguments that are not true or false.

    Raises:
        MMSpecError: for any other value.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise MMSpecError(f"{type(owner).__name__}: {name}={shown(value)} must be true or false")


def is_number(value: Any) -> bool:
    """Return True for a finite number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def callables(name: str, value: Any) -> list[Callable]:
    """Return functions as a list, given as a list or as a single function."""
    if value is None:
        return []
    items = list(value) if isinstance(value, Iterable) else [value]
    for item in items:
        if not callable(item) or isinstance(item, type):
            raise MMSpecError(
                f"{name} holds {item!r}, which cannot be called with token ids and scores; give a function, or an "
                "instance of a Hugging Face class"
            )
    return items
