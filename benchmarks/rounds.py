"""What is decided anew before every round: what a gate spares, what a bandit chooses, what a router shows.

    python benchmarks/rounds.py viskip --count 6
    python benchmarks/rounds.py routing --drafter tiny/eagle --plots FOLDER
    python benchmarks/rounds.py arms --drafter tiny/text_only
    python benchmarks/rounds.py routed runs/learned_8 runs/attention_8 ...
    python benchmarks/rounds.py scores --drafter tiny/eagle

`viskip`: the embedded model with several thresholds of `VisualAttention`. For every threshold and task: the share of
rounds that are plain steps, tokens per pass, and drafted tokens per new one; and how many guesses were accepted in
rounds by the share of attention before them. `arms`: chains of several lengths, and bandits that choose among them, by
tokens per estimated cost. `routing`: tokens per pass by the number of visual tokens that `Routing` shows. `routed`: the
same of heads that were trained so. `scores`: tokens per pass by the share of visual tokens that is kept, and by what
says which. Text is checked to be the same. Prints Markdown, and draws into `--plots FOLDER`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mmspec
from mmspec.compressors import FeatureGuided, Hide, LearnedRouting, Prune, Routing, VisualCompressor
from mmspec.inputs import prepare
from mmspec.rounds import ArmSelector, GatedTree, Unimodal, UpperConfidence, VisualAttention
from mmspec.rounds.arms import NODE
from mmspec.trees import Chain, TreeBuilder
from mmspec.twigs import TwigScore

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
ALL = 1000  # as many visual tokens as there are, or more
KEPT = (0.05, 0.25, 0.5)
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


def routed(target: mmspec.Target, options: argparse.Namespace) -> None:
    """Heads that were trained with what they are shown: by learned maps, by the target's attention, or everything."""
    heads = {}
    for folder in options.folders:
        drafter = mmspec.load_drafter(str(Path(folder) / "best"), target)
        router = drafter.compressor
        if not isinstance(router, Routing):
            raise SystemExit(f"{folder}: its drafter has no compressor that routes")
        how = "learned maps" if isinstance(router, LearnedRouting) else "the target's attention"
        heads[how, router.k] = drafter
    lengths: dict[tuple[str, int], list[float]] = {key: [] for key in sorted(heads)}
    for task in TASKS:
        requests = requests_of(target, task, options.count)
        runs = {key: Run(target, heads[key], requests, Chain(5), options.tokens) for key in lengths}
        assert len({str(run.texts) for run in runs.values()}) == 1
        for key, run in runs.items():
            lengths[key].append(run.tau)
    means = {key: sum(values) / len(values) for key, values in lengths.items()}
    rows = []
    for how, k in sorted(lengths, key=lambda key: (key[1], key[0])):
        shown = ["all", "-"] if k >= ALL else [str(k), how]
        rows.append([*shown, f"{means[how, k]:.2f}", *(f"{tau:.2f}" for tau in lengths[how, k])])
    table(["shown", "chosen by", "mean", *TASKS], rows)

    def lines(figure) -> None:
        axes = figure.subplots()
        for way in sorted({how for how, _ in heads}):
            found = sorted((k, means[how, k]) for how, k in heads if how == way and k < ALL)
            axes.plot(*zip(*found, strict=True), marker="o", label=way)
        for (_, k), mean in means.items():
            if k >= ALL:
                axes.axhline(mean, linestyle=":", color="gray", label="all tokens")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="visual tokens that are shown", ylabel="tokens a pass", title="Routing, heads trained with it")
        axes.legend()

    draw("learned_routing", options.plots, lines)


def scores(target: mmspec.Target, options: argparse.Namespace) -> None:
    """Shares of the visual tokens, chosen once: evenly spaced, by the target's last layer, and by twigs."""
    drafter = mmspec.load_drafter(options.drafter, target)
    makes: dict[str, Callable[[float], VisualCompressor]] = {
        "evenly spaced": Prune,
        "guided, last layer": FeatureGuided,
        "twig, untrained": TwigScore,
        "twig, tiny/fastvlm": lambda keep: TwigScore(keep, "tiny/fastvlm"),
    }
    views = {"no compressor": drafter}
    for name, make in makes.items():
        views |= {f"{name}, {keep:g}": drafter.with_compressor(make(keep)) for keep in KEPT}
    rows: dict[str, list[str]] = {name: [name] for name in views}
    for task in TASKS:
        requests = requests_of(target, task, options.count)
        runs = {name: Run(target, view, requests, Chain(5), options.tokens) for name, view in views.items()}
        assert len({str(run.texts) for run in runs.values()}) == 1
        for name, run in runs.items():
            rows[name].append(f"{run.tau:.2f}")
    table(["tokens per pass, share kept", *TASKS], list(rows.values()))


def main() -> None:
    known = {"viskip": viskip, "arms": arms, "routing": routing, "routed": routed, "scores": scores}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=known)
    parser.add_argument("folders", nargs="*", help="of trainings, for routed")
    parser.add_argument("--drafter", default="tiny/eagle3")
    parser.add_argument("--count", type=int, default=6, help="prompts of a task")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.manual_seed(0)
    known[options.what](mmspec.load_target("tiny"), options)


if __name__ == "__main__":
    main()
