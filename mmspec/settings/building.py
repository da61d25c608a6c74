"""Builds objects from configurations: calls the class that `_target_` names with the settings beside it."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Mapping
from typing import Any, cast

from ..errors import MMSpecError, did_you_mean
from .wording import at_place


def build_drafter(config: Any, target: Any) -> Any:
    """Build the drafter of a configuration with its compressor; return None if there is none.

    Raises:
        MMSpecError: for a compressor without a drafter, or one that does not fit the drafter.
    """
    check_method(config)
    drafter, compressor = build(config.drafter, target=target), build(config.compressor)
    return drafter if compressor is None else drafter.with_compressor(compressor)


def check_method(config: Any) -> None:
    """Refuse groups of a configuration that do not fit together, before anything is loaded.

    Raises:
        MMSpecError: for a compressor or a tree without a drafter.
    """
    for group, does in {"compressor": "changes what a drafter sees", "tree": "shapes what a drafter proposes"}.items():
        if config.drafter is None and config.get(group) is not None:
            raise MMSpecError(f"{group}= {does}, but drafter=none: choose a drafter, or leave {group}=default")


def build(node: Any, **arguments: Any) -> Any:
    """Call the `_target_` of a configuration with the settings beside it and `arguments`, which win; None builds None.

    The call is made here and not by `hydra.utils.instantiate`, which copies what it is given into a configuration and
    wraps every error. Hydra instantiates the settings, so they may hold `_target_` themselves.
    """
    if node is None:
        return None
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    place = node._get_full_key("") if OmegaConf.is_config(node) else ""
    written, values = (cast(dict[str, Any], OmegaConf.to_container(node, resolve=each)) for each in (False, True))
    path = values.pop("_target_", None)
    if path is None:
        raise MMSpecError(f"a configuration has no _target_ that names a class: {values}")
    values = {key: value for key, value in values.items() if key not in arguments}
    if missing := [f"{place}.{key}".lstrip(".") for key, value in values.items() if value == "???"]:
        raise MMSpecError(f"{place or path} needs a value for {', '.join(missing)}")
    factory, base = _named(path), _base_of(place)
    wrong: MMSpecError
    cause: BaseException | None
    # A function is judged by what it returns, but none that is built into Python returns any of these.
    if base and (inspect.isbuiltin(factory) or (isinstance(factory, type) and not issubclass(factory, base))):
        raise MMSpecError(f"{place}._target_={path} is no {base.__name__}, and does not build one")
    try:
        _check_inside(values, place)
        values = instantiate(values, _convert_="all") | arguments
        _check_settings(factory, path, place, values)
        built = factory(**values)
        if base and not isinstance(built, base):
            raise MMSpecError(f"{place}._target_={path} made a {type(built).__name__}, which is no {base.__name__}")
        return built
    except InstantiationException as error:
        if not isinstance(error.__cause__, MMSpecError):
            raise MMSpecError(f"{path}: {' '.join(str(error).split())}") from error
        wrong, cause = error.__cause__, error
    except MMSpecError as error:
        wrong, cause = error, error.__cause__
    wrong.args = (at_place(str(wrong), place, written),)
    raise wrong from cause


def _base_of(place: str) -> type | None:
    """Return the class that is expected at a place of a configuration; None if any is allowed."""
    group = place.rpartition(".")[2]
    if group == "drafter":
        from ..drafters import Drafter

        return Drafter
    if group == "tree":
        from ..trees import TreeBuilder

        return TreeBuilder
    if group == "verifier":
        from ..verifiers import Verifier

        return Verifier
    if group == "compressor":
        from ..compressors import VisualCompressor

        return VisualCompressor
    return None


def _named(path: str) -> Any:
    """Return what a `_target_` names.

    Raises:
        MMSpecError: if there is nothing of the name.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        module, _, name = path.rpartition(".")
        hint = did_you_mean(name, getattr(sys.modules.get(module), "__all__", ()))  # imported by now, if there is one
        raise MMSpecError(f"_target_ {path!r} cannot be imported: {error}{'.' if hint else ''}{hint}") from error


def _check_inside(values: Any, place: str) -> None:
    """Refuse classes that do not exist, and settings that they do not take, anywhere inside the settings of a class."""
    inside = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inside:
        here = f"{place}.{key}".lstrip(".")
        _check_inside(value, here)
        if isinstance(value, Mapping) and isinstance(path := value.get("_target_"), str):
            given = {name: each for name, each in value.items() if name != "_target_"}
            if not any(name.startswith("_") for name in given):  # hydra's own, which change the call
                _check_settings(_named(path), path, here, given)


def _check_settings(factory: Any, path: str, place: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that a class or function does not take, and settings that are missing."""
    parameters = inspect.signature(factory).parameters
    unknown = [key for key in values if key not in parameters]
    if unknown and place and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise MMSpecError(f"setting '{place}.{unknown[0]}' is unknown.{did_you_mean(unknown[0], parameters)}")
    try:
        inspect.signature(factory).bind(**values)
    except TypeError as error:
        raise MMSpecError(f"{path} does not take these settings: {error}") from error
