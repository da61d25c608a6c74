"""Draw the figures of docs/concepts, from real answers of the embedded model.

    python scripts/draw_concepts.py

Every tree, probability and rate is read from a trace or from the statistics of an answer; nothing is drawn by hand. It
takes about a minute.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mmspec
from mmspec import visualization, zoo
from mmspec.trees import Chain, DynamicTree
from mmspec.visualization.colours import ACCEPTED, BONUS, INK, PAPER, REJECTED

OUTPUT = Path(__file__).parents[1] / "docs" / "concepts"
LARGEST = 60_000
"""Bytes of a figure."""
LETTER, LINE, WIDTH = 7.3, 24, 86
"""Pixels of a letter and of a line, and letters of a line."""


def save(figure: Figure, name: str) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(OUTPUT / f"{name}.png", dpi=100)
    check(OUTPUT / f"{name}.png")


def write(svg: str, name: str) -> None:
    (OUTPUT / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
    check(OUTPUT / f"{name}.svg")


def check(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path} has {size} bytes, more than {LARGEST}")
    print(f"{path.name}: {size} bytes")


def draw_answer(out: mmspec.Output, name: str) -> None:
    """An answer, each token above a line of the colour of its origin; a gap ends a round."""
    rounds = [1] + [record.emitted[0] for record in out.stats.rounds]
    ends = {sum(rounds[: number + 1]) - 1 for number in range(len(rounds))}
    parts, column, row = [], 0.0, 0
    for number, (piece, drafted) in enumerate(zip(out.pieces(), out.drafted[0], strict=True)):
        if not piece:
            continue
        if column + len(piece) > WIDTH:
            column, row = 0.0, row + 1
        x, y, width = 10 + column * LETTER, 10 + row * LINE, len(piece) * LETTER
        colour = ACCEPTED if drafted else BONUS
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="17" fill="{colour}" fill-opacity="0.2"/>'
            f'<text x="{x:.1f}" y="{y + 13}" xml:space="preserve" textLength="{width:.1f}">{escape(piece)}</text>'
        )
        column += len(piece) + (0.6 if number in ends else 0)
    size = f'width="{WIDTH * LETTER + 30:.0f}" height="{(row + 1) * LINE + 12}"'
    write(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="an answer, token by token" '
        f'font-family="monospace" font-size="12" fill="{INK}"><rect width="100%" height="100%" fill="{PAPER}"/>'
        f"{''.join(parts)}</svg>",
        name,
    )


def draw_mask(one: visualization.RoundTrace, name: str) -> None:
    """Which nodes of a drafted tree each of them sees."""
    nodes = [node for node in one.nodes if not node.bonus]
    seen = torch.zeros(len(nodes), len(nodes))
    for number in range(len(nodes)):
        above = number
        while above >= 0:
            seen[number, above] = 1
            above = nodes[above].parent
    labels = [node.text.replace("\n", "\\n").strip() or repr(node.text) for node in nodes]
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(seen.numpy(), cmap="Greens", vmin=0, vmax=1.6)
    axes.set_xticks(range(len(nodes)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(nodes)), labels, fontsize=8)
    axes.set_xticks([x + 0.5 for x in range(len(nodes))], minor=True)
    axes.set_yticks([x + 0.5 for x in range(len(nodes))], minor=True)
    axes.grid(which="minor", color="white")
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="... sees", ylabel="a node ...")
    save(figure, name)


def draw_overlap(one: visualization.RoundTrace, name: str) -> None:
    """The two models' probabilities of the guesses for the next token."""
    children = [one.nodes[number] for number in one.children(0) if not one.nodes[number].bonus]
    q, p = [node.drafter for node in children], [node.target for node in children]
    figure = Figure(figsize=(6.2, 2.9), layout="constrained")
    axes = figure.subplots()
    places = range(len(children))
    axes.bar([x - 0.2 for x in places], q, 0.4, color=REJECTED, label="drafter, q")
    axes.bar([x + 0.2 for x in places], p, 0.4, color=BONUS, label="target, p")
    for x, low in zip(places, map(min, p, q), strict=True):
        axes.plot([x - 0.42, x + 0.42], [low, low], color=ACCEPTED, lw=2.5, label="min(p, q)" if not x else None)
    axes.set_xticks(places, [repr(node.text) for node in children])
    axes.spines[["top", "right"]].set_visible(False)
    overlap = sum(map(min, p, q))
    axes.set_title(f"after {one.nodes[0].text!r}: a guess that is drawn is kept in {overlap:.0%} of cases", fontsize=10)
    axes.legend(frameon=False)
    save(figure, name)


def branching(trace: visualization.Trace) -> visualization.RoundTrace:
    """The round in which most was kept although the likeliest guess was wrong somewhere."""

    def wrong_first(one: visualization.RoundTrace) -> bool:
        path = [number for number, node in enumerate(one.nodes) if node.accepted and not node.bonus]
        return any(below != one.children(above)[0] for above, below in pairwise(path))

    rounds = [one for one in trace if wrong_first(one)] or list(trace)
    return max(rounds, key=lambda one: one.accepted)


def disputed(traces: list[visualization.Trace]) -> visualization.RoundTrace:
    """A round before which the target is undecided and the drafter thinks otherwise."""

    def overlap(one: visualization.RoundTrace) -> float:
        children = [one.nodes[number] for number in one.children(0) if not one.nodes[number].bonus]
        return sum(min(node.drafter, node.target) for node in children)

    return max((one for trace in traces for one in trace), key=lambda one: one.entropy * (1 - overlap(one)))


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    target = mmspec.load_target("tiny")
    image = zoo.demo_image()
    image.resize((192, 192), 0).save(OUTPUT / "picture.png", optimize=True)
    drafters = {
        name: mmspec.load_drafter(f"tiny/{name}", target) for name in ("eagle3", "eagle", "hivis", "vispec", "specvlm")
    }

    def answer(name: str, tree, scene: int | None = None, **options) -> mmspec.Output:
        picture, prompt = (image, zoo.DEMO_PROMPT) if scene is None else zoo.sample("scenes", "test", scene)[:2]
        return mmspec.generate(target, drafters[name], prompt, [picture], tree=tree, trace=True, **options)

    out = answer("eagle3", Chain(5), max_new_tokens=64)
    draw_answer(out, "answer")
    partly = [one for one in out.trace if 0 < one.accepted < one.drafted]
    write((partly or list(out.trace))[0].svg(), "chain")
    one = branching(answer("eagle", DynamicTree(depth=4, top_k=4, total=12)).trace)
    write(one.svg(), "tree")
    draw_mask(one, "mask")
    traces = [answer("eagle", DynamicTree(depth=2, top_k=6, total=12), number).trace for number in range(4)]
    draw_overlap(disputed(traces), "overlap")
    shown = {name: drafters[name] for name in ("eagle", "specvlm", "vispec", "hivis")}
    save(visualization.draw_kept(shown, zoo.DEMO_PROMPT, image), "kept")

    tests = [
        zoo.sample(task, "test", index) for task in ("scenes", "charts", "documents", "questions") for index in range(4)
    ]
    prompts, images = [one.prompt for one in tests], [[one.image] for one in tests]
    outs = {
        label: mmspec.generate(target, drafters[name], prompts, images, tree=Chain(8))
        for name, label in (
            ("eagle3", "EAGLE-3: trained on chains of seven"),
            ("eagle", "EAGLE-2: trained on single steps"),
        )
    }
    save(visualization.acceptance_by_position(outs), "positions")
    for label, out in outs.items():
        rates = [round(rate, 2) for rate in out.stats.acceptance_rate_per_position]
        print(f"{label}: {rates}, {out.stats.mean_acceptance_length:.2f} tokens a pass")


if __name__ == "__main__":
    main()
