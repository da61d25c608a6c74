"""`mmspec list`: show everything that can be chosen, one line each."""

from __future__ import annotations

import argparse
import sys

from ..errors import MMSpecError, did_you_mean
from ..settings import configuration

ARGUMENTS = "[GROUP ...]"  # instead of a configuration; see mmspec.cli

FIRST = ("target", "drafter", "tree", "verifier", "compressor", "task", "train/recipe")
"""Groups that most people look for, in the order in which they are shown; the other groups follow."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec list`."""
    parser.description = (
        "Print the options of every configuration group with one line each, or those of some groups. Into a pipe or a "
        "file, a line is GROUP=OPTION, a tab, and what it is."
    )
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own configurations, listed with mmspec's")


def run(arguments: argparse.Namespace) -> int:
    """Print groups with their options."""
    found = configuration.groups(arguments.config_dir)
    names = {path.rpartition("/")[2]: path for path in sorted(found, key=_place)}
    unknown = [name for name in arguments.overrides if name not in names]
    if unknown:
        raise MMSpecError(f"group {unknown[0]!r} is unknown.{did_you_mean(unknown[0], names)}")

    chosen = arguments.overrides or names
    if not sys.stdout.isatty():
        for name in chosen:
            for option, purpose in found[names[name]].items():
                print(f"{name}={option}\t{purpose}")
        return 0

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for name in chosen:
        table = Table.grid(padding=(0, 2), pad_edge=True)
        for option, purpose in found[names[name]].items():
            table.add_row(f"  {option}", purpose)
        console.print(f"{name}=", style="bold")
        console.print(table)
    if not arguments.overrides:
        console.print("`mmspec COMMAND --help` says which of these a command takes, and which are its defaults.")
    return 0


def _place(path: str) -> tuple[int, str]:
    return (FIRST.index(path) if path in FIRST else len(FIRST), path)
