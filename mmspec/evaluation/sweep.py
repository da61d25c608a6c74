"""Many runs: all combinations of the values given, or the parts of an experiment, here or through a hydra launcher."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from .bundle import COMPLETE, ERROR, MANIFEST, Bundle

SWEEP = "sweep.json"


def is_hydra(override: str) -> bool:
    """Whether an override is for hydra itself, such as `hydra/launcher=submitit_slurm`."""
    return override.lstrip("+~").startswith("hydra")


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values in overrides such as `drafter=eagle,eagle3 tree.total=range(8,33,8)`.

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
        folder: of the sweep.
        jobs: the overrides of each job.
        config_dir: the user's configurations.
        hydra: overrides for hydra itself: who launches the jobs, and how.
        names: of the jobs, if they are the parts of an experiment.
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
            parts: the jobs by name, see `mmspec.evaluation.parts`.

        Raises:
            MMSpecError: if any job names what does not exist, or the folder holds another sweep.
        """
        from .bench import prepare_run

        jobs = list((parts or {}).values()) or expand([override for override in overrides if not is_hydra(override)])
        for job in jobs:
            try:
                prepare_run(job, config_dir)
            except MMSpecError as error:
                raise MMSpecError(f"job {' '.join(job) or '(no overrides)'}: {error}") from error
        config_dir = None if config_dir is None else str(Path(config_dir).resolve())
        hydra = [override for override in overrides if is_hydra(override)]
        sweep = cls(folder, jobs, config_dir, hydra, parts and list(parts))
        path = sweep.folder / SWEEP
        if path.exists():
            if cls.open(folder).jobs != jobs:
                raise MMSpecError(f"{folder} holds another sweep: choose another --output, or --resume {folder}")
        elif sweep.folder.exists() and any(sweep.folder.iterdir()):
            raise MMSpecError(f"{folder} is not empty and holds no sweep: choose another --output")
        plan = {"jobs": jobs, "config_dir": config_dir, "hydra": sweep.hydra, "names": sweep.names}
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise MMSpecError(
                f"{path} cannot be written: {error.strerror or error}; choose another --output"
            ) from error
        return sweep

    @classmethod
    def open(cls, folder: str | Path) -> Sweep:
        """The sweep that a folder holds."""
        path = Path(folder) / SWEEP
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            return cls(Path(folder), plan["jobs"], plan["config_dir"], plan["hydra"], plan["names"])
        except (OSError, ValueError, KeyError) as error:
            raise MMSpecError(f"{path} cannot be read: {error!r}") from None

    def folder_of(self, job: int) -> Path:
        """Where the bundle of a job goes: its name, or its number and what sets it apart from the other jobs."""
        if self.names is not None:
            return self.folder / self.names[job]
        own = [override for override in self.jobs[job] if not all(override in other for other in self.jobs)]
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(own))
        return self.folder / f"{job:0{len(str(len(self.jobs) - 1))}d},{name}"[:200].rstrip(",")

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
        """The jobs that are not complete, and why."""
        reasons = {}
        for number in range(len(self.jobs)):
            folder = self.folder_of(number)
            if (folder / MANIFEST).exists():
                manifest = Bundle.open(folder).manifest
                if manifest["status"] != COMPLETE:
                    reasons[number] = manifest["error"] or manifest["status"]
            elif (folder / ERROR).exists():
                reasons[number] = (folder / ERROR).read_text(encoding="utf-8").strip()
            else:
                reasons[number] = "it was not started"
        return reasons

    @property
    def bundles(self) -> list[Path]:
        """The folders of the complete jobs."""
        return [self.folder_of(number) for number in range(len(self.jobs)) if self._complete(number)]

    def _complete(self, job: int) -> bool:
        folder = self.folder_of(job)
        return (folder / MANIFEST).exists() and Bundle.open(folder).complete

    def _quoted(self) -> str:
        return str(self.folder.resolve()).replace("\\", r"\\").replace("'", r"\'")


def run_job(job: Any) -> None:
    """One job, in whatever process the launcher has put it: what hydra calls."""
    from .bench import benchmark

    sweep = Sweep.open(job.sweep)
    folder = sweep.folder_of(job.job)
    try:
        benchmark(sweep.jobs[job.job], folder, sweep.config_dir, announcer(folder.name))
    except Exception as error:
        if not isinstance(error, MMSpecError):
            traceback.print_exc()
        if not (folder / MANIFEST).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text(f"{error}\n", encoding="utf-8")
        print(f"{folder.name}: {error}", file=sys.stderr)
    else:
        (folder / ERROR).unlink(missing_ok=True)


def announcer(name: str) -> Callable[[int, int, str], None]:
    """Says how far a job is, ten times: a launcher may put its output into a file."""
    said = set()

    def progress(done: int, total: int, what: str) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth not in said:
            said.add(tenth)
            print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)

    return progress


@contextlib.contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """hydra's launchers read their arguments from the command line alone."""
    before, sys.argv = sys.argv, ["mmspec bench", *arguments]
    try:
        yield
    finally:
        sys.argv = before
