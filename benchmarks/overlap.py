"""Time a draft model that works beside its target, in a thread or in a process, in turns with the same one that waits.

    python benchmarks/overlap.py --names tiny/draft_model tiny/text_only --window 4 --repeats 3
    python benchmarks/overlap.py --length 8k --tokens 96    # the video target, on a clip of the test split

Every prompt is answered by each side in turn, in one process, and the order changes with every repeat. The figures are
ratios of medians of decoding seconds: to plain decoding, and to the same drafter with both sides in turn. The projected
one is what the clock of the sides in turn says of two devices, max(draft, score); it is no measurement.
"""

from __future__ import annotations

import argparse
from statistics import median

import mmspec
from mmspec.parallel import parallel_of
from mmspec.trees import Chain
from mmspec.zoo import demo_image
from mmspec.zoo.video.data import LENGTHS, watch

PROMPTS = ("Describe the picture.", "What is left of the red square?", "How many shapes are there?")


def questions(length: str | None) -> list[dict]:
    """Return what is asked: about the picture that ships, or about a clip of a length."""
    if length is None:
        return [{"prompt": prompt, "images": [demo_image()]} for prompt in PROMPTS]
    clip = watch("accounts", "test", 0, length)
    return [{"prompt": clip.prompt, "videos": [clip.frames]}]


def sides(target, name: str, window: int | str, mode: str) -> dict:
    """Return what is compared, by name."""
    settings = {"name": name, "window": window, "after_rejection": mode}
    chain = mmspec.load_drafter(name, target)
    return {
        "plain": (None, None),
        "chain": (chain, Chain(4 if window == "auto" else int(window))),
        "in turn": (parallel_of(target, **settings, overlap=False), None),
        "thread": (parallel_of(target, **settings, overlap=True), None),
        "process": (parallel_of(target, **settings, process=True), None),
    }


def measured(target, compared: dict, asked: list[dict], repeats: int, tokens: int) -> dict[str, dict[str, float]]:
    """Return the figures of every side: medians of seconds, and what was accepted."""
    seconds, projected = {name: [] for name in compared}, []
    found: dict[str, dict[str, float]] = {name: {} for name in compared}
    texts: dict[str, list] = {name: [] for name in compared}
    for repeat in range(-1, repeats):  # the first round warms up
        names = [*compared][:: 1 if repeat % 2 else -1]
        for question in asked:
            for name in names:
                drafter, tree = compared[name]
                out = mmspec.generate(target, drafter, **question, max_new_tokens=tokens, tree=tree)
                stats = out.stats
                if repeat < 0:
                    texts[name].append(out.token_ids)
                    continue
                seconds[name].append(stats.decode_seconds)
                found[name]["tokens per pass"] = stats.mean_acceptance_length
                found[name]["windows used"] = stats.windows_ahead / max(1, stats.num_spec_steps)
                if name == "in turn":
                    projected.append(stats.projected_decode_seconds)
    for name, (drafter, _) in compared.items():
        assert texts[name] == texts["plain"], f"{name} writes another text"
        found[name]["seconds"] = median(seconds[name])
        if hasattr(drafter, "close"):
            drafter.close()
    found["in turn, projected"] = {**found["in turn"], "seconds": median(projected)}
    return found


def main() -> None:
    """Print a table for every draft model and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", help="draft models; by default those that ship for the target")
    parser.add_argument("--length", choices=LENGTHS, help="of a clip that the video target is asked about")
    parser.add_argument("--window", default="4", help="tokens written ahead, or auto")
    parser.add_argument("--modes", nargs="+", default=["draft", "check"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    window = given.window if given.window == "auto" else int(given.window)
    models = ("tiny", "draft_model", "text_only") if given.length is None else ("tiny-video", "draft_model")
    target = mmspec.load_target(models[0])
    names = given.names or [f"{models[0]}/{name}" for name in models[1:]]
    print("| draft model | after a rejection | side | tokens per pass | windows used | over plain | over in turn |")
    print("|---|---|---|--:|--:|--:|--:|")
    for name in names:
        for mode in given.modes:
            compared = sides(target, name, window, mode)
            found = measured(target, compared, questions(given.length), given.repeats, given.tokens)
            for side, one in found.items():
                over = [found[other]["seconds"] / one["seconds"] for other in ("plain", "in turn")]
                figures = one["tokens per pass"], one["windows used"], *over
                cells = " | ".join(f"{figure:.2f}" for figure in figures)
                print(f"| {name} | {mode} | {side} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
