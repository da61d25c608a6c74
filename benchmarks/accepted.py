"""What drafters for the embedded model guess right on each of its tasks: stages of a training, or whatever has a name.

    python benchmarks/accepted.py blind=tiny/text_only massv=runs/massv/best --plot FILE
    python benchmarks/accepted.py "a tenth=drafter=std" "a third=drafter=std drafter.keep=0.33"

A drafter is a name that `mmspec.load_drafter` takes, or what is typed behind `mmspec generate`. Answers to `--count`
prompts of each of the four kinds of pictures, greedy, drafted in chains. Prints a Markdown table of mean accepted
lengths (tokens per round, the target's own included).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmspec
from mmspec.drafters import Drafter
from mmspec.settings import configuration
from mmspec.trees import Chain
from mmspec.zoo import TASKS, sample


def main() -> None:
    """Measure, print, and perhaps draw."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("drafters", nargs="+", metavar="LABEL=NAME", help="what drafts, and how to call it")
    arguments.add_argument("--count", type=int, default=12, help="prompts of each kind")
    arguments.add_argument("--tokens", type=int, default=96, help="longest answers")
    arguments.add_argument("--length", type=int, default=5, help="guesses per round")
    arguments.add_argument("--plot", type=Path, help="file of the plot")
    given = arguments.parse_args()
    target = mmspec.load_target("tiny")
    print(f"| drafter | {' | '.join(TASKS)} | all |\n|---|{'--:|' * (len(TASKS) + 1)}", flush=True)
    table = {}
    for label, _, name in (one.partition("=") for one in given.drafters):
        drafter, found = drafter_of(name, target), []
        for task in TASKS:
            asked = [sample(task, "test", 100 + number) for number in range(given.count)]
            prompts, pictures = [one.prompt for one in asked], [[one.image] for one in asked]
            out = mmspec.generate(
                target, drafter, prompts, pictures, tree=Chain(given.length), max_new_tokens=given.tokens
            )
            found.append(out.stats.mean_acceptance_length)
        table[label] = [*found, sum(found) / len(found)]
        print(f"| {label} | {' | '.join(f'{length:.2f}' for length in table[label])} |", flush=True)
    if given.plot:
        draw(table, given.plot)


def drafter_of(name: str, target: mmspec.Target) -> Drafter:
    """Return a drafter by its name, or by overrides of a configuration."""
    if "drafter=" not in name:
        return mmspec.load_drafter(name, target)
    return configuration.build_drafter(configuration.compose("generate", name.split()), target)


def draw(table: dict[str, list[float]], file: Path) -> None:
    """Draw the table as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    places, width = [*TASKS, "all"], 0.8 / len(table)
    for number, (label, lengths) in enumerate(table.items()):
        middles = [place + (number - len(table) / 2 + 0.5) * width for place in range(len(places))]
        axes.bar(middles, lengths, width, label=label)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylabel("tokens per round")
    axes.legend(ncols=3, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
