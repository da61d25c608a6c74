"""`mmspec bench`: compare methods with plain decoding, and leave a bundle that `mmspec report` reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import configuration
from ..errors import MMSpecError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec bench`."""
    parser.description = (
        "Compare methods with plain decoding, on the same prompts and in turns. With no argument: everything that is "
        "embedded. drafter=NAME (with tree=, verifier=, engine=) compares that one. The same command with the same "
        "--output goes on with an interrupted run."
    )
    parser.add_argument("--output", metavar="FOLDER", help="where the bundle goes; a new one under runs/bench")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with an interrupted bundle or sweep")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: drafter=eagle,eagle3 runs both, each into its bundle"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the table."""
    from ..evaluation import bench
    from ..evaluation.parts import parts_of
    from ..evaluation.sweep import SWEEP, Sweep, is_hydra

    overrides, config_dir = arguments.overrides, arguments.config_dir
    if arguments.resume is not None:
        if overrides or arguments.output or arguments.multirun:
            raise MMSpecError("--resume goes on as it was begun: leave out the overrides, --output and --multirun")
        folder = Path(arguments.resume)
        if (folder / SWEEP).exists():
            return run_sweep(Sweep.open(folder))
        with progress_bar(folder) as progress:
            bench.resume(folder, progress)
        return show([folder], None, False)
    if arguments.multirun:
        folder = Path(arguments.output) if arguments.output else bench.new_folder()
        return run_sweep(Sweep.begin(folder, overrides, config_dir))
    if strange := next(filter(is_hydra, overrides), None):
        raise MMSpecError(f"{strange!r} is about sweeps: add --multirun")
    folder = Path(arguments.output) if arguments.output else bench.new_folder()
    config = configuration.compose("bench", bench.complete(overrides), config_dir)
    settings = configuration.typed(config, bench.Settings)
    if settings.parts:
        return run_sweep(Sweep.begin(folder, [], config_dir, parts_of(overrides, config_dir)))
    with progress_bar(folder) as progress:
        bench.benchmark(overrides, folder, config_dir, progress)
    return show([folder], settings.units, settings.json)


def run_sweep(sweep: Any) -> int:
    """Run a sweep, print one table of all its bundles, or of each part, and say which jobs failed."""
    print(f"{len(sweep.jobs)} jobs, bundles in {sweep.folder}", file=sys.stderr)
    try:
        sweep.run()
    except KeyboardInterrupt:
        print(f"mmspec bench --resume {sweep.folder} goes on", file=sys.stderr)
        raise
    failures = sweep.failures()
    if sweep.names is not None:
        for bundle in sweep.bundles:
            show([bundle], None, False)
    elif sweep.bundles:
        show(sweep.bundles, None, False)
    for number, reason in failures.items():
        print(f"{sweep.folder_of(number).name}: {reason}", file=sys.stderr)
    if failures:
        print(
            f"{len(failures)} of {len(sweep.jobs)} jobs are not complete; to try them again: "
            f"mmspec bench --resume {sweep.folder}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def show(folders: list[Path], units: str | None, as_json: bool) -> int:
    """Write the tables and plots of bundles beside them, and print the table."""
    from rich.console import Console

    from ..evaluation import report

    made = report(folders)
    if len(folders) == 1:
        made.save(folders[0])
    Console(width=None if sys.stdout.isatty() else 120).print(made.table())
    if units is not None:
        print(made.units(units))
    print(f"bundle: {folders[0] if len(folders) == 1 else folders[0].parent}")
    if as_json:
        print(json.dumps(made.as_json()))
    return 0


@contextmanager
def progress_bar(folder: Path) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, or a line now and then where that is no terminal; what is done stays when it
    is interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..evaluation.sweep import announcer

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        try:
            yield show if console.is_terminal else announcer(folder.name)
        except KeyboardInterrupt:
            print(f"what was measured is in {folder}; mmspec bench --resume {folder} goes on", file=sys.stderr)
            raise
