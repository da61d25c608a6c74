"""`mmspec bench`: compare methods with plain decoding, and write a bundle that `mmspec report` reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MMSpecError

if TYPE_CHECKING:
    from ..evaluation.sweep import Sweep

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
    from ..evaluation.bench import new_folder
    from ..evaluation.resuming import is_hydra
    from ..evaluation.sweep import Sweep, parts_of

    overrides, config_dir = arguments.overrides, arguments.config_dir
    if arguments.resume is not None:
        return resume(arguments)
    folder = Path(arguments.output) if arguments.output else new_folder()
    if arguments.multirun:
        return run_sweep(Sweep.begin(folder, overrides, config_dir))
    if strange := next(filter(is_hydra, overrides), None):
        raise MMSpecError(f"{strange!r} is about sweeps: add --multirun")
    if parts := parts_of(overrides, config_dir):
        return run_sweep(Sweep.begin(folder, [], config_dir, parts))
    return run_one(overrides, folder, config_dir)


def resume(arguments: argparse.Namespace) -> int:
    """Continue a bundle or a sweep that was interrupted."""
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
    return run_one(overrides_of(folder, config_dir), folder, config_dir)


def run_one(overrides: Sequence[str], folder: Path, config_dir: str | None) -> int:
    """Run one benchmark and print its table."""
    from ..evaluation.bench import settings_of

    settings = settings_of(overrides, config_dir)
    with going_on(f"what was measured is in {folder}; mmspec bench --resume {folder} goes on"):
        measure(overrides, folder, config_dir)
    return show([folder], settings.units, settings.json)


def run_sweep(sweep: Sweep) -> int:
    """Run a sweep, print one table of all its bundles, or of each part, and say which jobs failed."""
    from ..evaluation.bench import settings_of
    from ..evaluation.sweep import say

    say(f"{len(sweep.jobs)} jobs, bundles in {sweep.folder}")
    settings = {name: settings_of(job, sweep.config_dir) for name, job in sweep.jobs.items()}
    with going_on(f"mmspec bench --resume {sweep.folder} goes on"):
        sweep.run(measure)
    failures = sweep.failures()
    whole = [name for name in sweep.jobs if name not in failures]
    codes = []
    for names in [[name] for name in whole] if sweep.parts else [whole] if whole else []:
        units = {settings[name].units for name in names}
        folders = [sweep.folder / name for name in names]
        codes.append(show(folders, units.pop() if len(units) == 1 else None, settings[names[0]].json))
    for name, reason in failures.items():
        say(f"{name}: {reason}")
    if failures:
        say(
            f"{len(failures)} of {len(sweep.jobs)} jobs are not complete; to try them again: "
            f"mmspec bench --resume {sweep.folder}"
        )
    return FAILED if failures or any(codes) else 0


def measure(overrides: Sequence[str], folder: Path, config_dir: str | None) -> None:
    """Measure one bundle and show how far it is, in whatever process this is."""
    from ..evaluation.bench import benchmark
    from .progress import Display

    with Display(folder.name) as display:
        benchmark(overrides, folder, config_dir, display.show, display.say)


@contextmanager
def going_on(line: str) -> Iterator[None]:
    """Print how to go on if the command is interrupted within."""
    from ..evaluation.sweep import say

    try:
        yield
    except KeyboardInterrupt:
        say(line)
        raise


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
