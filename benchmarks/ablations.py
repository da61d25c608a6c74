"""Do the methods behave as their papers say? SpecVLM's gate, SAGE's depth, and drafters trained without a part.

    python benchmarks/ablations.py gate sage
    python benchmarks/ablations.py trained runs/vispec runs/vispec_without_summary ...
    python benchmarks/ablations.py imitation runs/fastvlm_mlp
    python benchmarks/ablations.py passes runs/specflash_k1 runs/specflash_k4 ...
    python benchmarks/ablations.py scopes runs/answers runs/sparrow runs/sparrow_single ...

`gate`: which branch the elastic compressor of `tiny/specvlm` chooses, by task. `sage`: depth, width and what was
accepted of SAGE's trees, by the confidence that shaped them. `trained`: the simulated acceptance that finished
trainings have reached on the same held-out answers, side by side. `imitation`: what the first four layers guess
by themselves, with the imitation networks of finished trainings, and with that of `tiny/fastvlm`. `passes`: what heads
that guess several tokens a pass accept, how often they run, and how long that takes. `scopes`: what heads accept that
attend to all of a prompt, and to its text alone, simulated on the answers that their trainings held out. Prints
Markdown, and draws into `--plots FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import mmspec
from mmspec.compressors import Elastic
from mmspec.drafters import Drafter, EarlyExitDrafter
from mmspec.inputs import prepare
from mmspec.training.answers import open_source
from mmspec.training.data import Loader, split
from mmspec.training.teacher import Teacher
from mmspec.training.validation import SimulatedAcceptance
from mmspec.trees import Chain
from mmspec.trees.sage import confidence

EXAMPLES = 24
PICTURES = 6  # of each task, where every drafter writes an answer to each
CONFIDENCES = (0.0, 0.6, 0.8, 0.9, 0.97, 1.01)  # where the rows of SAGE's table begin and end


def table(headings: list[str], rows: list[list[str]]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def requests_of(target: mmspec.Target, task: str):
    for index in range(EXAMPLES):
        image, prompt, _ = mmspec.zoo.sample(task, "test", 100 + index)
        yield prepare(target, prompt, [image])


def draw(name: str, folder: Path | None, draw_on: Callable[[Any], None], size: tuple[float, float] = (6, 3)) -> None:
    """Write one plot, if a folder for plots was given."""
    if folder is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw_on(figure)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110)


@torch.inference_mode()
def gate(target: mmspec.Target, plots: Path | None) -> None:
    """Branches by task."""
    drafter = mmspec.load_drafter("tiny/specvlm", target)
    elastic = drafter.compressor
    assert isinstance(elastic, Elastic)
    names = [type(branch).__name__ for branch in elastic.branches]
    chosen: list[int] = []
    elastic.register_forward_pre_hook(lambda module, args: chosen.append(module.choice(args[0])))
    counts = {}
    for task in mmspec.zoo.TASKS:
        chosen.clear()
        for request in requests_of(target, task):
            mmspec.generate(target, drafter, inputs=request, max_new_tokens=2)
        counts[task] = [Counter(chosen)[number] for number in range(len(names))]
    table([f"branch chosen, of {EXAMPLES}", *names], [[task, *map(str, row)] for task, row in counts.items()])

    def bars(figure) -> None:
        axes, left = figure.subplots(), [0] * len(counts)
        for number, name in enumerate(names):
            column = [row[number] for row in counts.values()]
            axes.barh(list(counts), column, left=left, label=name)
            left = [a + b for a, b in zip(left, column, strict=True)]
        axes.set(xlabel="pictures", title="the branch that SpecVLM's gate chooses")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    draw("gate", plots, bars, (7, 2.5))


def recording_sage(seen: list[tuple[float, int, int]]) -> mmspec.trees.SageTree:
    """SAGE's trees, which note the confidence behind every template, and its depth and width."""

    class RecordingSage(mmspec.trees.SageTree):
        def template(self, profile, limit=None):
            nodes = super().template(profile, limit)
            # Not on itself: every request has a copy of its own.
            seen.append((confidence(profile), len(nodes[-1]), sum(len(path) == 1 for path in nodes)))
            return nodes

    return RecordingSage()


@torch.inference_mode()
def sage(target: mmspec.Target, plots: Path | None) -> None:
    """What SAGE makes of the entropy, and whether it was right."""
    drafter = mmspec.load_drafter("tiny/eagle3", target)
    rounds: list[tuple[float, int, int, int]] = []
    for task in mmspec.zoo.TASKS:
        for request in requests_of(target, task):
            seen: list[tuple[float, int, int]] = []
            out = mmspec.generate(target, drafter, inputs=request, tree=recording_sage(seen), max_new_tokens=128)
            # The first template of a request is made before anything is known, the last round may be cut short.
            pairs = list(zip(seen, out.stats.rounds, strict=True))[1:-1]
            rounds += [(*one, record.accepted[0]) for one, record in pairs]
    parts = [[row for row in rounds if low <= row[0] < high] for low, high in pairwise(CONFIDENCES)]
    spans = [f"{low:.2f} to {min(high, 1):.2f}" for low, high in pairwise(CONFIDENCES)]
    means = [[statistics.mean(column) for column in zip(*part, strict=True)] for part in parts]
    rows = [
        [span, str(len(part)), *(f"{mean:.2f}" for mean in row[1:])]
        for span, part, row in zip(spans, parts, means, strict=True)
    ]
    table(["confidence", "rounds", "depth", "width", "accepted"], rows)

    def lines(figure) -> None:
        axes = figure.subplots()
        for number, (name, marker) in enumerate((("depth", "o"), ("width", "s"), ("accepted", "^")), start=1):
            axes.plot([row[0] for row in means], [row[number] for row in means], marker=marker, label=name)
        axes.set(xlabel="confidence: 1 - normalised entropy", ylabel="tokens", title="SageTree")
        axes.legend()

    draw("sage", plots, lines)


def trained(folders: list[str], plots: Path | None) -> None:
    """What finished trainings have reached."""
    found = {}
    for folder in folders:
        metadata = json.loads((Path(folder) / "best" / "config.json").read_text())["metadata"]
        found[Path(folder).name] = (metadata["steps"], metadata["validation"])
    lengths = {
        name: [report["simulated"]["mean_acceptance_length"]]
        + [report["tasks"][task]["mean_acceptance_length"] for task in mmspec.zoo.TASKS]
        for name, (_, report) in found.items()
    }
    rows = [
        [
            name,
            str(steps),
            *(f"{length:.2f}" for length in lengths[name]),
            " ".join(f"{100 * rate:.0f}" for rate in report["simulated"]["acceptance_by_position"]),
        ]
        for name, (steps, report) in found.items()
    ]
    table(["trained", "steps", "all", *mmspec.zoo.TASKS, "by position, %"], rows)

    draw("trained", plots, lambda figure: bars(figure, lengths), (8, 3))


def imitation(target: mmspec.Target, folders: list[str], plots: Path | None) -> None:
    """Tokens a pass and right first guesses, with and without a network above the first layers."""
    embedded = mmspec.load_drafter("tiny/fastvlm", target)
    drafters: dict[str, Drafter] = {"none": EarlyExitDrafter(target, layers=embedded.first)}
    for folder in folders:
        drafters[Path(folder).name] = mmspec.load_drafter(str(Path(folder) / "best"), target)
    drafters["tiny/fastvlm"] = embedded
    lengths, rows = {}, []
    for name, drafter in drafters.items():
        by_task = rounds_of(target, drafter, Chain(5))
        everything = [one for found in by_task.values() for one in found]
        lengths[name] = emitted_of(by_task)
        first = statistics.mean(accepted > 0 for one in everything for accepted in one.accepted)
        rows.append([name, *(f"{length:.2f}" for length in lengths[name]), f"{100 * first:.0f} %"])
    table(["imitation", "all", *mmspec.zoo.TASKS, "first guess right"], rows)
    draw("imitation", plots, lambda figure: bars(figure, lengths), (8, 3))


def passes(target: mmspec.Target, folders: list[str], plots: Path | None) -> None:
    """Tokens a pass of the target, passes of the head a round, and the time of drafting, with chains of eight."""
    drafters = {Path(folder).name: mmspec.load_drafter(str(Path(folder) / "best"), target) for folder in folders}
    drafters |= {f"tiny/{name}": mmspec.load_drafter(f"tiny/{name}", target) for name in ("specflash", "eagle3")}
    lengths, rows = {}, []
    for name, drafter in drafters.items():
        kind, ran = type(drafter), Counter[str]()
        layers = kind._layers

        def counting(self, *args, layers=layers, ran=ran):
            ran["passes"] += 1
            return layers(self, *args)

        with patch.object(kind, "_layers", counting):
            by_task = rounds_of(target, drafter, Chain(8))
        everything = [one for found in by_task.values() for one in found]
        lengths[name] = emitted_of(by_task)
        cost = f"{ran['passes'] / len(everything):.1f}"
        time = f"{1e3 * statistics.median(one.seconds['draft'] for one in everything):.1f}"
        rows.append([name, *(f"{length:.2f}" for length in lengths[name]), cost, time])
    table(["head", "all", *mmspec.zoo.TASKS, "its passes a round", "drafting a round, ms"], rows)
    draw("passes", plots, lambda figure: bars(figure, lengths, "chain of 8"), (9, 3))


@torch.no_grad()
def scopes(target: mmspec.Target, folders: list[str], plots: Path | None) -> None:
    """Simulated acceptance of heads by what they attend to, on what their trainings held out of the first folder's
    answers."""
    answers, *trainings = folders
    told = [json.loads((Path(folder) / "training.json").read_text())["settings"] for folder in trainings]
    chosen = {(each["held_out"], each["seed"], each["max_length"]) for each in told}
    if len(chosen) != 1:
        raise SystemExit(f"these trainings held out other answers than one another: {sorted(chosen)}")
    ((count, seed, longest),) = chosen
    examples = open_source(answers)
    _, held_out = split(len(examples), count, seed)
    heads = {Path(folder).name: mmspec.load_drafter(str(Path(folder) / "best"), target) for folder in trainings}
    drafters = {f"{name}, {scope}": head.with_scope(scope) for name, head in heads.items() for scope in ("all", "text")}
    teacher = Teacher(target, [layer for drafter in drafters.values() for layer in drafter.lesson_layers])
    found = {name: SimulatedAcceptance(5) for name in drafters}
    for batch in Loader(target, examples, longest, pools=[held_out]).passes(held_out, 8):
        lesson = teacher.lesson_of(batch)
        for name, drafter in drafters.items():
            found[name].add(drafter, lesson)
    lengths, rows = {}, []
    for name, simulated in found.items():
        summaries = [simulated.summary(), *(simulated.summary(task) for task in mmspec.zoo.TASKS)]
        lengths[name] = [one["mean_acceptance_length"] for one in summaries]
        rates = " ".join(f"{100 * rate:.0f}" for rate in summaries[0]["acceptance_by_position"])
        rows.append([name, *(f"{one:.2f}" for one in lengths[name]), rates])
    table(["head, sees", "all", *mmspec.zoo.TASKS, "by position, %"], rows)
    draw("scopes", plots, lambda figure: bars(figure, lengths), (9, 3))


def rounds_of(target: mmspec.Target, drafter: Drafter, tree: mmspec.trees.TreeBuilder) -> dict[str, list[Any]]:
    """Return the rounds in which a drafter answers some pictures, by task."""
    found: dict[str, list[Any]] = {task: [] for task in mmspec.zoo.TASKS}
    for task in mmspec.zoo.TASKS:
        for request in islice(requests_of(target, task), PICTURES):
            out = mmspec.generate(target, drafter, inputs=request.inputs, max_new_tokens=96, tree=tree)
            found[task] += out.stats.rounds
    return found


def emitted_of(by_task: dict[str, list[Any]]) -> list[float]:
    """Return tokens a pass, of all tasks and of each."""
    everything = [one for found in by_task.values() for one in found]
    return [
        statistics.mean(emitted for one in found for emitted in one.emitted)
        for found in (everything, *by_task.values())
    ]


def bars(figure: Any, lengths: dict[str, list[float]], tree: str = "chain of 5") -> None:
    """Tokens a pass, of all tasks and of each, side by side."""
    axes, width = figure.subplots(), 0.8 / len(lengths)
    for number, (name, values) in enumerate(lengths.items()):
        axes.bar([place + number * width for place in range(len(values))], values, width, label=name)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(1 + len(mmspec.zoo.TASKS))])
    axes.set_xticklabels(["all", *mmspec.zoo.TASKS])
    axes.set_ylabel(f"tokens a pass, {tree}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="gate, sage, or trained, imitation, passes or scopes and folders")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw a plot of each there")
    options = parser.parse_args()
    if options.what[0] == "trained":
        trained(options.what[1:], options.plots)
        return
    if measured := {"imitation": imitation, "passes": passes, "scopes": scopes}.get(options.what[0]):
        measured(mmspec.load_target("tiny"), options.what[1:], options.plots)
        return
    known = {"gate": gate, "sage": sage}
    if strange := set(options.what) - set(known):
        parser.error(f"{', '.join(sorted(strange))} is none of gate, sage, trained, imitation, passes, scopes")
    target = mmspec.load_target("tiny")
    for name in options.what:
        known[name](target, options.plots)


if __name__ == "__main__":
    main()
