"""Many runs: all combinations of the values given, or the parts of an experiment, here or through a hydra launcher."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, printable
from ..extras import missing
from ..files.storage import UNFINISHED, atomic_write_json, atomic_write_text, read_json_object
from ..settings import configuration
from .bench import EXPERIMENT, BenchSettings, benchmark, complete, prepare_run, source_of
from .bundle import ERROR, MANIFEST, Bundle
from .reading import read_object, read_text
from .resuming import check, is_hydra
from .schema import require

SWEEP = "sweep.json"
SHAPE = {"jobs": [[str]], "config_dir": (str, None), "hydra": [str], "names": ([str], None)}
NAME = re.compile(r"[\w.,=+-]*[\w=+-][\w.,=+-]*")  # of a folder in the sweep's own: no way out of it
LONGEST = 200
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"  # what the launchers of the extra `cluster` are in


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values in overrides such as `drafter=eagle,eagle3 tree.total=range(8,33,8)`.

    Raises:
        MMSpecError: if an override is not in hydra's grammar.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except HydraException as error:
        raise MMSpecError(f"the sweep cannot be read: {' '.join(str(error).split())}") from error


class Sweep:
    """A folder with a bundle for every job.

    Args:
        folder: folder with the bundles.
        jobs: the overrides of each job.
        config_dir: the user's configurations.
        hydra: overrides for hydra itself: who launches the jobs, and how.
        names: names of the jobs, if they are the parts of an experiment.
    """

    def __init__(
        self,
        folder: Path,
        jobs: list[list[str]],
        config_dir: str | None = None,
        hydra: Sequence[str] = (),
        names: Sequence[str] | None = None,
    ):
        self.folder, self.jobs, self.config_dir, self.hydra = Path(folder), jobs, config_dir, list(hydra)
        self.names = None if names is None else list(names)

    @classmethod
    def begin(
        cls,
        folder: Path,
        overrides: Sequence[str],
        config_dir: str | None = None,
        parts: dict[str, list[str]] | None = None,
    ) -> Sweep:
        """Plan a sweep, check all of its jobs before anything runs, and note the plan in its folder.

        Args:
            folder: where the bundles go.
            overrides: those of hydra itself, and unless there are parts the values to combine.
            config_dir: the user's configurations.
            parts: jobs by name, see `parts_of`.

        Raises:
            MMSpecError: if any job names what does not exist, or the folder holds another sweep.
        """
        jobs = list((parts or {}).values()) or expand([override for override in overrides if not is_hydra(override)])
        asked = set()
        for job in jobs:
            try:
                config, settings, _ = prepare_run(job, config_dir)
                task = f"{config.task} {settings.batch} {settings.limit}"
                if task not in asked:  # a big one takes a while to read
                    source_of(config, settings)
                    asked.add(task)
            except MMSpecError as error:
                raise MMSpecError(f"job {' '.join(job) or '(no overrides)'}: {error}") from error
        config_dir = None if config_dir is None else str(Path(config_dir).resolve())
        hydra = [override for override in overrides if is_hydra(override)]
        _check_launcher(hydra)
        sweep = cls(folder, jobs, config_dir, hydra, list(parts) if parts else None)
        for name in sweep.names or []:
            _refuse_name(name, "the experiment")
        path = sweep.folder / SWEEP
        if path.exists() and not _of_beginning(path):
            if cls.open(folder).jobs != jobs:
                raise MMSpecError(f"{folder} holds another sweep: choose another --output, or --resume {folder}")
        elif sweep.folder.exists() and any(not _of_beginning(found) for found in sweep.folder.iterdir()):
            raise MMSpecError(f"{folder} is not empty and holds no sweep: choose another --output")
        plan = {"jobs": jobs, "config_dir": config_dir, "hydra": sweep.hydra, "names": sweep.names}
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(path, plan, indent=1)
        except OSError as error:
            raise MMSpecError(
                f"{path} cannot be written: {error.strerror or error}; choose another --output"
            ) from error
        return sweep

    @classmethod
    def open(cls, folder: str | Path) -> Sweep:
        """Open the sweep that a folder holds, which may be somebody else's.

        Raises:
            MMSpecError: if it holds none, or one whose jobs would not stay in the folder.
        """
        folder, path = Path(folder), Path(folder) / SWEEP
        plan = read_object(path)
        require(plan, SHAPE, str(path))
        names, jobs = plan["names"], plan["jobs"]
        if names is not None and (len(names) != len(jobs) or len(set(names)) != len(names)):
            raise MMSpecError(f"{path}: there must be a name of its own for each of the {len(jobs)} jobs")
        for name in names or []:
            _refuse_name(name, str(path))
        sweep = cls(folder, jobs, plan["config_dir"], plan["hydra"], names)
        for number in range(len(jobs)):
            found = sweep.folder_of(number)
            if found.is_symlink() and not found.resolve().is_relative_to(folder.resolve()):
                raise MMSpecError(f"{found} leads out of the sweep's folder, and is neither read nor written")
        return sweep

    @classmethod
    def resume(cls, folder: str | Path, config_dir: str | None = None, hydra: Sequence[str] = ()) -> Sweep:
        """Open the sweep that a folder holds to go on with it, if it runs nothing beyond our options and the caller's.

        Args:
            folder: folder of the sweep, which may be somebody else's.
            config_dir: the caller's own configurations.
            hydra: the launcher and its settings, which the caller says again.

        Raises:
            MMSpecError: see `open` and `mmspec.evaluation.resuming.check`.
        """
        sweep = cls.open(folder)
        if sorted(sweep.hydra) != sorted(hydra):
            wanted = " ".join(sweep.hydra) or "no launcher"
            raise MMSpecError(
                f"{folder} was begun with {wanted}, which is not taken from a file: say it again behind --resume, if "
                "you trust it"
            )
        for job in sweep.jobs:
            check(job, sweep.config_dir, config_dir, folder)
        return sweep

    def folder_of(self, job: int) -> Path:
        """Return where the bundle of a job goes: its name, or its number and what sets it apart from the other jobs."""
        if self.names is not None:
            return self.folder / self.names[job]
        own = [override for override in self.jobs[job] if not all(override in other for other in self.jobs)]
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(own))
        return self.folder / f"{job:0{len(str(len(self.jobs) - 1))}d},{name}"[:LONGEST].rstrip(",")

    def run(self) -> None:
        """Run the jobs that are not complete, through hydra's launcher.

        A job that fails keeps the others from nothing; `failures` tells.
        """
        import hydra

        open_jobs = [number for number in range(len(self.jobs)) if not self._complete(number)]
        if not open_jobs:
            return
        arguments = ["--multirun", "hydra/hydra_logging=none", "hydra/job_logging=none"]
        arguments += [f"+sweep='{self._quoted()}'", f"+job={','.join(map(str, open_jobs))}"]
        arguments += [f"hydra.sweep.dir='{self._quoted()}'", "hydra.sweep.subdir=logs/${hydra.job.num}"]
        # A job that failed makes hydra leave the program; what is to be said of it is in `failures`.
        with _arguments([*arguments, *self.hydra]), contextlib.suppress(SystemExit):
            hydra.main(version_base="1.3", config_path=None, config_name=None)(run_job)()

    def failures(self) -> dict[int, str]:
        """Return the jobs that are not complete, and why."""
        reasons = {}
        for number in range(len(self.jobs)):
            folder = self.folder_of(number)
            bundle = self._bundle(number)
            if bundle is not None and not bundle.complete:
                status = bundle.manifest["status"]
                reasons[number] = bundle.manifest["error"] or bundle.lost or status
            elif bundle is None:
                reason = read_text(folder / ERROR).strip() if (folder / ERROR).exists() else ""
                reasons[number] = reason or "it was not started, or ended before it had measured anything"
        return reasons

    @property
    def bundles(self) -> list[Path]:
        """The folders of the complete jobs."""
        return [self.folder_of(number) for number in range(len(self.jobs)) if self._complete(number)]

    def _complete(self, job: int) -> bool:
        bundle = self._bundle(job)
        return bundle is not None and bundle.complete

    def _bundle(self, job: int) -> Bundle | None:
        """Return what a job has left; None if it left nothing that can be read, and has to be run."""
        folder = self.folder_of(job)
        if not (folder / MANIFEST).is_file():
            return None
        try:
            return Bundle.open(folder)
        except MMSpecError:
            return None

    def _quoted(self) -> str:
        return str(self.folder.resolve()).replace("\\", r"\\").replace("'", r"\'")


def _check_launcher(overrides: Sequence[str]) -> None:
    """Refuse a launcher of the extra that is not installed, before a folder is made."""
    for override in overrides:
        if override.startswith("hydra/launcher=submitit"):
            try:
                importlib.import_module(SUBMITIT)
            except ImportError as error:
                raise MMSpecError(missing(override, "hydra-submitit-launcher")) from error


def run_job(job: Any) -> None:
    """Run one job, in whatever process the launcher has put it: hydra calls this."""
    sweep = Sweep.open(job.sweep)
    folder = sweep.folder_of(job.job)
    try:
        benchmark(sweep.jobs[job.job], folder, sweep.config_dir, announcer(folder.name), say)
    except Exception as error:
        if not isinstance(error, MMSpecError):
            traceback.print_exc()
        if not (folder / MANIFEST).exists():
            with contextlib.suppress(OSError):  # a full disk; what is wrong is printed below
                folder.mkdir(parents=True, exist_ok=True)
                atomic_write_text(folder / ERROR, f"{error}\n")
        say(f"{folder.name}: {error}")
    else:
        (folder / ERROR).unlink(missing_ok=True)


def say(line: str) -> None:
    """Print a line on standard error, in one line whatever is in it."""
    print(printable(line), file=sys.stderr, flush=True)


def announcer(name: str) -> Callable[[int, int, str], None]:
    """Return a function that says how far a job is, ten times: a launcher may put its output into a file."""
    said = set()

    def progress(done: int, total: int, what: str) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth not in said:
            said.add(tenth)
            say(f"{name}: {done} of {total}")

    return progress


@contextlib.contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """Set the command line within, because hydra's launchers read their arguments from the command line alone."""
    before, sys.argv = sys.argv, ["mmspec bench", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _refuse_name(name: str, where: str) -> None:
    """Refuse a name of a part that is no name of a folder below the sweep's."""
    if len(name) > LONGEST or not NAME.fullmatch(name) or name.startswith("."):
        raise MMSpecError(
            f"{where} calls a part {name[:80]!r}, and its bundle is in a folder of that name: it must be of letters, "
            "digits and the signs , . = + - _"
        )


def _of_beginning(path: Path) -> bool:
    """Return True if a file is what a sweep leaves that was killed, or had no room, before it was planned."""
    torn = path.name == SWEEP and path.is_file() and read_json_object(path) is None
    return torn or path.name.endswith(UNFINISHED)


def parts_of(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the runs that a command stands for, by name; none for a command that is one run.

    What was typed holds for all parts: one whose own settings say otherwise is left out, so that `dtype=bfloat16` runs
    those of `experiment=full` that are in bfloat16, and those that do not say.

    Args:
        overrides: as on the command line of `mmspec bench`.
        config_dir: a folder of the user's own configurations.

    Raises:
        MMSpecError: if nothing is left, or a part is no list of overrides.
    """
    overrides = complete(overrides)
    config = configuration.compose("bench", overrides, config_dir)
    parts = configuration.typed(config, BenchSettings).parts
    if not parts:
        return {}
    typed = dict(map(_split, overrides))
    chosen = typed.pop("experiment", None)
    runs = {}
    for name, line in parts.items():
        own = dict(map(_split, _words(name, line)))
        experiment = own.pop("experiment", chosen)
        if all(typed.get(key, value) == value for key, value in own.items()):
            settings = {**own, **typed, "parts": "null"}
            runs[name] = [f"{EXPERIMENT}{experiment}"] if experiment is not None else []
            runs[name] += [f"{key}={value}" for key, value in settings.items()]
    if not runs:
        named = "; ".join(f"{name}: {line}" for name, line in parts.items())
        raise MMSpecError(f"no part goes with {' '.join(overrides)}. The parts are {named}")
    return runs


def _words(name: str, line: Any) -> list[str]:
    words = line.split() if isinstance(line, str) else []
    if not words or not all("=" in word for word in words):
        raise MMSpecError(f"part {name!r} is {line!r}: it must be overrides, such as 'sampling=sampled dtype=bfloat16'")
    return words


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value
