"""What suffix decoding finds: in the request alone, in a store of other answers, and in answers to the same questions.

    python benchmarks/suffix.py --answers runs/answers --plot FILE

Answers of the embedded model to `--count` prompts of each of the four kinds of pictures, greedy. Prints a Markdown
table of mean accepted lengths (tokens per round, the target's own included). The stores hold the first answers of a
folder that `mmspec distill` wrote, about other pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmspec
from mmspec.drafters import Drafter, NGramDrafter, SuffixDrafter
from mmspec.training.answers import Answers
from mmspec.zoo import TASKS, sample


def main() -> None:
    """Measure, print, and perhaps draw."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--answers", default="runs/answers", help="a folder that mmspec distill wrote")
    arguments.add_argument("--count", type=int, default=12, help="prompts of each kind")
    arguments.add_argument("--tokens", type=int, default=96, help="longest answers")
    arguments.add_argument("--stores", type=int, nargs="+", default=[16, 64, 256, 1024], help="answers in the stores")
    arguments.add_argument("--plot", type=Path, help="file of the plot")
    given = arguments.parse_args()
    target = mmspec.load_target("tiny")
    known = Answers(given.answers)
    answers = [known[number].answer_ids for number in range(min(len(known), max(given.stores)))]
    again = SuffixDrafter(target)
    lengths(target, again, given)  # the first time
    drafters: dict[str, Drafter] = {"ngram": NGramDrafter(target), "the request alone": stored(target, [])}
    drafters |= {f"{count} answers": stored(target, answers[:count]) for count in given.stores}
    drafters |= {f"{max(given.stores)} answers, chain": stored(target, answers, branching=False)}
    drafters |= {"the same again": again}
    print(f"| looked up in | {' | '.join(TASKS)} |\n|---|{'--:|' * len(TASKS)}", flush=True)
    table = {}
    for name, drafter in drafters.items():
        table[name] = lengths(target, drafter, given)
        print(f"| {name} | {' | '.join(f'{length:.2f}' for length in table[name])} |", flush=True)
    if given.plot:
        draw(table, given.plot)


def stored(target, answers, **settings) -> SuffixDrafter:
    """Return a drafter that knows some answers, and learns no more."""
    drafter = SuffixDrafter(target, learn=False, **settings)
    for answer in answers:
        drafter.store.add(answer)
    return drafter


def lengths(target, drafter: Drafter, given: argparse.Namespace) -> list[float]:
    """Return the mean accepted length on every task."""
    found = []
    for task in TASKS:
        asked = [sample(task, "test", 100 + number) for number in range(given.count)]
        prompts, pictures = [one.prompt for one in asked], [[one.image] for one in asked]
        out = mmspec.generate(target, drafter, prompts, pictures, max_new_tokens=given.tokens)
        found.append(out.stats.mean_acceptance_length)
    return found


def draw(table: dict[str, list[float]], file: Path) -> None:
    """Draw the table as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.85 / len(table)
    colours = pyplot.get_cmap("viridis")
    for number, (name, found) in enumerate(table.items()):
        places = [task + (number - len(table) / 2) * width for task in range(len(TASKS))]
        axes.bar(places, found, width, label=name, color=colours(number / len(table)))
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_yscale("log", base=2)
    axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_ylim(0.9, 32)
    axes.set_ylabel("tokens per round")
    axes.legend(ncols=4, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
