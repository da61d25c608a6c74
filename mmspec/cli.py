"""Command line: `mmspec COMMAND [flags] [group=option] [key=value]`.

Free text and paths are ordinary flags. Everything else is a hydra override, composed by
`mmspec.settings.configuration`. Every command is a module in `mmspec.commands` with `add_flags(parser)` and
`run(arguments)`, which returns the exit code. A command whose defaults depend on what is typed also has
`completed(overrides)`. Words that are not flags are in `arguments.overrides`. A command without a configuration says in
`ARGUMENTS` what it takes instead, and one that takes more than the settings of a configuration says so in `TAKES`. A
command of two words is in the module that its second word names. Nothing heavy is imported before the arguments are
understood, so that `--help` and mistakes answer at once.

`--output` is the place of the result in every command that writes one: a folder where a command writes several files,
and a file for the single result of `generate` and `check`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

from .errors import MMSpecError, cut, did_you_mean
from .settings import configuration
from .settings.wording import in_options
from .version import __version__

COMMANDS = {
    "generate": "answer a question about pictures, videos or sounds by speculative decoding",
    "demo": "serve a page that shows plain and speculative decoding side by side",
    "distill": "let the target answer prompts about pictures, for a drafter to learn from",
    "train": "train a drafter on the target's answers",
    "bench": "compare methods fairly and write a bundle",
    "bench simulate": "project the acceptance in bundles to 7B, 13B and 72B on a given device",
    "report": "turn bundles into one table, and on request into files and plots",
    "list": "print everything that can be chosen, one line each",
    "completion": "make the Tab key complete mmspec in bash or zsh",
    "check": "compare a model's logits in tree passes with those of its own generate",
    "export": "write a drafter, and its target where need be, as vLLM serves them",
}

USAGE_ERROR, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise an `MMSpecError` instead of printing the usage."""
        raise MMSpecError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 where a check failed, 2 for errors that the user can correct, 130
    when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except MMSpecError as error:
        if "debug=true" in (argument.lower() for argument in argv):
            raise
        print(f"mmspec: {error}", file=sys.stderr)
        return getattr(error, "exit_code", USAGE_ERROR)
    except KeyboardInterrupt:
        print("\nmmspec: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe such as `mmspec generate | head -1` has left. Python would complain again when it flushes
        # standard output at exit, so that has to go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"mmspec {__version__}")
        return 0
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    below = {name.partition(" ")[2]: name for name in COMMANDS if name.startswith(f"{argv[0]} ")}
    if words == 1 and argv[1:] and (close := difflib.get_close_matches(argv[1], below, n=1)):
        raise MMSpecError(f"command {' '.join(argv[:2])!r} is unknown. Did you mean {below[close[0]]!r}?")
    title, argv = " ".join(argv[:words]), argv[words:]
    if title not in COMMANDS:
        raise MMSpecError(f"command {title!r} is unknown.{did_you_mean(title, COMMANDS)}")
    name = title.rpartition(" ")[2]
    command, parser = _command(title)
    takes = getattr(command, "ARGUMENTS", None)
    arguments, arguments_left = parser.parse_known_args(_join_values(argv, parser))
    for argument in arguments_left:
        if argument.startswith("-"):
            flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
            raise MMSpecError(f"flag {argument!r} is unknown.{did_you_mean(argument, flags)}")
        key = argument.partition("=")[0]
        if f"--{key}" in parser._option_string_actions and key not in _keys(title):
            raise MMSpecError(f"{cut(argument, 200)!r}: {key} is a flag of mmspec {title}: --{key} ...")
    arguments.overrides = arguments_left
    if arguments.help:
        parts = [_command_help(title, parser, takes or getattr(command, "TAKES", None))]
        if takes is None:
            chosen = getattr(command, "completed", list)(arguments.overrides)
            parts.append(_configuration_help(name, arguments.overrides, chosen, arguments.config_dir))
        print("\n".join(parts))
        return 0
    try:
        return command.run(arguments)
    except MMSpecError as error:
        classes = configuration.class_names(name, getattr(arguments, "config_dir", None))
        error.args = (in_options(str(error), classes),)
        raise


def _command(title: str) -> tuple[ModuleType, Parser]:
    """Return the module of a command and the parser of its flags."""
    command = importlib.import_module(f".commands.{title.rpartition(' ')[2]}", __package__)
    parser = Parser(prog=f"mmspec {title}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    if getattr(command, "ARGUMENTS", None) is None:
        parser.add_argument(
            "--config-dir", metavar="DIR", help="a folder of your own configurations, laid out as in mmspec"
        )
    command.add_flags(parser)
    return command, parser


def _keys(title: str) -> dict[str, tuple[str, str]]:
    """Return the keys of a command's configuration, if it has one."""
    name = title.rpartition(" ")[2]
    return configuration.settings(name)[1] if configuration.is_command(name) else {}


def flags_of(title: str) -> list[str]:
    """Return the long flags of a command."""
    return [flag for flag in _command(title)[1]._option_string_actions if flag.startswith("--")]


def _join_values(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Write `--flag value` as `--flag=value`, because argparse refuses separate values that begin with a dash."""
    joined, rest = [], iter(argv)
    for argument in rest:
        action = parser._option_string_actions.get(argument)
        value = next(rest, None) if action is not None and action.nargs is None else None
        joined.append(argument if value is None else f"{argument}={value}")
    return joined


def _overview() -> str:
    commands = _table({name: purpose for name, purpose in COMMANDS.items()})
    return (
        "usage: mmspec COMMAND [flags] [group=option] [key=value]\n\n"
        "Multimodal speculative decoding: the same text as the model alone would write, sooner.\n\n"
        f"commands:\n{commands}\n\n"
        "`mmspec COMMAND --help` lists a command's flags, groups and keys; `mmspec --version` prints the version."
    )


def _command_help(name: str, parser: argparse.ArgumentParser, takes: str | None) -> str:
    """Return the help of a command: its arguments and its flags."""
    usage = f"usage: mmspec {name} [flags] {takes or '[group=option] [key=value]'}"
    flags = {
        ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else ""): action.help or ""
        for action in parser._actions
    }
    return "\n".join([usage, "", parser.description or COMMANDS[name], "", "flags:", _table(flags)])


def _configuration_help(name: str, typed: list[str], completed: list[str], config_dir: str | None) -> str:
    """Return what a command's configuration offers, including the settings of the chosen options.

    Args:
        typed: overrides that the user typed.
        completed: the same with the overrides that the command adds, which are defaults too.
    """
    found, (chosen, keys) = configuration.groups(config_dir), configuration.settings(name)
    added = dict(override.split("=", 1) for override in completed if override not in typed)
    lines = ["", "groups, set with group=option (* is the default):"] if chosen else []
    for group, (default, purpose) in chosen.items():
        default = added.get(group, default)
        options = configuration.options_of(name, group, found)
        marked = {f"{option}{' *' if option == default else ''}": about for option, about in options.items()}
        lines += [f"  {group}: {purpose}", _table(marked, indent=4)]
    inside = configuration.chosen_settings(name, completed, config_dir)
    settings = {each.key: each for found in inside.values() for each in found.values()}
    if chosen:
        lines += ["", f"settings inside a group, set with group.setting=value; of {_named(inside)}:"]
        lines += [_table({f"{key}={each.default}": each.comment for key, each in settings.items()})] if settings else []
        lines += [f"  `mmspec {_title(name)} GROUP=OPTION --help` lists those of another option."]
    lines += ["", "keys, set with key=value:"]
    lines += [_table({f"{key}={default}": purpose for key, (default, purpose) in keys.items()})]
    return "\n".join(lines)


def _named(inside: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{group}={option}" for group, option in inside)


def _title(name: str) -> str:
    """Return the name of a command as it is typed."""
    return next(title for title in COMMANDS if title.rpartition(" ")[2] == name)


def _table(rows: dict[str, str], indent: int = 2) -> str:
    width = max(len(name) for name in rows)
    return "\n".join(f"{' ' * indent}{name:<{width}}  {text}".rstrip() for name, text in rows.items())


if __name__ == "__main__":
    sys.exit(main())
