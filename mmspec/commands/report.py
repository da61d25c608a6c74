"""`mmspec report`: print one table from the bundles that `mmspec bench` wrote, and on request write its files and
plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MMSpecError

ARGUMENTS = "BUNDLE [BUNDLE ...]"  # instead of a configuration; see mmspec.cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec report`."""
    parser.description = (
        "Print one table of everything that was measured. BUNDLE is a folder that mmspec bench wrote, or a folder that "
        "holds such, as a sweep does. An experiment of several parts gets a table for each."
    )
    parser.add_argument("--output", metavar="DIR", help="write table.md, table.csv, report.json and the plots there")
    parser.add_argument(
        "--into",
        metavar="FILE",
        help="put table and plots into a Markdown file, in place of those of an earlier report",
    )
    parser.add_argument("--section", metavar="WORD", default="", help="tells this report from others in the same FILE")
    parser.add_argument("--units", metavar="NAME", help="count as others do: eagle, mmspec, vispec or vllm")
    parser.add_argument(
        "--limits", action="store_true", help="also say what share of its limit each method reaches, and what is left"
    )
    parser.add_argument(
        "--prompt", action="store_true", help="also say what the prompt costs, task by task: time by phase, and memory"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", default="plain", help="the method to compare with; plain, if not given"
    )
    parser.add_argument(
        "--mixed", action="store_true", help="allow bundles of different targets or settings in one table"
    )
    parser.add_argument("--partial", action="store_true", help="use what there is of bundles that are not complete")


def run(arguments: argparse.Namespace) -> int:
    """Read the bundles, print the table and write the files."""
    folders = arguments.overrides
    if not folders:
        raise MMSpecError(f"name the bundles to report: mmspec report {ARGUMENTS}")

    from rich.console import Console
    from rich.text import Text

    from ..evaluation.conventions import explained
    from ..evaluation.reporting import marks, report
    from ..evaluation.sheets import WIDTH

    if arguments.units is not None:
        explained(arguments.units)  # refused before anything is written
    marks(arguments.section)
    console = Console()
    if not console.is_terminal:  # into a pipe or a file goes as much as the table needs
        console = Console(width=WIDTH)
    parts = _parts(folders, arguments.partial)
    if parts and arguments.section:
        raise MMSpecError(
            f"{folders[0]} holds the parts {', '.join(parts)}: each gets a section with its own name, so leave out "
            "--section"
        )
    for name, bundles in (parts or {"": folders}).items():
        made = report(bundles, baseline=arguments.baseline, mixed=arguments.mixed, partial=arguments.partial)
        output = None if arguments.output is None else Path(arguments.output) / name
        written: list[Path] = []
        if output is not None:
            written += made.save(output, arguments.limits, arguments.prompt)
        if arguments.into is not None:
            written += made.put_into(arguments.into, name or arguments.section, arguments.limits, arguments.prompt)
        if name:
            console.rule(Text(name))
        console.print(made.table() if arguments.units is None else made.units(arguments.units))
        if arguments.limits:
            console.print(made.limits())
        if arguments.prompt:
            console.print(made.prompt())
        for path in written:
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _parts(folders: list[str], partial: bool) -> dict[str, list[Path]]:
    """Return the bundles of each part, if the report is about an experiment of several runs."""
    from ..evaluation.sweep import SWEEP, Sweep

    if len(folders) != 1 or not (Path(folders[0]) / SWEEP).exists():
        return {}
    sweep = Sweep.open(folders[0])
    found = {name: sweep.folder / name for name in sweep.jobs} if sweep.parts else {}
    return {name: [folder] for name, folder in found.items() if folder.exists() or not partial}
