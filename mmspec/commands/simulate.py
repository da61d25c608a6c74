"""`mmspec bench simulate`: project the methods in a bundle to a big target and a given device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..files.storage import atomic_write_text
from ..metrics import SHOWN
from ..settings import configuration

if TYPE_CHECKING:
    from ..evaluation.reporting import Report
    from ..speed.deployment import Deployment
    from ..speed.prediction import Prediction
    from ..speed.projection import MeasuredMethod
    from ..speed.roofline import Architecture, Device

TAKES = "BUNDLE [BUNDLE ...] [key=value]"

NOTE = (
    "These are projections, not measurements: tokens per pass, nodes and levels are those that the bundles measured on "
    "{measured}, every task counting the same; times are a roofline, max(bytes / bandwidth, operations / compute) + "
    "{launch:g} us a layer + {overhead:g} ms a round, at the peaks of {device}: {bandwidth:g} GB/s, {compute:g} "
    "TFLOP/s{gpus}. Prefix {prefix} tokens, batch {batch}, {width:g} bytes a number. A drafter trained for the bigger "
    "target would have another acceptance."
)
HEADINGS = (
    "method",
    SHOWN["mean_acceptance_length"],
    "draft ms",
    "score ms",
    "round ms",
    SHOWN["tokens_per_second"],
    SHOWN["speedup_decode"],
    SHOWN["limit"],
    SHOWN["share"],
    SHOWN["free_drafting"],
)
LEFT_OUT = "Left out, because they failed or did not answer every task: {names}."


@dataclass
class SimulateSettings:
    """Top-level keys of `configs/simulate.yaml`, where their defaults and meanings are."""

    models: list[str]
    device: str
    bandwidth: float | None
    compute: float | None
    gpus: int
    bytes: float
    prefix: int
    batch: int
    launch: float
    overhead: float
    share: float | None
    structures: dict[str, Any] | None
    json: bool
    debug: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec bench simulate`."""
    parser.description = (
        "Project the methods in bundles of mmspec bench to targets of 7B, 13B and 72B on a device. Nothing is run: the "
        "acceptance is the bundle's, the times are a roofline."
    )
    parser.add_argument("--output", metavar="DIR", help="write projection.md and projection.json there")
    parser.add_argument("--partial", action="store_true", help="use what there is of bundles that are not complete")


def run(arguments: argparse.Namespace) -> int:
    """Read the bundles, project, print and write."""
    folders = [word for word in arguments.overrides if Path(word).is_dir()]
    overrides = [word for word in arguments.overrides if word not in folders]
    if gone := [word for word in overrides if "=" not in word]:
        raise MMSpecError(f"{gone[0]}: there is no such folder; {_usage()}")
    settings = configuration.typed(configuration.compose("simulate", overrides, arguments.config_dir), SimulateSettings)
    if not folders:
        raise MMSpecError(f"name the bundles whose acceptance is to be projected: {_usage()}")

    from rich.console import Console

    from ..evaluation.reporting import report
    from ..evaluation.sheets import WIDTH, Sheet, Shown, markdown_text
    from ..speed.deployment import Deployment
    from ..speed.projection import methods_of, project_all
    from ..speed.roofline import device_of, model_of

    device = device_of(settings.device, settings.bandwidth, settings.compute, settings.gpus)
    setting = Deployment(
        device, settings.prefix, settings.batch, settings.bytes, settings.launch * 1e-6, settings.overhead * 1e-3
    )
    made = report(folders, partial=arguments.partial, mixed=True)
    methods = methods_of(made.rows, settings.structures or {}, settings.share)
    projected = project_all(methods, settings.models, setting)
    notes = [_note(settings, device, made)]
    if gaps := [row.method for row in made.rows if row.mean is None]:
        notes.append(LEFT_OUT.format(names="; ".join(gaps)))
    notes += [line for name in settings.models if (line := _room(name, model_of(name), setting))]
    sheets = [Sheet(_title(name, found[0]), HEADINGS, _cells(methods, found)) for name, found in projected.items()]

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(Shown(sheets, notes))
    values = {
        "projection": True,
        "notes": notes,
        "settings": vars(settings),
        "bundles": [str(folder) for folder in folders],
        "models": {
            name: {method.label: one.as_json() for method, one in zip(methods, predictions, strict=True)}
            for name, predictions in projected.items()
        },
    }
    if arguments.output is not None:
        parts = [f"## {sheet.title}\n\n{sheet.markdown()}" for sheet in sheets]
        text = "\n\n".join(["# Projection", *parts, "\n".join(f"- {markdown_text(note)}" for note in notes)])
        text += "\n"
        for path in _write(Path(arguments.output), text, values):
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    if settings.json:
        print(json.dumps(values))
    return 0


def _usage() -> str:
    return f"mmspec bench simulate {TAKES}"


def _cells(methods: Sequence[MeasuredMethod], predictions: Sequence[Prediction]) -> list[list[str]]:
    rows = []
    for method, one in zip(methods, predictions, strict=True):
        times = [f"{1e3 * value:.1f}" for value in (one.draft, one.score, one.seconds)]
        speeds = [f"{one.speedup:.2f}", f"{one.limit:.2f}", f"{one.share:.0%}", f"{one.levers['free_drafting']:.2f}"]
        rows.append([method.label, f"{one.tokens:.2f}", *times, f"{one.tokens_per_second:.0f}", *speeds])
    return rows


def _title(name: str, one: Prediction) -> str:
    return f"PROJECTION to {name}: plain decoding {1e3 * one.plain:.1f} ms a token, {one.rows / one.plain:.0f} tokens/s"


def _note(settings: SimulateSettings, device: Device, made: Report) -> str:
    measured = "; ".join(dict.fromkeys(f"{g.conditions['target']} in {g.conditions['dtype']}" for g in made.groups))
    return NOTE.format(
        measured=measured,
        launch=settings.launch,
        overhead=settings.overhead,
        device=settings.device,
        bandwidth=device.bandwidth,
        compute=device.compute,
        gpus=f" ({settings.gpus} together, at no cost of talking)" if settings.gpus > 1 else "",
        prefix=settings.prefix,
        batch=settings.batch,
        width=settings.bytes,
    )


def _room(name: str, model: Architecture, setting: Deployment) -> str | None:
    needed = setting.gigabytes(model)
    if needed <= setting.device.memory:
        return None
    return (
        f"{name} does NOT fit: weights and cache take {needed:.0f} GB and the device has {setting.device.memory:g} GB. "
        "Set gpus=, bytes=1 (or 0.5) for quantised weights, or a smaller prefix or batch."
    )


def _write(folder: Path, text: str, values: dict[str, Any]) -> list[Path]:
    paths = [folder / "projection.md", folder / "projection.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, (text, json.dumps(values, indent=1) + "\n"), strict=True):
            atomic_write_text(path, content)
    except OSError as error:
        raise MMSpecError(f"the projection cannot be written to {folder}: {error.strerror or error}") from error
    return paths
