"""Groups of options and their files, for `--help`, the Tab key and composing. Nothing is composed here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import MMSpecError, did_you_mean
from . import options
from .options import OptionSetting, shipped_folder

# Groups whose option may also be a folder or a hub id, which stands for the option `pretrained` with that name.
FOLDER_GROUPS = ("target", "drafter")
ACCELERATE = "accelerate"
"""Folder of files that `accelerate launch` reads, and no command of mmspec."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# A line of a command's file, `key: default # comment`, or of its list of defaults, `  - group: default # comment`.
LINE = re.compile(
    r"(?:(?P<key>\w+)|  - /?(?P<group>[\w/]+)(?P<package>@[\w.]+)?): (?P<default>.*?)(?:\s+# (?P<comment>.*))?"
)


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
            if name.parts[0] == ACCELERATE:
                continue
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
            choices[group] = choose(group, value, options_of(name, group, groups(config_dir)))[0]
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
    for line in file_lines(name):
        target, key = (keys, line["key"]) if line["key"] else (chosen, line["group"].removeprefix(f"{name}/"))
        target[key] = (line["default"], line["comment"] or "")
    return chosen, keys


def is_command(name: str) -> bool:
    """Return True if a command has a configuration."""
    return (shipped_folder() / f"{name}.yaml").is_file()


def file_lines(name: str) -> list[re.Match[str]]:
    """Return the lines of a command's file that have a key or a group."""
    text = (shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return [match for line in text.splitlines() if (match := LINE.fullmatch(line))]


def left_to_classes(name: str, choices: Mapping[str, str], config_dir: str | Path | None) -> set[str]:
    """Return the settings of the chosen options that their files leave to the classes' own defaults."""
    files = {group: option_files(name, group, config_dir).get(option) for group, option in choices.items()}
    found = (setting for group, file in files.items() if file for setting in options.read(file, group).values())
    return {setting.key for setting in found if not setting.written}


def choose(group: str, value: str, options: Mapping[str, str]) -> tuple[str, str | None]:
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
    if group == "drafter" and value in option_files("train", "train/recipe"):
        way = (
            f" There is a recipe of this name: mmspec train recipe={value} output=FOLDER trains one, and "
            "drafter=FOLDER/best drafts with it."
        )
    raise MMSpecError(f"{group} {value!r} is unknown.{did_you_mean(value, options)}{way}")
