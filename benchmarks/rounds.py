"""What is decided anew before every round: what a gate spares, what a bandit chooses, what a router shows.

    python benchmarks/rounds.py viskip --count 6
    python benchmarks/rounds.py routing --drafter tiny/eagle --plots FOLDER
    python benchmarks/rounds.py arms --drafter tiny/text_only

`viskip`: the embedded model with several thresholds of `VisualAttention`. For every threshold and task: the share of
rounds that are plain steps, tokens per pass, and drafted tokens per new one; and how many guesses were accepted in
rounds by the share of attention before them. `arms`: chains of several lengths, and bandits that choose among them, by
tokens per estimated cost. `routing`: tokens per pass by the number of visual tokens that `Routing` shows. Text is
checked to be the same. Prints Markdown, and draws into `--plots FOLDER`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mmspec
from mmspec.compressors import Hide, Routing
from mmspec.inputs import prepare
from mmspec.rounds import ArmSelector, GatedTree, Unimodal, UpperConfidence, VisualAttention
from mmspec.rounds.arms import NODE
from mmspec.trees import Chain, TreeBuilder

TASKS = ("scenes", "charts", "documents", "questions")
THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.35)
NONE = 1.0
EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


def table(headings: list[str], rows: list[list[str]]) -> None:
    for row in (headings, ["---", *["--:"] * (len(headings) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print()


def requests_of(target: mmspec.Target, task: str, count: int) -> list:
    samples = (mmspec.zoo.sample(task, "test", 100 + index) for index in range(count))
    return [prepare(target, prompt, [image]) for image, prompt, _ in samples]


def draw(name: str, folder: Path | None, draw_on: Callable[[Any], None]) -> None:
    """Write one plot, if a folder for plots was given."""
    if folder is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    draw_on(figure)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110)


class Run:
    """Answers to the prompts of one task, one after the other, added up."""

    def __init__(self, target, drafter, requests: list, tree: TreeBuilder | None, tokens: int):
        self.texts, self.stats = [], []
        for request in requests:
            out = mmspec.generate(target, drafter, inputs=request, tree=tree, max_new_tokens=tokens)
            self.texts.append(out.token_ids)
            self.stats.append(out.stats)

    @property
    def tau(self) -> float:
        emitted = sum(sum(record.emitted) for one in self.stats for record in one.rounds)
        return emitted / sum(one.num_spec_steps for one in self.stats)

    @property
    def drafted(self) -> float:
        """Drafted tokens per new token."""
        return sum(one.num_draft_tokens for one in self.stats) / sum(sum(one.new_tokens) for one in self.stats)

    @property
    def plain(self) -> float:
        """Share of the rounds that drafted nothing."""
        rounds = [record for one in self.stats for record in one.rounds]
        return sum(not any(record.drafted) for record in rounds) / len(rounds)

    def worth(self, share: float) -> float:
        """Tokens per cost, estimated as `ArmSelector` does it, with the drafter's share of the target's weights."""
        rounds = [record for one in self.stats for record in one.rounds]
        cost = sum(1 + record.depth * share + NODE * max(record.drafted) for record in rounds)
        return sum(sum(record.emitted) for record in rounds) / cost


class Shares(VisualAttention):
    """Skips nothing, and notes the share before every round."""

    shared = ("seen",)

    def __init__(self) -> None:
        super().__init__(2.0)
        self.seen: list[float] = []

    def drafts(self) -> bool:
        decided = super().drafts()
        self.seen.append(self.share)
        return decided


def viskip(target: mmspec.Target, options: argparse.Namespace) -> None:
    """Thresholds, and acceptance by the share of attention."""
    drafter = mmspec.load_drafter(options.drafter, target)
    accepted = defaultdict(list)
    rows = {NONE: ["no gate"]} | {threshold: [f"{threshold}"] for threshold in THRESHOLDS}
    lengths: dict[str, list[float]] = {}
    for task in TASKS:
        requests = requests_of(target, task, options.count)
        ungated = Run(target, drafter, requests, Chain(5), options.tokens)
        shares = Shares()
        noted = Run(target, drafter, requests, GatedTree(shares, Chain(5)), options.tokens)
        records = [record for one in noted.stats for record in one.rounds]
        for share, record in zip(shares.seen, records, strict=True):
            accepted[max(edge for edge in EDGES if edge <= share)].append(sum(record.accepted))
        for threshold in THRESHOLDS:
            run = Run(target, drafter, requests, GatedTree(VisualAttention(threshold), Chain(5)), options.tokens)
            assert run.texts == ungated.texts
            rows[threshold].append(f"{100 * run.plain:.0f} % / {run.tau:.2f} / {run.drafted:.2f}")
            lengths.setdefault(task, []).append(run.tau)
        rows[NONE].append(f"0 % / {ungated.tau:.2f} / {ungated.drafted:.2f}")
    table(["threshold", *TASKS], list(rows.values()))
    table(
        ["share of attention from", "rounds", "accepted of five"],
        [[f"{edge}", str(len(found)), f"{sum(found) / len(found):.2f}"] for edge, found in sorted(accepted.items())],
    )

    def lines(figure) -> None:
        axes = figure.subplots()
        for task, values in lengths.items():
            axes.plot(THRESHOLDS, values, marker="o", label=task)
        axes.set(xlabel="threshold", ylabel="tokens a pass", title=f"ViSkip, {options.drafter}, chain of 5")
        axes.legend()

    draw("viskip", options.plots, lines)


SHOWN = (2, 4, 8, 16, 32)
LENGTHS = (1, 2, 3, 5, 8, 12, 16)


def arms(target: mmspec.Target, options: argparse.Namespace) -> None:
    """Chains of one length, and a bandit that chooses among them."""
    drafter = mmspec.load_drafter(options.drafter, target)
    chains = [Chain(length) for length in LENGTHS]
    share = sum(map(torch.Tensor.numel, drafter.parameters())) / sum(map(torch.Tensor.numel, target.model.parameters()))
    rows: dict[str, list[str]] = {f"chain of {length}": [] for length in LENGTHS}
    bandits = {
        "unimodal": lambda: ArmSelector(target, drafter, chains, Unimodal(), "work", lasting=True),
        "unimodal, anew for each answer": lambda: ArmSelector(target, drafter, chains, Unimodal(), "work"),
        "upper confidence": lambda: ArmSelector(target, drafter, chains, UpperConfidence(), "work", lasting=True),
    }
    rows |= {name: [] for name in bandits}
    spent: dict[str, list[str]] = {name: [] for name in bandits}
    for task in TASKS:
        requests = requests_of(target, task, options.count)
        found = {
            name: Run(target, drafter, requests, chain, options.tokens)
            for name, chain in zip(rows, chains, strict=False)
        }
        for name, make in bandits.items():
            selector = make()
            found[name] = Run(target, selector, requests, None, options.tokens)
            pulls = [0] * len(LENGTHS)
            for one in found[name].stats:
                for record in one.rounds:
                    pulls[LENGTHS.index(record.depth)] += 1
            spent[name].append(" ".join(f"{100 * count / sum(pulls):.0f}" for count in pulls))
        assert len({str(run.texts) for run in found.values()}) == 1
        for name, run in found.items():
            rows[name].append(f"{run.worth(share):.2f}")
    table(["tokens per estimated cost", *TASKS], [[name, *values] for name, values in rows.items()])
    headings = [f"rounds of each length ({', '.join(map(str, LENGTHS))}), %", *TASKS]
    table(headings, [[name, *values] for name, values in spent.items()])


def routing(target: mmspec.Target, options: argparse.Namespace) -> None:
    """Numbers of tokens that a router shows, chosen anew or once."""
    drafter = mmspec.load_drafter(options.drafter, target)
    views = {"no compressor": drafter, "hide": drafter.with_compressor(Hide())}
    for k in SHOWN:
        views[f"routing, k = {k}"] = drafter.with_compressor(Routing(k))
        views[f"routing, k = {k}, once"] = drafter.with_compressor(Routing(k, anew=False))
    lengths: dict[str, list[float]] = {name: [] for name in views}
    for task in TASKS:
        requests = requests_of(target, task, options.count)
        runs = {name: Run(target, view, requests, Chain(5), options.tokens) for name, view in views.items()}
        assert len({str(run.texts) for run in runs.values()}) == 1
        for name, run in runs.items():
            lengths[name].append(run.tau)
    rows = [[name, *(f"{tau:.2f}" for tau in values)] for name, values in lengths.items()]
    table(["tokens per pass", *TASKS], rows)

    def lines(figure) -> None:
        axes = figure.subplots()
        for end, label in (("", "chosen anew"), (", once", "chosen once")):
            means = [sum(lengths[f"routing, k = {k}{end}"]) / len(TASKS) for k in SHOWN]
            axes.plot(SHOWN, means, marker="o", label=label)
        for name in ("no compressor", "hide"):
            axes.axhline(sum(lengths[name]) / len(TASKS), linestyle=":", label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="visual tokens that are shown", ylabel="tokens a pass", title=f"Routing, {options.drafter}")
        axes.legend()

    draw("routing", options.plots, lines)


def main() -> None:
    known = {"viskip": viskip, "arms": arms, "routing": routing}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=known)
    parser.add_argument("--drafter", default="tiny/eagle3")
    parser.add_argument("--count", type=int, default=6, help="prompts of a task")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.manual_seed(0)
    known[options.what](mmspec.load_target("tiny"), options)


if __name__ == "__main__":
    main()
