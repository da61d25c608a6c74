"""`mmspec train`: train a drafter, or continue an interrupted training."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import extras
from ..errors import MMSpecError, did_you_mean
from ..settings import configuration
from ..settings.trust import permission

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..training.trainer import Trainer

PRECISIONS = ("auto", "no", "bf16")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec train`."""
    parser.description = (
        "Train a drafter on answers that the target wrote itself. The same command resumes an interrupted training; "
        "with several processes: accelerate launch --num_processes N -m mmspec train ..."
    )
    parser.add_argument("--data", metavar="PATH", help="the answers: a folder that mmspec distill wrote, or a file")
    parser.add_argument("--images", metavar="FOLDER", help="where the pictures of a file are; by default beside it")
    parser.add_argument(
        "--output", metavar="FOLDER", help="where the log, the state and the drafters go; by default runs/train"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compose the configuration, build everything, train and report."""
    config = configuration.compose("train", arguments.overrides, arguments.config_dir)
    for key, path in {"answers": arguments.data, "images": arguments.images, "output": arguments.output}.items():
        if path is not None:
            configuration.put(config, key, path)

    import torch
    import transformers
    from omegaconf import OmegaConf

    from ..models.precision import computes_in_bfloat16
    from ..training.answers import open_source
    from ..training.settings import TrainingSettings
    from ..training.sharding import check_parallelism, make_accelerator
    from ..training.trainer import Trainer

    transformers.utils.logging.disable_progress_bar()
    settings = configuration.typed(config, TrainingSettings)
    if config.mixed_precision not in PRECISIONS:
        raise MMSpecError(f"mixed_precision={config.mixed_precision} must be one of {', '.join(PRECISIONS)}")
    examples = open_source(config.answers, images=config.images)
    check_tracker(config.tracker)
    suits = computes_in_bfloat16(config.device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    if config.mixed_precision == "auto":
        config.mixed_precision = "bf16" if suits else "no"
    if config.dtype == "auto":
        config.dtype = "bfloat16" if suits else "float32"
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.device == "cpu",
        log_with=config.tracker,
        project_dir=str(Path(config.output)),
    )
    check_parallelism(accelerator)  # before a large target is loaded
    config.device = config.device or str(accelerator.device)
    target = configuration.build(config.target)
    torch.manual_seed(settings.seed)
    drafter = configuration.build(config.recipe.drafter, target=target)
    if config.start is not None:
        drafter = go_on_from(config.start, drafter)
    chosen: Any = OmegaConf.to_container(config, resolve=True)
    chosen["target"].pop("device", None)  # a training may go on elsewhere
    recipe = chosen["recipe"] | {"target": chosen["target"], "mixed_precision": config.mixed_precision}
    if config.start is not None:
        recipe["start"] = config.start
    trainer = Trainer(
        drafter,
        configuration.build(config.recipe.objective),
        examples,
        config.output,
        settings,
        lambda parameters: configuration.build(config.recipe.optimizer, params=parameters),
        accelerator,
        recipe,
        config.feature_cache,
        config.recipe.get("parts"),
    )
    if config.tracker:
        accelerator.init_trackers("mmspec", config=trainer.identity())
    report = follow(trainer)
    trainer.end()
    if accelerator.is_main_process:
        print(summary(trainer, report, arguments.overrides))
        if config.json:
            print(json.dumps(report))
    return 0


def go_on_from(name: str, drafter: Drafter) -> Drafter:
    """Load the drafter to continue from, if it has the same class and settings as the recipe's own.

    Raises:
        MMSpecError: if the drafter has another class or other settings.
    """
    from ..loading import load_drafter

    first = load_drafter(name, drafter.target)
    ours, theirs = drafter.config(), first.config()
    if type(first) is not type(drafter):
        raise MMSpecError(
            f"start={name} is a {type(first).__name__}, but the recipe trains a {type(drafter).__name__}: choose the "
            "recipe that fits, or leave start out"
        )
    if other := {key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value}:
        said = ", ".join(f"{key} is {there!r} there and {here!r} here" for key, (there, here) in other.items())
        raise MMSpecError(f"start={name} does not fit the recipe: {said}; set recipe.drafter.* as it was")
    return first


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that accelerate does not know, or would silently leave out because it is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name is None:
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        raise MMSpecError(f"tracker={name} is unknown.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise MMSpecError(extras.missing(f"tracker={name}", name))


def follow(trainer: Trainer) -> dict[str, Any]:
    """Run a training and show its progress on standard error; finished work stays when it is interrupted."""
    from .progress import Display

    steps = trainer.settings.steps
    with Display("steps", quiet=not trainer.accelerator.is_main_process) as display:
        if trainer.step:
            display.say(f"going on in {trainer.output}, which has {trainer.step} of {steps} steps")

        def show(step: int, means: dict[str, float]) -> None:
            display.show(step, steps, f"loss {means['loss']:.4f}, next token {means['right 0']:.1%}")

        try:
            return trainer.run(show)
        except KeyboardInterrupt:
            print(f"{trainer.step} steps are in {trainer.output}; the same command goes on from here", file=sys.stderr)
            raise


def summary(trainer: Trainer, report: dict[str, Any], overrides: Sequence[str] = ()) -> str:
    """Return the lines to print below the progress bar; the last one is a command that can be typed.

    Args:
        overrides: overrides from the command line; the target that they name is named again.
    """
    simulated = report["simulated"]
    positions = " ".join(f"{value:.0%}" for value in simulated["acceptance_by_position"])
    length = simulated["mean_acceptance_length"]
    lines = [f"accepted by position: {positions}; mean_acceptance_length of a chain {length:.2f}"]
    for task, part in report["tasks"].items():
        lines.append(f"  {task}: {part['mean_acceptance_length']:.2f}")
    if trainer.loader.skipped:
        number, reason = next(iter(trainer.loader.skipped.items()))
        named = trainer.loader.name(number) or f"number {number + 1}"
        lines.append(
            f"{len(trainer.loader.skipped)} examples were dropped, such as {named} ({reason}): see "
            f"{trainer.output}/dropped-*.jsonl"
        )
    again = permission(trainer.drafter, trainer.drafter.compressor)
    chosen = [override for override in overrides if override.lstrip("+").startswith(("target=", "target."))]
    lines.append(shlex.join(["mmspec", "generate", *chosen, f"drafter={trainer.output / 'best'}", *again.split()]))
    return "\n".join(lines)
