"""The choices on the page: the options of the groups of configs/demo.yaml, by name, and nothing else.

The command line may name folders, hub ids and settings (`tree.length=3`). The page may not, because then any visitor
would decide what is loaded and run on this machine. What the command line chose is an option on the page as well, with
its settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import MMSpecError, did_you_mean, shown
from ..settings import configuration
from ..settings.wording import in_options

COMMAND = "demo"


@dataclass
class ChoiceGroup:
    """A group of options, of which the user chooses one.

    Args:
        purpose: description of the group.
        options: names of the options with their descriptions.
        start: the option that is selected at first.
    """

    purpose: str
    options: dict[str, str]
    start: str


class Choices:
    """The groups of options, and the configuration of a chosen option.

    Args:
        overrides: overrides from the command line.
        config_dir: folder of the user's own configurations.

    Raises:
        MMSpecError: for invalid overrides.
    """

    def __init__(self, overrides: Sequence[str] = (), config_dir: str | None = None):
        self._overrides, self._config_dir = list(overrides), config_dir
        self.config = configuration.compose(COMMAND, self._overrides, config_dir)
        self._nodes: dict[tuple[str, str], Any] = {}

    @cached_property
    def groups(self) -> dict[str, ChoiceGroup]:
        """Groups by name, in the order of configs/demo.yaml."""
        found = configuration.groups(self._config_dir)
        given = dict(override.partition("=")[::2] for override in self._overrides)
        groups = {}
        for name, (default, purpose) in configuration.settings(COMMAND)[0].items():
            every, start = configuration.options_of(COMMAND, name, found), given.get(name, default)
            options = {option: about for option, about in every.items() if not self._open(name, option)}
            options.setdefault(start, every.get(start, "what the page was started with"))
            groups[name] = ChoiceGroup(purpose, options, start)
        return groups

    def _open(self, group: str, option: str) -> bool:
        """Return True if an option needs a value that only the command line can give."""
        files = [folder / group / f"{option}.yaml" for folder in configuration.search_folders(self._config_dir)]
        return any("???" in file.read_text(encoding="utf-8") for file in files if file.is_file())

    def in_words(self, error: MMSpecError) -> str:
        """Return the text of an error, in which the options on the page replace the names of classes."""
        return in_options(str(error), configuration.class_names(COMMAND, self._config_dir), constants=False)

    def check(self, chosen: Mapping[str, str]) -> None:
        """Refuse an option that is not offered.

        Raises:
            MMSpecError: naming the group and the nearest option.
        """
        for name, group in self.groups.items():
            option = chosen.get(name)
            if not isinstance(option, str) or option not in group.options:
                hint = did_you_mean(option if isinstance(option, str) else "", group.options)
                raise MMSpecError(f"{name} {shown(option, 60)} is not offered here.{hint}")

    def node(self, group: str, option: str) -> Any:
        """Return the configuration of an option; None for an option that builds nothing."""
        if option == self.groups[group].start:
            return self.config[group]
        if (group, option) not in self._nodes:
            names = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in self._overrides}
            of_groups = names & set(self.groups)
            plain = [o for o in self._overrides if o.lstrip("+~").partition("=")[0].partition(".")[0] not in of_groups]
            composed = configuration.compose(COMMAND, [*plain, f"{group}={option}"], self._config_dir)
            self._nodes[group, option] = composed[group]
        return self._nodes[group, option]
