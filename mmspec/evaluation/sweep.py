"""Many runs: all combinations of the values given, or the parts of an experiment, as jobs of hydra's multirun."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, first_line, printable
from ..extras import missing
from ..files.storage import UNFINISHED, atomic_write_json, atomic_write_text, read_json_object
from .bench import EXPERIMENT, benchmark, complete, listed, prepare_run, settings_of, source_of
from .bundle import ERROR, MANIFEST, Bundle
from .records import Reader, SweepPlan, read_text
from .resuming import check, is_hydra

SWEEP = "sweep.json"
PLANS = Reader(SweepPlan)
NAME = re.compile(r"[\w.,=+-]*[\w=+-][\w.,=+-]*")  # of a folder in the sweep's own: no way out of it
LONGEST = 200
JOB = "mmspec_bench"  # as a cluster's queue shows it
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"  # what the launchers of the extra `cluster` are in
UNSTARTED = "it was not started, or ended before it had measured anything"


RunOne = Callable[[Sequence[str], Path, str | None], object]
"""A function that measures one job, given its overrides, its folder and the user's configurations."""


class Sweep:
    """A folder with a bundle for every job.

    Args:
        folder: folder with the bundles.
        jobs: the overrides of each job.
        config_dir: the user's configurations.
        hydra: overrides for hydra itself: who launches the jobs, and how.
        names: names of the jobs, if they are the parts of an experiment.

    Attributes:
        jobs: the overrides of each job, by the name of its folder: the part's, or the job's number and what sets it
            apart from the others.
        parts: True if the jobs are the parts of an experiment.
    """

    def __init__(
        self,
        folder: str | Path,
        jobs: Sequence[list[str]],
        config_dir: str | None = None,
        hydra: Sequence[str] = (),
        names: Sequence[str] | None = None,
    ):
        self.folder, self.config_dir, self.hydra, self.parts = Path(folder), config_dir, list(hydra), names is not None
        self.jobs = dict(zip(_numbered(jobs) if names is None else names, jobs, strict=True))

    @classmethod
    def begin(
        cls,
        folder: str | Path,
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
            MMSpecError: if any job names what does not exist, hydra cannot launch them so, or the folder holds another
                sweep.
        """
        folder, path = Path(folder), Path(folder) / SWEEP
        hydra = [override for override in overrides if is_hydra(override)]
        jobs = list((parts or {}).values()) or expand([override for override in overrides if not is_hydra(override)])
        _check_jobs(jobs, config_dir)
        _check_launcher(hydra)
        for name in parts or {}:
            _refuse_name(name, "the experiment")
        sweep = cls(folder, jobs, config_dir and str(Path(config_dir).resolve()), hydra, list(parts) if parts else None)
        if path.exists() and not _of_beginning(path):
            if list(cls.open(folder).jobs.values()) != jobs:
                raise MMSpecError(f"{folder} holds another sweep: choose another --output, or --resume {folder}")
        elif folder.exists() and any(not _of_beginning(found) for found in folder.iterdir()):
            raise MMSpecError(f"{folder} is not empty and holds no sweep: choose another --output")
        names = list(sweep.jobs) if sweep.parts else None
        plan = SweepPlan(jobs=jobs, config_dir=sweep.config_dir, hydra=hydra, names=names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
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
        plan = PLANS.file(path)
        names, jobs = plan["names"], plan["jobs"]
        if names is not None and (len(names) != len(jobs) or len(set(names)) != len(names)):
            raise MMSpecError(f"{path}: there must be a name of its own for each of the {len(jobs)} jobs")
        for name in names or []:
            _refuse_name(name, str(path))
        sweep = cls(folder, jobs, plan["config_dir"], plan["hydra"], names)
        for found in (folder / name for name in sweep.jobs):
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
        for job in sweep.jobs.values():
            check(job, sweep.config_dir, config_dir, folder)
        return sweep

    def run(self, run_one: RunOne = benchmark) -> None:
        """Run the jobs that are not complete, through hydra's launcher.

        A job that fails keeps the others from nothing; `failures` tells.

        Args:
            run_one: function that measures a job, in whatever process the launcher has put it.
        """
        from hydra import initialize
        from hydra.core.global_hydra import GlobalHydra

        failures = self.failures()
        numbers = [str(number) for number, name in enumerate(self.jobs) if name in failures]
        if not numbers:
            return
        place = str(self.folder.resolve()).replace("\\", r"\\").replace("'", r"\'")
        overrides = ["hydra/hydra_logging=none", "hydra/job_logging=none", "hydra.mode=MULTIRUN"]
        overrides += [f"hydra.sweep.dir='{place}'", "hydra.sweep.subdir=logs/${hydra.job.num}"]
        overrides += [f"+job={','.join(numbers)}", *self.hydra]
        with initialize(version_base="1.3", config_path=None, job_name=JOB):
            launching = GlobalHydra.instance().hydra
            assert launching is not None
            try:
                launching.multirun(None, partial(self._run_job, run_one), overrides)
            except Exception as error:  # of the launcher: the jobs keep their own
                say(f"the launcher failed: {first_line(error)}")

    def _run_job(self, run_one: RunOne, job: Any) -> None:
        """Run the job whose number hydra gives, and leave the reason in its folder if there can be no bundle."""
        name = list(self.jobs)[job.job]
        folder = self.folder / name
        try:
            run_one(self.jobs[name], folder, self.config_dir)
        except Exception as error:
            if not isinstance(error, MMSpecError):
                traceback.print_exc()
            if not (folder / MANIFEST).exists():
                with suppress(OSError):  # a full disk; what is wrong is printed below
                    folder.mkdir(parents=True, exist_ok=True)
                    atomic_write_text(folder / ERROR, f"{error}\n")
            say(f"{name}: {error}")
        else:
            (folder / ERROR).unlink(missing_ok=True)

    def failures(self) -> dict[str, str]:
        """Return the jobs that are not complete, and why."""
        reasons = {}
        for name in self.jobs:
            folder = self.folder / name
            try:
                bundle = Bundle.open(folder)
            except MMSpecError:  # what it left cannot be read, and it has to be run
                said = read_text(folder / ERROR).strip() if (folder / ERROR).exists() else ""
                reasons[name] = said or UNSTARTED
            else:
                if not bundle.complete:
                    reasons[name] = bundle.manifest["error"] or bundle.lost or bundle.manifest["status"]
        return reasons

    @property
    def bundles(self) -> list[Path]:
        """The folders of the complete jobs."""
        failures = self.failures()
        return [self.folder / name for name in self.jobs if name not in failures]


def say(line: str) -> None:
    """Print a line on standard error, in one line whatever is in it."""
    print(printable(line), file=sys.stderr, flush=True)


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


def _numbered(jobs: Sequence[list[str]]) -> list[str]:
    """Return a name for each job: its number, and what sets it apart from the other jobs."""
    names = []
    for number, job in enumerate(jobs):
        own = [override for override in job if not all(override in other for other in jobs)]
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(own))
        names.append(f"{number:0{len(str(len(jobs) - 1))}d},{name}"[:LONGEST].rstrip(","))
    return names


def _check_jobs(jobs: Sequence[list[str]], config_dir: str | None) -> None:
    """Refuse jobs that name what does not exist, and tasks without a question."""
    asked = set()
    for job in jobs:
        try:
            config, settings, _ = prepare_run(job, config_dir)
            task = f"{config.task} {settings.limit}"
            if task not in asked:  # a big one takes a while to read
                source_of(config, settings)
                asked.add(task)
        except MMSpecError as error:
            raise MMSpecError(f"job {' '.join(job) or '(no overrides)'}: {error}") from error


def _check_launcher(overrides: Sequence[str]) -> None:
    """Refuse a launcher that is not installed, and settings that hydra does not have, before a folder is made."""
    from hydra import compose, initialize
    from hydra.errors import HydraException

    for override in overrides:
        if override.startswith("hydra/launcher=submitit"):
            try:
                importlib.import_module(SUBMITIT)
            except ImportError as error:
                raise MMSpecError(missing(override, "hydra-submitit-launcher")) from error
    try:
        with initialize(version_base="1.3", config_path=None, job_name=JOB):
            compose(overrides=list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise MMSpecError(f"hydra refuses {' '.join(overrides)}: {' '.join(str(error).split())}") from error


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
    parts = settings_of(overrides, config_dir).parts
    typed = dict(map(_split, complete(overrides)))
    chosen = typed.pop("experiment", None)
    runs = {}
    for name, line in (parts or {}).items():
        words = line.split() if isinstance(line, str) else []
        if not words or not all("=" in word for word in words):
            raise MMSpecError(
                f"part {name!r} is {line!r}: it must be overrides, such as 'sampling=sampled dtype=bfloat16'"
            )
        own = dict(map(_split, map(listed, words)))
        experiment = own.pop("experiment", chosen)
        if all(typed.get(key, value) == value for key, value in own.items()):
            runs[name] = [f"{EXPERIMENT}{experiment}"] if experiment is not None else []
            runs[name] += [f"{key}={value}" for key, value in {**own, **typed, "parts": "null"}.items()]
    if parts and not runs:
        named = "; ".join(f"{name}: {line}" for name, line in parts.items())
        raise MMSpecError(f"no part goes with {' '.join(complete(overrides))}. The parts are {named}")
    return runs


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value
