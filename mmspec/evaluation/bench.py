"""One run of `mmspec bench`: compose, build, measure, and leave a bundle."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf

from ..data import Source
from ..decoding.sampling import Sampling
from ..embedded import EMBEDDED_TARGET, EMBEDDED_VIDEO_TARGET, with_own_questions
from ..errors import MMSpecError
from ..settings import configuration
from ..version import __version__
from .bundle import FORMAT, BundleWriter
from .machine import circumstances
from .measure import Measurement, Progress, Protocol
from .methods import GROUPS, Method, build_engines, plan
from .questions import grouped

EXPERIMENT, BATCH_SIZE, COUNT = "experiment=", "batch_size", "task.count"
DRAWN_TASKS = ("tiny", "scenes", "charts", "documents", "questions", "tiny-video")
"""Tasks of pictures and clips that mmspec draws itself, any number of them."""
QUESTIONS = 4
"""Pictures of each kind that they ask about, if nothing else is said."""


@dataclass(kw_only=True)
class BenchSettings(Protocol):
    """The top-level keys of `configs/bench.yaml`, where their defaults and meanings are.

    Raises:
        MMSpecError: for what cannot be measured or shown, with the setting and what it may be.
    """

    max_new_tokens: int
    budget: int | None
    control: bool | None
    threads: int | None
    units: str | None
    json: bool
    parts: dict[str, str] | None

    def __post_init__(self) -> None:
        from .conventions import explained

        super().__post_init__()
        for name, least in (("max_new_tokens", 1), ("threads", 1), ("budget", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MMSpecError(f"{name}={value} must be at least {least}")
        if abs(self.seed) > 2**53:
            raise MMSpecError(f"seed={self.seed} must be between -2**53 and 2**53")
        if self.units is not None:
            explained(self.units)
            if self.batches != [1]:
                sizes = ",".join(map(str, self.batches))
                raise MMSpecError(f"units={self.units} needs one prompt at a time, and batch_size={sizes}")


def complete(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with what they imply: several batch sizes as a list, and an experiment unless one is chosen.

    Who chooses a drafter means that one method, and who lists methods those; who chooses another target cannot use the
    embedded drafters, but the one that watches clips has its own. And the embedded tasks get as many questions as the
    largest batch holds.
    """
    overrides = with_own_questions([*map(listed, overrides), *enough_questions(overrides)], "task")
    keys = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    if "experiment" in keys:
        return list(overrides)
    if any(key.partition(".")[0] in (*GROUPS, "methods") for key in keys):
        return [*overrides, f"{EXPERIMENT}one"]
    if (target := keys.get("target", EMBEDDED_TARGET)) != EMBEDDED_TARGET:
        return [*overrides, f"{EXPERIMENT}{'clips' if target == EMBEDDED_VIDEO_TARGET else 'untrained'}"]
    return list(overrides)


def listed(override: str) -> str:
    """Return `batch_size=1,4` as `batch_size=[1,4]`: without brackets hydra would take it for a sweep."""
    key, _, value = override.partition("=")
    several = key == BATCH_SIZE and "," in value and not value.startswith("[")
    return f"{key}=[{value}]" if several else override


def enough_questions(overrides: Sequence[str]) -> list[str]:
    """Return the override by which the pictures that ship fill the largest batch, unless their number is given."""
    given = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    largest = max((int(word) for word in re.findall(r"\d+", given.get(BATCH_SIZE, ""))), default=1)
    ours = "experiment" not in given or given["experiment"] in configuration.option_files("bench", "experiment")
    if not ours or given.get("task", "tiny") not in DRAWN_TASKS or COUNT in given or largest <= QUESTIONS:
        return []
    return [f"{COUNT}={largest}"]


def settings_of(overrides: Sequence[str], config_dir: str | None = None) -> BenchSettings:
    """Return the top-level keys of a run, of one part or of several."""
    return configuration.typed(configuration.compose("bench", complete(overrides), config_dir), BenchSettings)


def prepare_run(overrides: Sequence[str], config_dir: str | None = None) -> tuple[Any, BenchSettings, list[Method]]:
    """Compose a run and its methods, and check its settings, without loading or building anything.

    Raises:
        MMSpecError: for whatever is wrong with the overrides, with the nearest thing that exists.
    """
    overrides = complete(overrides)
    config = configuration.compose("bench", overrides, config_dir)
    settings = configuration.typed(config, BenchSettings)
    if settings.parts:
        raise MMSpecError(
            f"{' '.join(overrides)} is several runs ({', '.join(settings.parts)}), and here there can be one: "
            "`mmspec bench` without --multirun runs them all, parts=null none"
        )
    configuration.typed(config.sampling, Sampling)
    control = config.dtype != "float32" if settings.control is None else settings.control
    return config, settings, plan(config, overrides, config_dir, control)


def benchmark(
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    config_dir: str | None = None,
    progress: Progress = lambda done, total, what: None,
    notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """Measure, or go on with an interrupted measurement, and return the folder of the bundle.

    A method that fails does not stop the others: `Bundle.open(folder).failures` says which did, and why.

    Args:
        overrides: as on the command line of `mmspec bench`.
        output: the bundle's folder; by default a new one under `runs/bench`.
        config_dir: a folder of the user's own configurations.
        progress: called with blocks done, blocks in all, and what is being done.
        notice: called with a line when a method fails.

    Raises:
        MMSpecError: for anything the caller can put right, if no method is left to measure.
        Divergence: likewise, if the last one is lossless and wrote another text than plain decoding.
    """
    config, settings, methods = prepare_run(overrides, config_dir)

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()
    source = source_of(config, settings)
    sampling = configuration.typed(config.sampling, Sampling)
    folder = Path(output) if output is not None else new_folder()
    with BundleWriter(folder, OmegaConf.to_yaml(config, resolve=True)) as writer:
        target = configuration.build(config.target)
        build_engines(methods, target, sampling, settings.max_new_tokens, settings.budget, settings.batches)
        Measurement(target, methods, source, settings, writer, notice).run(
            {
                "format": FORMAT,
                "mmspec": __version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "finished": None,
                **circumstances(target, str(config.target.name)),
                "task": source.describe(),
                "sampling": asdict(sampling),
                "max_new_tokens": settings.max_new_tokens,
                "overrides": list(overrides),
                "config_dir": None if config_dir is None else str(Path(config_dir).resolve()),
                "command": shlex.join(["mmspec", "bench", *overrides]),
            },
            progress,
        )
    return folder


def source_of(config: Any, settings: BenchSettings) -> Source:
    """Return the questions that a run asks.

    Raises:
        MMSpecError: if they cannot be read, or there are none.
    """
    source = configuration.build(config.task)
    if next(grouped(source, limit=settings.limit), None) is None:
        raise MMSpecError("the task has no question: give one that has")
    return source


def new_folder(root: str | Path = "runs/bench") -> Path:
    """Return a folder that does not exist yet, named by the time."""
    base = Path(root) / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}_{number}")
    return folder
