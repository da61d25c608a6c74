"""Find and compose configurations with hydra, with errors of one line; `mmspec.settings.building` builds them.

    config = compose("generate", ["drafter=ngram", "tree=chain", "tree.length=3"])
    target = build(config.target)
    drafter = build(config.drafter, target=target)

A configuration folder holds one YAML file per command and one subfolder per group; the files in it are the options. A
group of one command only is in a subfolder of that command's: `train/recipe`, which `mmspec train` calls `recipe`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import MMSpecError, did_you_mean
from . import options
from .building import build, build_drafter, check_method
from .options import OptionSetting, shipped_folder

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

# Groups whose option may also be a folder or a hub id, which stands for the option `pretrained` with that name.
FOLDER_GROUPS = ("target", "drafter")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# A line of a command's file, `key: default # comment`, or of its list of defaults, `  - group: default # comment`.
LINE = re.compile(
    r"(?:(?P<key>\w+)|  - /?(?P<group>[\w/]+)(?P<package>@[\w.]+)?): (?P<default>.*?)(?:\s+# (?P<comment>.*))?"
)

Settings = TypeVar("Settings")


def search_folders(config_dir: str | Path | None = None) -> list[Path]:
    """Return the folders to search: mmspec's own, then the user's, which may add options but not replace any."""
    folders = [shipped_folder()]
    if config_dir is not None:
        own = Path(config_dir).expanduser().resolve()
        if not own.is_dir():
            raise MMSpecError(f"--config-dir {config_dir}: there is no such folder")
        for file in sorted(own.rglob("*.yaml")):
            # hydra would silently prefer the shipped file, so that an edit of the user's would have no effect.
            if (folders[0] / file.relative_to(own)).exists():
                name = file.relative_to(own).as_posix()
                raise MMSpecError(
                    f"--config-dir {config_dir}: {name} exists in mmspec too, so it would be ignored: rename it"
                )
        folders.append(own)
    return folders


def groups(config_dir: str | Path | None = None) -> dict[str, dict[str, str]]:
    """Return the groups of options: `{group: {option: its first line of comment}}`, groups by their paths."""
    found: dict[str, dict[str, str]] = {}
    for folder in search_folders(config_dir):
        for file in sorted(folder.glob("*/**/*.yaml")):
            name = file.relative_to(folder).with_suffix("")
            found.setdefault(name.parent.as_posix(), {})[name.name] = _summary(file)
    return found


def options_of(name: str, group: str, found: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the options of the group that command `name` calls `group`, also those in subfolders: `{option: comment}`.

    Args:
        name: name of the command.
        group: name of the group as it is typed, `recipe` for `train/recipe`.
        found: result of `groups`.
    """
    path = f"{name}/{group}" if f"{name}/{group}" in found else group
    below = {other.removeprefix(path).lstrip("/"): other for other in found if f"{other}/".startswith(f"{path}/")}
    return {
        f"{folder}/{option}" if folder else option: comment
        for folder, other in below.items()
        for option, comment in found[other].items()
    }


def chosen_settings(
    name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> dict[tuple[str, str], dict[str, OptionSetting]]:
    """Return the settings inside the options that a command line chooses: `{(group, option): {key: setting}}`.

    Args:
        name: name of the command.
        overrides: overrides that the user typed; choices of groups count, everything else is ignored.

    Raises:
        MMSpecError: for an option that does not exist.
    """
    choices = {group: default for group, (default, _) in settings(name)[0].items()}
    for override in overrides:
        group, equals, value = override.partition("=")
        if equals and group in choices:
            choices[group] = _choose(group, value, options_of(name, group, groups(config_dir)))[0]
    return {
        (group, option): options.settings_of(option_files(name, group, config_dir), option, group)
        for group, option in choices.items()
    }


def option_files(name: str, group: str, config_dir: str | Path | None = None) -> dict[str, Path]:
    """Return the files of the options of the group that command `name` calls `group`."""
    found: dict[str, Path] = {}
    for folder in search_folders(config_dir):
        inside = folder / name / group if (folder / name / group).is_dir() else folder / group
        found |= {file.relative_to(inside).with_suffix("").as_posix(): file for file in sorted(inside.rglob("*.yaml"))}
    return found


def class_names(name: str, config_dir: str | Path | None = None) -> dict[str, str]:
    """Return the classes that the options of a command build, as `{"DynamicTree": "tree=dynamic"}`."""
    if not is_command(name):
        return {}
    found: dict[str, str] = {}
    for group in settings(name)[0]:
        found |= options.class_names(option_files(name, group, config_dir), group)
    return found


def _summary(file: Path) -> str:
    """Return a file's first comment that is not a directive such as `# @package _global_`."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
    return ""


def settings(name: str) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Return the groups and the keys of a command's configuration, each as `{name: (default, comment)}`.

    Groups have the name that the user types, `recipe` for `train/recipe`.
    """
    chosen: dict[str, tuple[str, str]] = {}
    keys: dict[str, tuple[str, str]] = {}
    for line in _lines(name):
        target, key = (keys, line["key"]) if line["key"] else (chosen, line["group"].removeprefix(f"{name}/"))
        target[key] = (line["default"], line["comment"] or "")
    return chosen, keys


def is_command(name: str) -> bool:
    """Return True if a command has a configuration."""
    return (shipped_folder() / f"{name}.yaml").is_file()


def _lines(name: str) -> list[re.Match[str]]:
    text = (shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return [match for line in text.splitlines() if (match := LINE.fullmatch(line))]


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
    left = _left_to_classes(name, choice_of, config_dir)
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
            choices[key], names[f"{key}.name"] = _choose(key, value, options)
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

    try:
        config = _compose(name, [*_pairs(name, choices), *values], folders)
        for key, value in literals.items():
            put(config, key, value)
        OmegaConf.to_container(config, resolve=True)  # finds broken interpolations now, where the error can say so
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = _unknown_key(name, choices, [*values, *literals], folders, left) or " ".join(str(error).split())
        raise MMSpecError(reason) from error
    return config


def _left_to_classes(name: str, choices: Mapping[str, str], config_dir: str | Path | None) -> set[str]:
    """Return the settings of the chosen options that their files leave to the classes' own defaults."""
    files = {group: option_files(name, group, config_dir).get(option) for group, option in choices.items()}
    found = (setting for group, file in files.items() if file for setting in options.read(file, group).values())
    return {setting.key for setting in found if not setting.written}


def _choose(group: str, value: str, options: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the option that `group=value` chooses, and the value itself where it is a folder or a hub id."""
    if value in options:
        return value, None
    if group in FOLDER_GROUPS:
        path = Path(value).expanduser()
        if path.is_dir():
            return "pretrained", str(path)
        if HUB_ID.fullmatch(value) and not value.startswith((".", "~")):
            return "pretrained", value
        if "/" in value:
            raise MMSpecError(f"{group}={value}: there is no such folder, and a hub id looks like ORGANISATION/MODEL")
    way = " Or name a folder, or a hub id ORGANISATION/MODEL." if group in FOLDER_GROUPS else ""
    raise MMSpecError(f"{group} {value!r} is unknown.{did_you_mean(value, options)}{way}")


def _pairs(name: str, choices: dict[str, str]) -> list[str]:
    """Return the choices in hydra's form, with the names of groups from the command's list of defaults."""
    paths = {line["group"]: line["group"] + (line["package"] or "") for line in _lines(name) if line["group"]}
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
