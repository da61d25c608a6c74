"""Contents of the files of options: their settings with defaults and comments, and the classes that they name.

They are read from the YAML text, without hydra, so that `--help` and the Tab key answer at once. The comment at the end
of its line describes a setting. If an option has none, the setting of the same class in another file of its group
describes it; so what several options share is described once. Classes with a dataclass of settings have all its fields,
those that a file leaves out too, and the dataclass describes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ..errors import MMSpecError
from .source import stated_settings

COMMENT = re.compile(r"[^#]*?\s# (.*)")
PACKAGE = re.compile(r"^# @package ([\w.]+)$", re.MULTILINE)
"""Hydra's line for a file whose keys stand elsewhere than in the file's group."""


def shipped_folder() -> Path:
    """Return the folder of mmspec's own configurations: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "generate.yaml").is_file():
            return folder
    raise MMSpecError(
        f"no configurations in {package} or beside it: the installation is incomplete, install mmspec again"
    )


@dataclass(frozen=True)
class OptionSetting:
    """One setting of an option.

    Args:
        key: name as it is typed, such as `tree.depth`.
        default: default value as the file writes it.
        comment: description of the setting; empty if the file has none.
        owner: full name of the class that takes the setting, and the argument's name there.
        written: True if the file has the setting; False if it leaves it to the class, see
            `mmspec.settings.source.stated_settings`.
    """

    key: str
    default: str
    comment: str
    owner: tuple[str, str]
    written: bool = True

    @property
    def own(self) -> bool:
        """True if the setting has a value of its own, and not only that of another key."""
        return not self.default.startswith("${")


def read(file: Path, group: str) -> dict[str, OptionSetting]:
    """Return the settings of an option by their keys, including those of the options that it builds on.

    Args:
        file: file of the option.
        group: name of the group as it is typed, such as `recipe`.
    """
    text = file.read_text(encoding="utf-8")
    try:
        root = yaml.compose(text)
    except yaml.YAMLError:
        return {}  # what is wrong is said when the option is composed
    if not isinstance(root, yaml.MappingNode):
        return {}
    found: dict[str, OptionSetting] = {}
    for key, value in root.value:
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
            names = [item.value for item in value.value if isinstance(item, yaml.ScalarNode)]
            for name in names:
                if name != "_self_" and (other := file.with_name(f"{name}.yaml")).is_file():
                    found |= read(other, group)
    package = directive[1] if (directive := PACKAGE.search(text)) else group
    prefix = "" if package == "_global_" else f"{package}."
    own = {setting.key: setting for setting in _walk(root, prefix, text.splitlines(), text)}
    own = {key: setting for key, setting in own.items() if key.startswith(prefix or f"{group}.")}
    return found | {key: _described(setting, found.get(key)) for key, setting in own.items()}


def _described(setting: OptionSetting, before: OptionSetting | None) -> OptionSetting:
    """Return a setting that replaces another, with the other's comment and class where it has none."""
    if before is None:
        return setting
    owner = setting.owner if setting.owner[0] else before.owner
    return replace(setting, comment=setting.comment or before.comment, owner=owner)


def _walk(node: yaml.Node, prefix: str, lines: list[str], text: str) -> Iterator[OptionSetting]:
    """Yield every value in a mapping; lists of classes are numbered."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _walk(item, f"{prefix}{number}.", lines, text)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    target = class_of(node)
    stated, written = stated_settings(target), {key.value for key, _ in node.value}
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value.startswith("_") or name == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) or _classes(value):
            yield from _walk(value, f"{name}.", lines, text)
            continue
        default = " ".join(text[value.start_mark.index : value.end_mark.index].split())
        said = COMMENT.fullmatch(lines[key.start_mark.line])
        comment = said[1] if said else stated[key.value].description if key.value in stated else ""
        yield OptionSetting(name, default, comment, (target, key.value))
    for name, setting in stated.items():
        if name not in written:
            yield OptionSetting(f"{prefix}{name}", setting.default, setting.description, (target, name), written=False)


def _classes(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode) and any(class_of(item) for item in node.value)


def class_of(node: yaml.Node) -> str:
    """Return the `_target_` of a mapping, or an empty text."""
    if not isinstance(node, yaml.MappingNode):
        return ""
    return next((value.value for key, value in node.value if key.value == "_target_"), "")


def settings_of(files: Mapping[str, Path], option: str, group: str) -> dict[str, OptionSetting]:
    """Return the settings of an option; where it has no comments, other options of its group describe them.

    Args:
        files: files of all options of the group.
        option: name of the option.
        group: name of the group as it is typed.
    """
    found = {key: setting for key, setting in read(files[option], group).items() if setting.own}
    if all(setting.comment for setting in found.values()):
        return found
    every = [each for file in files.values() for each in read(file, group).values()]
    said = {each.owner: each.comment for each in reversed(every) if each.comment}  # the first file has the last word
    return {key: replace(s, comment=s.comment or said.get(s.owner, "")) for key, s in found.items()}


def class_paths(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the classes or functions that options build, by option; files that cannot be read are left out."""
    paths: dict[str, str] = {}
    for option, file in files.items():
        with suppress(yaml.YAMLError):
            if path := class_of(yaml.compose(file.read_text(encoding="utf-8"))):
                paths[option] = path
    return paths


def class_names(files: Mapping[str, Path], group: str) -> dict[str, str]:
    """Return the classes that options build, by their last names: `{"DynamicTree": "tree=dynamic"}`.

    A class or function that several options name is left out.
    """
    named: dict[str, list[str]] = {}
    for option, path in class_paths(files).items():
        named.setdefault(path.rpartition(".")[2], []).append(option)
    return {name: f"{group}={options[0]}" for name, options in named.items() if len(options) == 1}
