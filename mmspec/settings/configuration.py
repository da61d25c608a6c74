"""Compose configurations with hydra, with errors of one line; `mmspec.settings.building` builds them.

    config = compose("generate", ["drafter=ngram", "tree=chain", "tree.length=3"])
    target = build(config.target)
    drafter = build(config.drafter, target=target)

A configuration folder holds one YAML file per command and one subfolder per group; the files in it are the options. A
group of one command only is in a subfolder of that command's: `train/recipe`, which `mmspec train` calls `recipe`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from ..embedded import drafter_for
from ..errors import MMSpecError, did_you_mean
from . import options
from .building import build, build_drafter, check_method
from .groups import (
    choose,
    chosen_settings,
    class_names,
    file_lines,
    groups,
    is_command,
    left_to_classes,
    option_files,
    options_of,
    search_folders,
    settings,
)
from .options import shipped_folder

__all__ = [
    "build",
    "build_drafter",
    "check_method",
    "chosen_settings",
    "class_names",
    "compose",
    "groups",
    "is_command",
    "option_files",
    "options_of",
    "search_folders",
    "settings",
    "shipped_folder",
    "typed",
]

Settings = TypeVar("Settings")


def put(config: Any, key: str, text: str) -> None:
    """Set a key of a configuration to a text as it is, such as a path: nothing in it is an interpolation."""
    from omegaconf import OmegaConf

    OmegaConf.update(config, key, text.replace("${", r"\${"))


def compose(name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Any:
    """Compose the configuration of command `name` with hydra overrides such as `drafter=ngram` or `tree.length=3`.

    A value that is the path of an existing file or folder is taken as it is, whatever characters it contains. Any
    mistake in the overrides raises an `MMSpecError` that names the nearest thing that exists.
    """
    folders, found, (chosen, keys) = search_folders(config_dir), groups(config_dir), settings(name)
    choices, values, names, literals = {}, [], {}, {}
    free = {key for key, (default, _) in keys.items() if default == "{}"}
    given = {group: value for group, _, value in (override.partition("=") for override in overrides)}
    choice_of = {group: given.get(group, default) for group, (default, _) in chosen.items()}
    left = left_to_classes(name, choice_of, config_dir)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and not override.startswith("~"):
            raise MMSpecError(
                f"{override!r} is not of the form key=value; text goes to --prompt, and paths to flags that "
                f"`mmspec {name} --help` lists"
            )
        if (options := options_of(name, key, found)) and key not in keys:
            if key.removeprefix(f"{name}/") not in chosen:
                raise MMSpecError(f"mmspec {name} has no group {key!r}.{did_you_mean(key, chosen)}")
            choices[key], names[f"{key}.name"] = choose(key, value, options)
        elif (key.partition(".")[0] in free and "." in key) or any(f"{key}.".startswith(f"{one}.") for one in left):
            values.append(f"++{override}")  # no file has the name
        elif "/" in value and key[:1] not in "+~" and Path(value).expanduser().exists():
            literals[key] = str(Path(value).expanduser())
        else:
            values.append(override)
    literals = {key: path for key, path in names.items() if path is not None} | literals

    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    OmegaConf.register_new_resolver("embedded", _embedded, replace=True)
    try:
        config = _compose(name, [*_pairs(name, choices), *values], folders)
        for key, value in literals.items():
            put(config, key, value)
        OmegaConf.to_container(config, resolve=True)  # finds broken interpolations now, where the error can say so
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = _unknown_key(name, choices, [*values, *literals], folders, left) or " ".join(str(error).split())
        raise MMSpecError(reason) from error
    return config


def _embedded(drafter: str, *, _root_: Any) -> str:
    """Return the name of an embedded drafter for the chosen target, as `${embedded:eagle3}` asks for it."""
    from omegaconf import OmegaConf

    return drafter_for(OmegaConf.select(_root_, "target.name"), drafter)


def _pairs(name: str, choices: dict[str, str]) -> list[str]:
    """Return the choices in hydra's form, with the names of groups from the command's list of defaults."""
    paths = {line["group"]: line["group"] + (line["package"] or "") for line in file_lines(name) if line["group"]}
    listed = paths | {path.removeprefix(f"{name}/"): full for path, full in paths.items()}
    return [f"{listed.get(group, group)}={option}" for group, option in choices.items()]


_COMPOSING = threading.Lock()
"""Lock for hydra's state, which belongs to the whole process."""


def _compose(name: str, overrides: list[str], folders: list[Path]) -> Any:
    """Compose with hydra's own errors, and restore hydra's global state."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import get_gh_backup, restore_gh_from_backup

    # Quoted for hydra's grammar, in which only the quote is special inside quotes.
    extra = ["'file://{}'".format(str(folder).replace("'", r"\'")) for folder in folders[1:]]
    search_path = [f"hydra.searchpath=[{','.join(extra)}]"] if extra else []
    with _COMPOSING:
        before = get_gh_backup()
        GlobalHydra.instance().clear()  # one in use, by a sweep or by the caller's own program, would be in the way
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(folders[0])):
                return compose(name, overrides=overrides + search_path)
        finally:
            restore_gh_from_backup(before)


def _unknown_key(
    name: str, choices: dict[str, str], overrides: Iterable[str], folders: list[Path], left: Collection[str]
) -> str | None:
    """Return an error text about the override that names an unknown key, or None if no override does."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    defaults = settings(name)[0]
    try:
        config = _compose(name, _pairs(name, choices), folders)
    except (HydraException, OmegaConfBaseException, YAMLError):
        return None
    known = _keys(config)
    for override in overrides:
        key = override.partition("=")[0].lstrip("~")
        if override.startswith("+") or key in known:
            continue
        group = key.partition(".")[0]
        files = option_files(name, group, folders[-1] if folders[1:] else None) if group in defaults else {}
        inside = [other for other in {*known, *left} if other.startswith(f"{group}.")]
        able = [f"{group}={option}" for option, file in files.items() if key in options.read(file, group)]
        if group in defaults and (able or not inside):
            has = "has none of this name" if inside else "has no settings"
            hint = f"; choose {' or '.join(able)} for it" if able else ""
            return f"setting {key!r} is unknown: {group}={choices.get(group, defaults[group][0])} {has}{hint}"
        near = inside or {*defaults, *(each for each in known if "." not in each)}
        return f"setting {key!r} is unknown.{did_you_mean(key, near)}"
    return None


def _keys(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of all keys in a configuration, without hydra's own such as `_target_`."""
    from omegaconf import OmegaConf

    found = set()
    plain = cast(dict[str, Any], OmegaConf.to_container(config)) if OmegaConf.is_config(config) else config
    for key, value in plain.items():
        if not str(key).startswith("_"):
            found.add(f"{prefix}{key}")
            if isinstance(value, Mapping):
                found |= _keys(value, f"{prefix}{key}.")
            elif isinstance(value, list):
                inside = {str(number): item for number, item in enumerate(value) if isinstance(item, Mapping)}
                found |= _keys(inside, f"{prefix}{key}.")
    return found


def typed(config: Any, schema: type[Settings]) -> Settings:
    """Return the top-level keys of a configuration as an instance of a dataclass, and check their types."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    result = OmegaConf.structured(schema)
    for key in result:
        try:
            result[key] = config[key]
        except OmegaConfBaseException as error:
            (declared,) = [field.type for field in fields(cast(Any, schema)) if field.name == key]
            wanted = str(declared).replace("| None", "or null")
            raise MMSpecError(f"{key}={config[key]} is not valid: it must be of type {wanted}") from error
    return cast(Settings, OmegaConf.to_object(result))
