"""Code that a file may name: mmspec's own, what the caller allows, and classes that this process has imported already.

A configuration that was downloaded names the class of a drafter or the parts of a benchmark. To import what it names is
to run it, so a name alone is never enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ..errors import MMSpecError, shown
from .options import shipped_folder

PATH = re.compile(r"([^\W\d]\w*)(\.[^\W\d]\w*)+")
TARGET = re.compile(r"^\s*(?:- )?_target_: *([\w.]+)", re.MULTILINE)

PERMISSIONS = ("trust_remote_code", "trusted", "classes")
"""Settings by which a caller allows code to be run. No file may set them."""

Kind = TypeVar("Kind")


def named_class(
    path: Any,
    base: type[Kind],
    source: str,
    classes: Iterable[type] = (),
    trusted: str | Collection[str] = (),
    folder: Path | None = None,
) -> type[Kind]:
    """Return the class that a file names, if it is allowed.

    It may be one of `classes`; one that this process has imported already; one from the package of `base`; or one from
    a module that the caller trusts. Nothing else is imported, and nothing at all from the file's own folder.

    Args:
        path: path of the class in the file, such as `mmspec.drafters.eagle.EagleDrafter`.
        base: required base class.
        source: the file, as an error names it.
        classes: the caller's own classes. A class matches if the path is its own, or ends with its name.
        trusted: the caller's own modules and packages, whose classes may be imported.
        folder: folder of the file. A module in it or beside it is not imported, even if the caller trusts its name.

    Raises:
        MMSpecError: for a class that may not be named, cannot be imported, or is not of the expected kind.
    """
    kind, named = base.__name__, f"{source} names the class {shown(path)}"
    cls = _of_caller(str(path), classes)
    if cls is None:
        if not (isinstance(path, str) and len(path) < 500 and PATH.fullmatch(path)):
            raise MMSpecError(
                f"{named}, which is no importable path of a {kind} such as my_package.Mine; write one, or pass classes"
            )
        cls = _already_here(path)
    if cls is None:
        module, name = path.rpartition(".")[::2]
        trusted = [trusted] if isinstance(trusted, str) else trusted
        if not _within(module, [base.__module__.rpartition(".")[0], *trusted]):
            raise MMSpecError(
                f"{named}, and to import it could run anybody's code: it is neither mmspec's own nor imported already; "
                f"if you trust the module, say so with trusted=[{module!r}] (drafter.trusted=[{module}] on the command "
                f"line), or pass classes=[{name}]"
            )
        if folder is not None and module.partition(".")[0] not in sys.modules and _is_near(module, folder):
            raise MMSpecError(
                f"{named}, whose module lies in or beside {str(folder)!r}, from where nothing is imported: import it "
                f"yourself and pass classes=[{name}], or move the folder away from it"
            )
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MMSpecError(f"{named}, which is not importable: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise MMSpecError(f"{named}, which is no {kind}")
    return cls


def unshipped(node: Any, trusted: str | Collection[str] = ()) -> list[str]:
    """Return the parts of a configuration from elsewhere that may not be built: an empty list if it may be built.

    Classes and functions (`_target_`, at any depth) must be those of mmspec's own options, or from modules that the
    caller trusts; and the configuration may not allow code itself (`PERMISSIONS`).

    Args:
        node: plain values, or an OmegaConf configuration.
        trusted: the caller's own modules and packages.
    """
    trusted = [trusted] if isinstance(trusted, str) else list(trusted)
    found = []
    for key, value in _settings(node):
        if key == "_target_":
            text = str(value)
            if text not in shipped_targets() and not _within(text.rpartition(".")[0], trusted):
                found.append(text)
        elif key in PERMISSIONS and value:
            found.append(f"{key}={value}")
    return list(dict.fromkeys(found))


def permission(*parts: object) -> str:
    """Return the text to add to a command line, so that it loads a drafter and a compressor of these classes again."""
    modules = {type(part).__module__ for part in parts if part is not None}
    others = sorted(module for module in modules if not _within(module, ["mmspec"]))
    return f"drafter.trusted=[{','.join(others)}]" if others else ""


@cache
def shipped_targets() -> frozenset[str]:
    """Return the `_target_`s in mmspec's own configurations."""
    files = shipped_folder().rglob("*.yaml")
    return frozenset(name for file in files for name in TARGET.findall(file.read_text(encoding="utf-8")))


def _settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys and values of nested mappings and sequences."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from _settings(value)
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        for value in node:
            yield from _settings(value)


def _of_caller(path: str, classes: Iterable[type]) -> type | None:
    """Return the caller's class that a path names; None if there is none. A class of a script is saved as
    `__main__.Name`."""
    classes = list(classes)
    exact = [cls for cls in classes if f"{cls.__module__}.{cls.__qualname__}" == path]
    return next(iter(exact or [cls for cls in classes if cls.__name__ == path.rpartition(".")[2]]), None)


def _already_here(path: str) -> Any:
    """Return the object that a path names in the imported modules; None if there is none. Runs no code."""
    names = path.split(".")
    for count in range(len(names) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(names[:count]))
        if isinstance(found, ModuleType):
            for name in names[count:]:
                found = vars(found).get(name) if isinstance(found, ModuleType | type) else None
            return found
    return None


def _within(module: str, packages: Iterable[str]) -> bool:
    """Return True if a module is one of these packages or inside one; `__main__` of a package is a program and is
    not."""
    inside = any(module == package or module.startswith(f"{package}.") for package in packages if package)
    return inside and "__main__" not in module.split(".")


def _is_near(module: str, folder: Path) -> bool:
    """Return True if a module that is not imported yet would come from a folder or from the folder around it."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    folder = folder.absolute()
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ())]
    for place in (way(Path(place)) for place in places for way in (Path.absolute, Path.resolve)):
        for home in {folder, folder.resolve()}:
            # Of a package both its folder and its file are looked at.
            if home in (place, *place.parents) or home.parent in (place.parent, place):
                return True
            if place.name == "__init__.py" and place.parent.parent == home.parent:
                return True
    return False
