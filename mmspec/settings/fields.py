"""Dataclasses of settings: their values are checked against their annotations, and signatures show their fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from inspect import Parameter, Signature, get_annotations, signature
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import MMSpecError, did_you_mean, listed, shown
from .arguments import as_int, is_number

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "settings by name",
    NoneType: "None",
}
"""Kinds of values as errors call them."""

Settings = TypeVar("Settings")


def fits(value: Any, kind: Any) -> bool:
    """Return True if a value is of a kind.

    Args:
        value: the value.
        kind: an annotation: a class, a union, a `Literal`, or a sequence or mapping of such; anything else fits all.
            No truth value is a number, and no number is infinite.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if kind is int:
        return as_int(value) is not None
    if kind is float:
        return is_number(value)
    if not isinstance(origin, type):
        return True
    if issubclass(origin, Sequence) and origin is not str:
        return isinstance(value, list | tuple) and (not inner or all(fits(item, inner[0]) for item in value))
    return isinstance(value, origin)


def in_words(kind: Any) -> str:
    """Return how an error calls a kind of values, such as `a whole number or None`."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(in_words(each) for each in inner)
    if origin is Literal:
        return " or ".join(repr(each) for each in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        return "a list of " + in_words(inner[0]).removeprefix("a ") + "s" if inner else WORDS[list]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return WORDS[dict]
    return WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def check_fields(settings: object) -> None:
    """Refuse values of a dataclass that do not fit their annotations. Whole numbers of other libraries become Python's,
    and sequences lists.

    Raises:
        MMSpecError: with the name, the value and the kinds that fit.
    """
    cls: Any = type(settings)
    for name, kind in kinds_of(cls).items():
        value = getattr(settings, name)
        if not fits(value, kind):
            owner = cls.__name__
            if isinstance(value, str) and (choices := _choices(kind)):
                raise MMSpecError(f"{owner}: {name}={shown(value)} is unknown.{did_you_mean(value, choices)}")
            raise MMSpecError(f"{owner}: {name}={shown(value)} must be {in_words(kind)}")
        whole = as_int(value)
        if whole is not None:
            value = whole
        elif isinstance(value, list | tuple):
            value = [item if as_int(item) is None else as_int(item) for item in value]
        object.__setattr__(settings, name, value)


def settings_from(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make a dataclass of settings from names and values.

    Raises:
        MMSpecError: for a name that does not exist, or a value that does not fit.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # any dataclass
    if unknown := [name for name in values if name not in known]:
        raise MMSpecError(f"there is no setting {shown(unknown[0])}.{did_you_mean(unknown[0], known)}")
    return cls(**values)


@contextmanager
def in_name_of(owner: str, settings: type) -> Iterator[None]:
    """Let errors about a dataclass of settings speak in the name of the class whose settings they are."""
    try:
        yield
    except MMSpecError as error:
        raise MMSpecError(f"{owner}: {str(error).removeprefix(f'{settings.__name__}: ')}") from error.__cause__


def expect_dataclass(cls: type) -> None:
    """Refuse a class of settings whose annotations are no fields, because only its base is a dataclass.

    Raises:
        TypeError: with the line that is missing.
    """
    if "__dataclass_fields__" not in vars(cls) and (names := get_annotations(cls)):
        raise TypeError(
            f"{cls.__name__}: {listed(names)} are no fields: write @dataclass(frozen=True, kw_only=True) above it"
        )


def signature_with(cls: type, root: type, settings: type) -> Signature:
    """Return the signature of a class with the fields of its settings in place of `**keywords`.

    Args:
        cls: the class. Constructors between it and `root` may pass keywords on; what they pass them on to is shown.
        root: the base class whose constructor makes the settings of its keywords.
        settings: the dataclass of settings.
    """
    found: dict[str, Parameter] = {}
    constructors = [base for base in cls.__mro__ if "__init__" in vars(base) and issubclass(base, root)]
    for base in constructors:
        own = list(signature(vars(base)["__init__"]).parameters.values())[1:]
        for each in own:
            kind = each.kind if base is constructors[0] or each.name == "target" else Parameter.KEYWORD_ONLY
            if each.kind is not Parameter.VAR_KEYWORD:
                found.setdefault(each.name, each.replace(kind=kind))
        if not any(each.kind is Parameter.VAR_KEYWORD for each in own):
            return Signature(list(found.values()))
    kinds = kinds_of(settings)
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        shown_as = Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kinds[field.name])
        found.setdefault(field.name, shown_as)
    return Signature(sorted(found.values(), key=lambda each: each.kind))


def _choices(kind: Any) -> list[str]:
    inner = get_args(kind)
    return list(inner) if get_origin(kind) is Literal else [name for each in inner for name in _choices(each)]


@cache
def kinds_of(cls: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their annotations."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}
