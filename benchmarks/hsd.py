"""What references are worth on documents: true ones, ones with wrong characters, and those of another page.

    python benchmarks/hsd.py --plot FILE

Pages of the embedded test split, read one by one, in turns with plain decoding; medians over `--repeats`. A reference
is the text of the page's blocks, joined by line breaks. Prints a Markdown table: tokens per round, tokens drafted per
round, speed-up of decoding and end to end, and how similar the text is to plain decoding's (1 for every lossless row,
or the run fails) and to the true one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import mmspec
from mmspec import zoo
from mmspec.data.accuracy import EditSimilarity
from mmspec.drafters import NGramDrafter, ReferenceDrafter
from mmspec.layouts import OcrLayout
from mmspec.similarity import similarity
from mmspec.verifiers import TreeWalk
from mmspec.verifiers.rules import LogitRatio

SHARES = {"true text": 0.0, "5 % wrong": 0.05, "20 % wrong": 0.2}
PARTS = {"windows never grow": {"longest_window": 3}, "no letters": {"letters": 0}, "one match": {"branches": 1}}
"""What the drafter is measured without, where references have wrong characters: its settings by what is missing."""


def main() -> None:
    """Measure, print, and perhaps draw."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--count", type=int, default=8, help="pages")
    arguments.add_argument("--repeats", type=int, default=3, help="times that each is read")
    arguments.add_argument("--tokens", type=int, default=128, help="longest answers")
    arguments.add_argument("--ocr", action="store_true", help="also let RapidOCR read the pages (extra ocr)")
    arguments.add_argument("--plot", type=Path, help="file of the plot")
    given = arguments.parse_args()
    target = mmspec.load_target("tiny")
    ours, papers = (ReferenceDrafter(target, joint="\n", least=least) for least in (0.1, 0.0))
    ratio = TreeWalk(LogitRatio(0.05))
    sides = {"plain": (None, None, None), "ngram": (NGramDrafter(target), None, None)}
    for name in [*SHARES, "another page"]:
        sides[name] = (ours, name, None)
    for name in [*SHARES, "another page"]:
        sides[f"{name}, least=0"] = (papers, name, None)
    for part, settings in PARTS.items():
        without = ReferenceDrafter(target, joint="\n", **settings)
        for name in [*SHARES][1:]:
            sides[f"{name}, {part}"] = (without, name, None)
    sides["20 % wrong, ratio=0.05"] = (ours, "20 % wrong", ratio)
    if given.ocr:
        sides["read by OCR"] = (ReferenceDrafter(target, joint="\n", layout=OcrLayout()), None, None)
    found: dict[str, list] = {name: [] for name in sides}
    for repeat in range(given.repeats + 1):  # the first one warms up
        for number in range(given.count):
            asked, references = _page(100 + number)
            for name, (drafter, reference, verifier) in sides.items():
                extras = {"references": [references[reference]]} if reference else None
                started = time.perf_counter()
                out = mmspec.generate(
                    target,
                    drafter,
                    asked.prompt,
                    [asked.image],
                    extras=extras,
                    verifier=verifier,
                    max_new_tokens=given.tokens,
                )
                if repeat:
                    found[name].append((out, time.perf_counter() - started, asked.reference))
    print("| references | tokens per round | drafted per round | decoding | end to end | as plain | as the page |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    speeds = {name: _row(name, answers, found["plain"]) for name, answers in found.items()}
    if given.plot:
        _draw(speeds, given.plot)


def _page(index: int) -> tuple[zoo.DrawnSample, dict[str, list[str]]]:
    """Return a page and its references, block by block."""
    texts = [text for text, _ in zoo.page_regions("test", index)]
    references = {
        name: [zoo.misread(text, share, seed=f"{index}/{place}") for place, text in enumerate(texts)]
        for name, share in SHARES.items()
    }
    references["another page"] = [text for text, _ in zoo.page_regions("test", index + 1000)]
    return zoo.sample("documents", "test", index), references


def _row(name: str, answers: list, plain: list) -> float:
    """Print the row of a side, and return its speed-up of decoding."""
    outs = [out for out, _, _ in answers]
    rounds = [one for out in outs for one in out.stats.rounds]
    tokens = sum(len(out.token_ids[0]) - 1 for out in outs) / len(rounds)
    drafted = sum(sum(one.drafted) for one in rounds) / len(rounds)
    same = statistics.mean(
        similarity(one.token_ids[0], other.token_ids[0]) for one, (other, *_) in zip(outs, plain, strict=True)
    )
    if same < 1 and all(out.stats.lossless for out in outs):
        raise SystemExit(f"{name}: the text is not that of plain decoding")
    points = [EditSimilarity().best([text], out.text[0]) for out, _, text in answers]
    right = sum(one for one, _ in points) / sum(of for _, of in points)
    decoding = _speed(outs) / _speed([out for out, *_ in plain])
    whole = statistics.median(wall for _, wall, _ in plain) / statistics.median(wall for _, wall, _ in answers)
    cells = (f"{tokens:.2f}", f"{drafted:.1f}", f"{decoding:.2f}", f"{whole:.2f}", f"{same:.3f}", f"{right:.3f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return decoding


def _speed(outs: list) -> float:
    return statistics.median(out.stats.tokens_per_second for out in outs)


def _draw(speeds: dict[str, float], file: Path) -> None:
    """Draw the speed-ups as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    names = [*SHARES, "another page"]
    for place, (suffix, label) in enumerate((("", "least=0.1"), (", least=0", "least=0, the paper"))):
        heights = [speeds[f"{name}{suffix}"] for name in names]
        bars = axes.bar([number + 0.4 * place for number in range(len(names))], heights, 0.38, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xticks([number + 0.2 for number in range(len(names))], names)
    axes.set_ylabel("speed-up of decoding")
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
