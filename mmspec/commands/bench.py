"""`mmspec bench`: compare methods with plain decoding, and write a bundle that `mmspec report` reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MMSpecError

FAILED = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec bench`."""
    parser.description = (
        "Compare methods with plain decoding, on the same prompts and in turns. With no argument: everything that is "
        "embedded. drafter=NAME (with tree=, verifier=, engine=) compares that one. The same command with the same "
        "--output goes on with an interrupted run. A method that fails does not stop the others; exit code 1 then."
    )
    parser.add_argument("--output", metavar="FOLDER", help="where the bundle goes; a new one under runs/bench")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with an interrupted bundle or sweep")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: drafter=eagle,eagle3 runs both, each into its bundle"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and print the table."""
    from ..evaluation import bench
    from ..evaluation.resuming import is_hydra
    from ..evaluation.sweep import Sweep, parts_of

    overrides, config_dir = arguments.overrides, arguments.config_dir
    if arguments.resume is not None:
        return resume(arguments)
    folder = Path(arguments.output) if arguments.output else bench.new_folder()
    if arguments.multirun:
        return run_sweep(Sweep.begin(folder, overrides, config_dir))
    if strange := next(filter(is_hydra, overrides), None):
        raise MMSpecError(f"{strange!r} is about sweeps: add --multirun")
    settings = bench.settings_of(overrides, config_dir)
    if settings.parts:
        return run_sweep(Sweep.begin(folder, [], config_dir, parts_of(overrides, config_dir)))
    with progress_bar(folder) as (progress, notice):
        bench.benchmark(overrides, folder, config_dir, progress, notice)
    return show([folder], settings.units, settings.json)


def resume(arguments: argparse.Namespace) -> int:
    """Continue a bundle or a sweep that was interrupted."""
    from ..evaluation import bench
    from ..evaluation.resuming import is_hydra, overrides_of
    from ..evaluation.sweep import SWEEP, Sweep

    folder, config_dir = Path(arguments.resume), arguments.config_dir
    hydra = [override for override in arguments.overrides if is_hydra(override)]
    is_sweep = (folder / SWEEP).exists()
    if arguments.output or arguments.multirun or len(hydra) < len(arguments.overrides) or (hydra and not is_sweep):
        raise MMSpecError(
            "--resume continues with the settings of the beginning: leave out the overrides, --output and --multirun"
        )
    if is_sweep:
        return run_sweep(Sweep.resume(folder, config_dir, hydra))
    overrides = overrides_of(folder, config_dir)
    settings = bench.settings_of(overrides, config_dir)
    with progress_bar(folder) as (progress, notice):
        bench.benchmark(overrides, folder, config_dir, progress, notice)
    return show([folder], settings.units, settings.json)


def run_sweep(sweep: Any) -> int:
    """Run a sweep, print one table of all its bundles, or of each part, and say which jobs failed."""
    from ..evaluation.bench import settings_of
    from ..evaluation.sweep import say

    say(f"{len(sweep.jobs)} jobs, bundles in {sweep.folder}")
    settings = [settings_of(job, sweep.config_dir) for job in sweep.jobs]
    try:
        sweep.run()
    except KeyboardInterrupt:
        say(f"mmspec bench --resume {sweep.folder} goes on")
        raise
    codes = []
    if sweep.names is not None:
        for name, its in zip(sweep.names, settings, strict=True):
            if sweep.folder / name in sweep.bundles:
                codes.append(show([sweep.folder / name], its.units, its.json))
    elif sweep.bundles:
        units = {its.units for its in settings}
        codes.append(show(sweep.bundles, units.pop() if len(units) == 1 else None, settings[0].json))
    failures = sweep.failures()
    for number, reason in failures.items():
        say(f"{sweep.folder_of(number).name}: {reason}")
    if failures:
        say(
            f"{len(failures)} of {len(sweep.jobs)} jobs are not complete; to try them again: "
            f"mmspec bench --resume {sweep.folder}"
        )
    return FAILED if failures or any(codes) else 0


def show(folders: list[Path], units: str | None, as_json: bool) -> int:
    """Write the tables and plots of bundles beside them, and print the table.

    Returns:
        The exit code: 1 if a method has failed.
    """
    from rich.console import Console

    from ..evaluation import report
    from ..evaluation.sweep import say

    made = report(folders)
    if len(folders) == 1:
        made.save(folders[0])
    Console(width=None if sys.stdout.isatty() else 120).print(made.table())
    if units is not None:
        print(made.units(units))
    print(f"bundle: {folders[0] if len(folders) == 1 else folders[0].parent}")
    if as_json:
        print(json.dumps(made.as_json()))
    failed = [row.method for row in made.rows if row.failed]
    if failed:
        say(
            f"{len(failed)} of {len(made.rows)} methods failed ({', '.join(failed)}); measured again, in a bundle of "
            "their own, they join the table: mmspec report FOLDER OTHER"
        )
    return FAILED if failed else 0


@contextmanager
def progress_bar(folder: Path) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
    """Show a progress bar on standard error, or a line now and then where that is no terminal; yield a function that
    updates it, and one that prints a line beside it. Finished work stays when the command is interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..errors import printable
    from ..evaluation.sweep import announcer, say

    console = Console(stderr=True)
    description = TextColumn("{task.description}", markup=False)  # a task's name is no markup
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(what))

        def notice(line: str) -> None:
            if console.is_terminal:
                bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
            else:
                say(line)

        try:
            yield show if console.is_terminal else announcer(folder.name), notice
        except KeyboardInterrupt:
            say(f"what was measured is in {folder}; mmspec bench --resume {folder} goes on")
            raise
