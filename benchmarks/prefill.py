"""What visual tokens cost a drafter: reading the prompt, memory, and a round, by the number of tokens of the picture.

    python benchmarks/prefill.py

Random weights in the shape of the embedded target, one picture of 128 to 9 216 tokens and 32 words of text. The target
itself is not run: its embeddings, states, keys and values are random too. Prints a Markdown table: milliseconds for the
drafter's own prefill, megabytes of its cache, and milliseconds to draft a chain of five, in processor time of one
thread. Medians of several runs, in turns. Draws the first two into `--plots FOLDER`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import mmspec
from mmspec.compressors import Elastic, FeatureGuided, LatentQueries, Pool
from mmspec.drafters import (
    AasdDrafter,
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    HiVisDrafter,
    MsdDrafter,
    SharedVisionDrafter,
    SparrowDrafter,
    SpecFlashDrafter,
    ViSpecDrafter,
)
from mmspec.families import Vision
from mmspec.inputs import Request
from mmspec.models.session import ModelSession
from mmspec.trees import Chain, Proposals

SIZES = (128, 576, 2304, 9216)
WORDS = 32


def methods(target: mmspec.Target) -> dict:
    """Drafters with random weights (what they cost does not depend on them) but for the draft model's, which has more
    parts."""
    chain = {"tree": Chain(5)}
    draft_model = mmspec.load_drafter("tiny/draft_model", target)
    drafters = {
        "draft_model": SharedVisionDrafter(target, draft_model.model, draft_model.projector, **chain),
        "eagle": EagleDrafter(target, **chain),
        "eagle3": Eagle3Drafter(target, **chain),
        "msd": MsdDrafter(target, **chain),
        "dream": DreamDrafter(target, compressor=FeatureGuided(), **chain),
        "eagle, pooled by 4": EagleDrafter(target, compressor=Pool(4), **chain),
        "specvlm": EagleDrafter(target, input_norm=True, compressor=Elastic(), **chain),
        "vispec": ViSpecDrafter(target, **chain),
        "hivis": HiVisDrafter(target, **chain),
        "sparrow": SparrowDrafter(target, **chain),
        "aasd": AasdDrafter(target, **chain),
        "specflash, no queries": SpecFlashDrafter(target, tokens=4, residual=True, **chain),
        "specflash, 64 queries": SpecFlashDrafter(
            target, tokens=4, residual=True, compressor=LatentQueries(64), **chain
        ),
    }
    for drafter in drafters.values():
        drafter.eval()
    return drafters


def context_of(target: mmspec.Target, tokens: int) -> SimpleNamespace:
    """What a drafter sees of a request whose picture has so many tokens."""
    image, width = target.family.image_token_id, target.hidden_size
    edge = math.isqrt(tokens)
    rows, columns = (edge, edge) if edge**2 == tokens else (8, tokens // 8)
    ids = torch.cat([torch.full((tokens,), image), torch.randint(5, 600, (WORDS,))])[None]
    length = tokens + WORDS
    features = {layer: torch.randn(1, length, width) for layer in (-1, 2, 8, 13, 15)}
    vision = Vision([torch.randn(tokens, width)], [torch.randn(tokens, width)])
    target.family.grids = lambda inputs, sizes: [(1, rows, columns)]
    request = Request({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [length])
    held = [torch.randn(1, shape.heads, length, shape.dim) for shape in target.cache_shapes[-1]]
    return SimpleNamespace(
        request=request,
        vision=vision,
        embeds=torch.randn(1, length, width),
        features=features,
        history=[[*ids[0].tolist(), 7]],
        active=[True],
        batch_size=1,
        entries=[length],
        lengths=torch.tensor([length]),
        position_offset=torch.zeros(1, dtype=torch.long),
        keys_values=lambda layer: held,
        spare_capacity=64,
        rows_of=lambda request, family: request,
        sibling=ModelSession,
        proposals=Proposals(),
        target=target,
        clock=None,
    )


def cache_of(drafter) -> float:
    """Megabytes of keys and values that the prompt has left."""
    cache = drafter.session.cache
    length = int(cache.lengths[0])
    slots = [slot for layer in cache.layers for slot in (layer.keys, layer.values)]
    return sum(slot[:, :, :length].numel() * slot.element_size() for slot in slots) / 2**20


@torch.inference_mode()
def measure(drafter, context) -> tuple[float, float, float]:
    """Seconds to read the prompt, megabytes, seconds to draft."""
    fork = drafter.fork()
    start = time.process_time()
    fork.start(context)
    read = time.process_time()
    memory = cache_of(fork)
    start_draft = time.process_time()
    fork.draft(torch.tensor([7]))
    return read - start, memory, time.process_time() - start_draft


def draw(medians: dict[str, list[tuple[float, float, float]]], folder: Path) -> None:
    """Prefill and memory against the size of the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    panels = zip(figure.subplots(1, 2), (("prefill, ms", 1e3), ("keys and values, MB", 1.0)), strict=True)
    for number, (axes, (label, factor)) in enumerate(panels):
        for index, (name, row) in enumerate(medians.items()):
            values = [factor * found[number] for found in row]
            axes.loglog(SIZES, values, marker="osD^vP*X<>hd"[index % 12], label=name)
        axes.set(xlabel="visual tokens", ylabel=label)
        axes.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
        axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "prefill.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw prefill.png there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = mmspec.load_target("tiny")
    drafters = methods(target)
    medians: dict[str, list[tuple[float, float, float]]] = {name: [] for name in drafters}
    for size in SIZES:
        context = context_of(target, size)
        for drafter in drafters.values():
            measure(drafter, context)
        runs = {name: [] for name in drafters}
        for _ in range(options.repeats):
            for name, drafter in drafters.items():
                runs[name].append(measure(drafter, context))
        for name, found in runs.items():
            medians[name].append(tuple(statistics.median(column) for column in zip(*found, strict=True)))
    print("| method | " + " | ".join(f"{size} visual tokens" for size in SIZES) + " |")
    print("|---" * (1 + len(SIZES)) + "|")
    for name, row in medians.items():
        cells = (f"{1e3 * read:.1f} / {memory:.2f} / {1e3 * draft:.1f}" for read, memory, draft in row)
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.plots is not None:
        draw(medians, options.plots)


if __name__ == "__main__":
    main()
