"""`mmspec distill`: the target answers prompts about pictures, and the answers become a data set."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import with_own_questions
from ..errors import MMSpecError
from ..settings import configuration

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..evaluation.engines import Engine
    from ..target import Target
    from ..training.distill import Progress
    from .progress import Display

DEFAULT_OUTPUT = "runs/answers"


@dataclass
class DistillSettings:
    """Top-level keys of `configs/distill.yaml`, where their defaults and meanings are."""

    batch_size: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    shard: int
    shards: int
    compared: int
    max_failures: int | None
    url: str | None
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec distill`."""
    parser.description = (
        "Let the target answer prompts about pictures, for a drafter to learn from. The same command goes on after an "
        "interruption."
    )
    parser.add_argument(
        "--output", metavar="FOLDER", default=DEFAULT_OUTPUT, help=f"where the answers go; by default {DEFAULT_OUTPUT}"
    )
    parser.add_argument("--data", metavar="PATH", help="a file of conversations, or a folder of pictures")
    parser.add_argument(
        "--images", metavar="FOLDER", help="where the pictures of a file are; by default in the folder that it is in"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="what to ask about the pictures of a folder; repeatable"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compose the configuration, load the models, ask the questions and report."""
    chosen, flags = source_settings(arguments)
    overrides = with_own_questions([*chosen, *at_server(arguments.overrides)], "source")
    config = configuration.compose("distill", overrides, arguments.config_dir)
    settings = configuration.typed(config, DistillSettings)
    for key, (flag, _) in flags.items():
        if key not in (known := list(config.source)):  # a value that is still missing is not "in" a configuration
            has = ", ".join(name for name in known if name != "_target_")
            raise MMSpecError(f"{flag} sets {key!r}, which this source of prompts does not have; it has {has}")

    from rich.console import Console

    from .progress import Display

    console = Console(stderr=True)
    with console.status("loading"):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        import transformers

        from ..training.distill import distill

        transformers.utils.logging.disable_progress_bar()
        source = configuration.build(config.source, **{key: value for key, (_, value) in flags.items()})
        target = configuration.build(config.target)
        drafter = configuration.build(config.drafter, target=target)
    engine = other_engine(config, target, drafter, settings, lambda: console.status("loading the engine"))
    options = {name: value for name, value in vars(settings).items() if name not in ("json", "url")}
    display = Display("answers", console)
    report = ProgressReport(display, arguments.output)
    try:
        with display:
            result = distill(
                target, source, arguments.output, drafter=drafter, engine=engine, progress=report, **options
            )
    except KeyboardInterrupt:
        if report.last is not None:
            kept = f"{report.last.answers} of {report.last.total} answers are in {arguments.output}"
            print(f"{kept}; the same command goes on from here", file=sys.stderr)
        raise
    print(summary_line(result, arguments.output))
    if settings.json:
        figures = {name: getattr(result, name) for name in ("mean_tokens", "tokens_per_second")}
        print(json.dumps({**asdict(result), **figures, "folder": arguments.output}))
    return 0


def at_server(overrides: Sequence[str]) -> list[str]:
    """Return overrides with `url=URL` spelt out: it chooses the engine that asks a running server."""
    given = [override for override in overrides if override.startswith("url=")]
    address = given[-1].removeprefix("url=").strip("'\"") if given else "null"
    if address in ("", "null"):
        return list(overrides)
    engines = [override for override in overrides if override.startswith("engine=")]
    if engines and engines[-1] != "engine=server":
        raise MMSpecError(f"{given[-1]} names a server, and {engines[-1]} does not ask one: leave one of them out")
    others = [override for override in overrides if override not in (*given, *engines)]
    return ["engine=server", f"engine.url='{address}'", *others]


def other_engine(
    config: Any,
    target: Target,
    drafter: Drafter | None,
    settings: DistillSettings,
    showing: Callable[[], AbstractContextManager] = nullcontext,
) -> Callable[[], Engine] | None:
    """Return what makes the engine that answers in place of our own loop, `showing` something meanwhile; None if our
    loop does."""
    from ..decoding.sampling import Sampling
    from ..evaluation.engines import MMSpecEngine

    if config.engine["_target_"] == f"{MMSpecEngine.__module__}.{MMSpecEngine.__qualname__}":
        return None
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    given = {"target": target, "drafter": drafter, "tree": None, "verifier": None, "sampling": sampling}

    def made() -> Engine:
        with showing():
            return configuration.build(config.engine, **given, max_new_tokens=settings.max_new_tokens)

    return made


def source_settings(arguments: argparse.Namespace) -> tuple[list[str], dict[str, tuple[str, Any]]]:
    """Return the meaning of the flags about data: a choice of the source, and its settings as `{key: (flag,
    value)}`."""
    chosen, flags = [], {}
    if arguments.data is not None:
        is_folder = Path(arguments.data).is_dir()
        chosen = [f"source={'images' if is_folder else 'conversations'}"]
        flags["folder" if is_folder else "path"] = ("--data", arguments.data)
    if any(override.startswith("source=") for override in arguments.overrides):
        chosen = []  # a source of the user's own, which may read such a path too
    if arguments.images is not None:
        flags["images"] = ("--images", arguments.images)
    if arguments.prompt is not None:
        flags["prompts"] = ("--prompt", arguments.prompt)
    return chosen, flags


class ProgressReport:
    """Shows the progress of a distillation, and keeps its last state."""

    def __init__(self, display: Display, folder: str):
        self.display, self.folder = display, folder
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Show the progress and keep it as the last state."""
        done = progress.answers + progress.skipped
        if self.last is None and done:
            self.display.say(f"going on in {self.folder}, which has {done} of {progress.total} answers")
        parts = [f"{progress.tokens_per_second:.0f} tokens/s"] if progress.new_tokens else []
        parts += [f"{progress.skipped} skipped"] if progress.skipped else []
        self.display.show(done, progress.total, ", ".join(parts))
        self.last = progress


def summary_line(result: Progress, folder: str) -> str:
    """Return the line at the end of a run."""
    speed = f"{result.tokens_per_second:.1f} tokens/s" if result.new_tokens else "nothing was left to ask"
    answers = f"{result.answers} answers of {result.mean_tokens:.1f} tokens on average"
    own = []
    if result.compared:
        ties = f"{result.near_ties} near-tie{'s' * (result.near_ties != 1)}"
        own = [f"{result.compared} answers held against the target: its own, {ties}"]
    return " | ".join([answers, f"{result.skipped} skipped", *own, speed, folder])
