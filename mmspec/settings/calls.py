"""Errors for calls of the public functions with names of arguments that do not exist."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from ..errors import MMSpecError, did_you_mean, shown

P = ParamSpec("P")
R = TypeVar("R")


def named_arguments(
    name: str, like: Callable | None = None, others: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that a call with an unknown argument raises an error that lists the arguments it has.

    Args:
        name: name of the function as users call it.
        like: function whose arguments it also takes, because it passes them on.
        others: names of further arguments.

    Raises:
        MMSpecError: when the function is called with a name that it does not take.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signatures = [inspect.signature(one).parameters for one in (function, like) if one is not None]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = {p.name for parameters in signatures for p in parameters.values() if p.kind in named} - {"self"}
        known.update(others)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for given in kwargs:
                if given not in known:
                    raise MMSpecError(f"{name} has no argument {shown(given)}.{did_you_mean(given, known)}")
            return function(*args, **kwargs)

        return call

    return decorate
