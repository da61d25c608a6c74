"""What visual tokens cost a drafter: reading the prompt, memory, and a round, by the number of tokens of the picture.

    python benchmarks/prefill.py

Random weights in the shape of the embedded target, one picture of 128 to 9 216 tokens and 32 words of text. The target
itself is not run: its embeddings and states are random too. Prints a Markdown table: milliseconds for the drafter's own
prefill, megabytes of its cache, and milliseconds to draft a chain of five. Medians of several runs, in turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from types import SimpleNamespace

import torch

import mmspec
from mmspec.compressors import Elastic, Pool
from mmspec.drafters import DraftModelDrafter, Eagle3Drafter, EagleDrafter, HiVisDrafter, MsdDrafter, ViSpecDrafter
from mmspec.families import Vision
from mmspec.inputs import Request
from mmspec.trees import Chain, Proposals

SIZES = (128, 576, 2304, 9216)
WORDS = 32


def methods(target: mmspec.Target) -> dict:
    """Drafters with random weights (what they cost does not depend on them) but for the draft model's, which has more
    parts."""
    chain = {"tree": Chain(5)}
    draft_model = mmspec.load_drafter("tiny/draft_model", target)
    drafters = {
        "draft_model": DraftModelDrafter(target, draft_model.model, "shared_vision", draft_model.projector, **chain),
        "eagle": EagleDrafter(target, **chain),
        "eagle3": Eagle3Drafter(target, **chain),
        "msd": MsdDrafter(target, **chain),
        "eagle, pooled by 4": EagleDrafter(target, compressor=Pool(4), **chain),
        "specvlm": EagleDrafter(target, input_norm=True, compressor=Elastic(), **chain),
        "vispec": ViSpecDrafter(target, **chain),
        "hivis": HiVisDrafter(target, **chain),
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
    features = {layer: torch.randn(1, length, width) for layer in (-1, 2, 8, 13)}
    vision = Vision([torch.randn(tokens, width)], [torch.randn(tokens, width)])
    target.family.grids = lambda inputs, sizes: [(rows, columns)]
    request = Request({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [length])
    return SimpleNamespace(
        request=request,
        vision=vision,
        embeds=torch.randn(1, length, width),
        features=features,
        history=[[*ids[0].tolist(), 7]],
        active=[True],
        batch_size=1,
        room=64,
        proposals=Proposals(),
        target=target,
    )


def cache_of(drafter) -> float:
    """Megabytes of keys and values that the prompt has left."""
    blocks = drafter.runner if isinstance(drafter, DraftModelDrafter) else drafter.blocks
    length = int(blocks.cache.lengths[0])
    slots = [slot for layer in blocks.cache.layers for slot in (layer.keys, layer.values)]
    return sum(slot[:, :, :length].numel() * slot.element_size() for slot in slots) / 2**20


@torch.inference_mode()
def measure(drafter, context) -> tuple[float, float, float]:
    """Seconds to read the prompt, megabytes, seconds to draft."""
    fork = drafter.fork()
    start = time.perf_counter()
    fork.start(context)
    read = time.perf_counter()
    memory = cache_of(fork)
    start_draft = time.perf_counter()
    fork.draft(torch.tensor([7]))
    return read - start, memory, time.perf_counter() - start_draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    target = mmspec.load_target("tiny")
    drafters = methods(target)
    cells: dict[str, list[str]] = {name: [] for name in drafters}
    for size in SIZES:
        context = context_of(target, size)
        for drafter in drafters.values():
            measure(drafter, context)
        runs = {name: [] for name in drafters}
        for _ in range(options.repeats):
            for name, drafter in drafters.items():
                runs[name].append(measure(drafter, context))
        for name, found in runs.items():
            read, memory, draft = (statistics.median(column) for column in zip(*found, strict=True))
            cells[name].append(f"{1e3 * read:.1f} / {memory:.2f} / {1e3 * draft:.1f}")
    print("| method | " + " | ".join(f"{size} visual tokens" for size in SIZES) + " |")
    print("|---" * (1 + len(SIZES)) + "|")
    for name, row in cells.items():
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
