"""Words of a command's errors: the arguments of a class are renamed to the options that the user typed.

A class raises `"AutoTree: margin=-1 must be a number of at least 0"`, which is right in Python. On the command line the
same setting is `tree.margin`, and the class is `tree=auto`. The place of a class in the configuration and the files of
options give the names; this module names no class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

CONSTANTS = {"True": "true", "False": "false", "None": "null"}
ASSIGNED = re.compile(rf"\b([\w.]+)=({'|'.join(CONSTANTS)})\b")


def in_options(message: str, classes: Mapping[str, str], constants: bool = True) -> str:
    """Replace the names of classes in a message by options.

    Args:
        message: text of an error.
        classes: names of classes with their options, `{"AutoTree": "tree=auto"}`, see
            `mmspec.settings.options.class_names`.
        constants: True if Python's True, False and None are replaced by the command line's words too.
    """
    for name, option in classes.items():
        group = option.partition("=")[0]
        word = rf"(?<![\w./'\"\\-])(?:mmspec\.[\w.]*\.)?{name}(?![\w./'\"\\-])"
        message = re.sub(rf"{word}: (?=\w+=)", f"{group}.", message)
        message = re.sub(rf"{word}\((\w+)=([^()]*)\)", rf"{group}.\1=\2", message)
        message = re.sub(rf"{word}(?:\([\w, .]*\))?", option, message)
    if not constants:
        return message
    return ASSIGNED.sub(lambda match: f"{match[1]}={CONSTANTS[match[2]]}", message)


def at_place(message: str, place: str, values: Mapping[str, Any]) -> str:
    """Replace the settings that a message names by their full keys.

    Args:
        message: text of an error that was raised while the class of a configuration was built.
        place: place of the class in the configuration, such as `tree`; empty for a class that stands alone, which keeps
            Python's names.
        values: settings of the class, including `_target_` and those of classes inside, before interpolations are
            resolved.
    """
    if not place:
        return message
    for name, where, settings in _places(values, place):
        named = re.match(rf"{name}: (?=\w+[= ])", message)
        if named or where == place:
            message = message.removeprefix(named[0]) if named else message
            for key in settings:
                message = re.sub(rf"(?<![\w.]){key}=", f"{where}.{key}=", message)
        if named:
            break
    return message


def _places(values: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the classes inside a configuration before the one around them: `(name, place, its own settings)`."""
    for key, value in values.items():
        for number, item in enumerate(value) if isinstance(value, list) else [("", value)]:
            if isinstance(item, Mapping):
                yield from _places(item, f"{place}.{key}.{number}".rstrip("."))
    if "_target_" in values:
        own = [key for key, value in values.items() if key != "_target_" and not str(value).startswith("${")]
        yield str(values["_target_"]).rpartition(".")[2], place, own
