"""Calls of the public functions: names of arguments that do not exist, and things given in place of others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from .errors import MMSpecError, did_you_mean, shown

P = ParamSpec("P")
R = TypeVar("R")


def named_arguments(
    name: str, like: Callable | None = None, others: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function say which arguments it has when it is called with one that it has not.

    Args:
        name: of the function, as users call it.
        like: whose arguments it takes, where it hands them on.
        others: further ones.

    Raises:
        MMSpecError: when the function is called, for a name that it does not take.
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


def expect_target(given: Any, call: str) -> None:
    """Refuse what is no `Target`, and say how to come by one.

    Args:
        given: in its place.
        call: to which it was given, such as `"mmspec.generate"`.
    """
    from .drafters import Drafter
    from .target import Target

    if isinstance(given, Target):
        return
    if isinstance(given, str):
        raise MMSpecError(f"{call} takes a Target, and {shown(given)} is a name: mmspec.load_target({shown(given)})")
    kind = type(given).__name__
    if isinstance(given, Drafter):
        raise MMSpecError(f"{call} takes a Target, and this is a drafter, a {kind}: give its target first")
    way = "mmspec.Target(model, processor)" if hasattr(given, "generate") else "mmspec.load_target(name)"
    raise MMSpecError(f"{call} takes a Target, and this is a {kind}: make one with {way}")


def expect_drafter(given: Any, call: str) -> None:
    """The same for a `Drafter`."""
    from .drafters import Drafter

    if isinstance(given, Drafter):
        return
    if hasattr(given, "generate"):
        way = "mmspec.drafters.DraftModelDrafter(target, model) drafts with it"
        raise MMSpecError(f"{call}: drafter is a {type(given).__name__}, which is no Drafter: {way}")
    raise MMSpecError(f"{call}: drafter={shown(given)} is no Drafter; load one with mmspec.load_drafter(name, target)")
