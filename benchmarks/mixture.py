"""What a mixture of views guesses, beside its members: fixed weights and learnt ones.

    python benchmarks/mixture.py --plot FILE

Answers of the embedded model to `--count` prompts of each of the four kinds of pictures, greedy, drafted in chains of
five. Prints a Markdown table of mean accepted lengths (tokens per round, the target's own included) of every member
alone and of mixtures by every rule for their weights, and how far the mixture is from the best member.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmspec
from mmspec.drafters import Drafter, MixtureDrafter
from mmspec.mixtures import view_of
from mmspec.trees import Chain
from mmspec.zoo import TASKS, sample

MEMBERS = ("whole", "text", "pooled")
RULES = ("uniform", "matches", "kl", "tv", "inverse_kl", "inverse_tv")


def main() -> None:
    """Measure, print, and perhaps draw."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--count", type=int, default=12, help="prompts of each kind")
    arguments.add_argument("--tokens", type=int, default=96, help="longest answers")
    arguments.add_argument("--length", type=int, default=5, help="guesses per round")
    arguments.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="rules for the weights")
    arguments.add_argument("--plot", type=Path, help="file of the plot")
    given = arguments.parse_args()
    target = mmspec.load_target("tiny")
    model, other = (mmspec.load_drafter(f"tiny/{name}", target) for name in ("draft_model", "text_only"))
    alone: dict[str, Drafter] = {view: view_of(model, view) for view in MEMBERS} | {"text_only": other}
    mixed = {rule: MixtureDrafter(target, [member.fork() for member in alone.values()], rule) for rule in given.rules}
    print(f"| drafter | {' | '.join(TASKS)} |\n|---|{'--:|' * len(TASKS)}", flush=True)
    table = {}
    for name, drafter in (alone | mixed).items():
        table[name] = _lengths(target, drafter, given)
        print(f"| {name} | {' | '.join(f'{length:.2f}' for length in table[name])} |", flush=True)
    best = [max(table[name][place] for name in alone) for place in range(len(TASKS))]
    for rule in given.rules:
        apart = (f"{length / most - 1:+.1%}" for length, most in zip(table[rule], best, strict=True))
        print(f"| {rule}, over the best member | {' | '.join(apart)} |")
    if given.plot:
        _draw(table, given.plot)


def _lengths(target, drafter: Drafter, given: argparse.Namespace) -> list[float]:
    """Return the mean accepted length on every task."""
    found = []
    for task in TASKS:
        asked = [sample(task, "test", 100 + number) for number in range(given.count)]
        out = mmspec.generate(
            target,
            drafter,
            [one.prompt for one in asked],
            [[one.image] for one in asked],
            tree=Chain(given.length),
            max_new_tokens=given.tokens,
        )
        found.append(out.stats.mean_acceptance_length)
    return found


def _draw(table: dict[str, list[float]], file: Path) -> None:
    """Draw the table as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.85 / len(table)
    colours = pyplot.get_cmap("tab10")
    for number, (name, lengths) in enumerate(table.items()):
        places = [task + (number - len(table) / 2) * width for task in range(len(TASKS))]
        learnt = name in RULES
        axes.bar(places, lengths, width, label=name, color=colours(number), alpha=1.0 if learnt else 0.45)
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_ylabel("tokens per round")
    axes.legend(ncols=5, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
