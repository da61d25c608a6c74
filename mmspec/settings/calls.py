"""Errors for calls of the public functions with names of arguments that do not exist."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, ParamSpec, Self, TypeVar

from ..errors import MMSpecError, did_you_mean, shown

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that have a name for the caller."""

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
        known = {p.name for parameters in signatures for p in parameters.values() if p.kind in NAMED} - {"self"}
        known.update(others)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            expect_known(name, kwargs, known)
            return function(*args, **kwargs)

        return call

    return decorate


def arguments_of(cls: type, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return what a constructor was given by the names of its parameters.

    Args:
        cls: the class.
        arguments, named: as they were given.

    Raises:
        MMSpecError: for the name of an argument that it does not take, and for more values than it takes.
    """
    signature = inspect.signature(cls)
    known = signature.parameters
    if not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        expect_known(cls.__name__, named, known)
    try:
        return signature.bind_partial(*arguments, **named).arguments
    except TypeError as error:  # too many, or one twice
        raise MMSpecError(f"{cls.__name__}: {error}; its arguments are {', '.join(known)}") from None


def expect_known(name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of arguments that are not among the known ones.

    Args:
        name: what they were given to, as users call it.
        given: the names.
        known: those that there are.

    Raises:
        MMSpecError: naming the first that is unknown, and the nearest that is not.
    """
    for one in given:
        if one not in known:
            raise MMSpecError(f"{name} has no argument {shown(one)}.{did_you_mean(one, known)}")


def expect_all(cls: type, given: Collection[str]) -> None:
    """Refuse a call of a constructor that leaves out arguments which have no default.

    Args:
        cls: the class.
        given: names of the arguments that were given.

    Raises:
        MMSpecError: naming those that are missing.
    """
    known = inspect.signature(cls).parameters
    left = [name for name, each in known.items() if each.default is each.empty and each.kind in NAMED]
    if missing := [name for name in left if name not in given]:
        raise MMSpecError(f"{cls.__name__}: give {' and '.join(missing)} too; its arguments are {', '.join(known)}")


class Named:
    """A class whose constructors refuse arguments that there are not in one line, whatever they are. To be named behind
    the bases that have constructors of their own."""

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Look at the arguments; copies are made without any."""
        if arguments or named:
            given = arguments_of(cls, arguments, named)
            cls.expect_parts(given)
            expect_all(cls, given)
        return super().__new__(cls)

    @classmethod
    def expect_parts(cls, given: dict[str, Any]) -> None:
        """Refuse arguments that are not what their names say.

        Args:
            given: the arguments by name.
        """
