"""Whether anything but attention grows with the prompt: what a round takes behind prompts of several lengths, in turns.

    python benchmarks/prompt_length.py
    python benchmarks/prompt_length.py --lengths 512 4096 --rounds 40

A language model of the embedded target's shape and EAGLE-3's head, with random weights: hardly a draft is accepted,
and a round is what it costs. Every prompt is read once, and its request stays open; then one round of each is timed,
again and again. `attention` is what the attention functions of the target and of the head take within the round, `the
rest` is all else: the other parts of both models, masks, the cache, trees, choosing, records. Prints a Markdown table
of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mmspec
from mmspec.drafters import Eagle3Drafter, feature
from mmspec.inputs import prepare
from mmspec.trees import Chain

SETTLING = 4
"""Rounds of each request before anything counts."""


class Watch:
    """The seconds that some functions take.

    Attributes:
        seconds: so far.
    """

    def __init__(self):
        self.seconds = 0.0

    def on(self, function: Callable) -> Callable:
        """Return the same function, whose time is added."""

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def random_target(longest: int) -> mmspec.Target:
    """Return a language model with random weights, of the embedded target's shape."""
    config = mmspec.load_target("tiny").model.config.text_config
    config.max_position_embeddings = longest
    torch.manual_seed(0)
    return mmspec.Target(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    needed = 10 * (options.rounds + SETTLING)
    target = random_target(max(options.lengths) + needed)
    drafter = Eagle3Drafter(target).eval()
    watch = Watch()
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = watch.on(attention)
    with patch.object(feature, "attend", watch.on(feature.attend)):
        open_requests = {}
        for length in options.lengths:
            ids = torch.randint(10, 500, (1, length))
            request = prepare(target, inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            for name, method in (("plain", None), ("eagle3, chain of 8", drafter)):
                tree = {} if method is None else {"tree": Chain(8)}
                settings = {"inputs": request, "max_new_tokens": needed, "eos_token_id": [], **tree}
                open_requests[name, length] = mmspec.stream(target, method, **settings)
                next(open_requests[name, length])
        for number in range(options.rounds + SETTLING):
            for key, pieces in open_requests.items():
                watch.seconds, start = 0.0, time.perf_counter()
                next(pieces)
                if number >= SETTLING:
                    found.setdefault(key, []).append((time.perf_counter() - start, watch.seconds))
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    print("| method | prompt, tokens | round, ms | attention, ms | the rest, ms | the rest, over the first prompt's |")
    print("|---|---|---|---|---|---|")
    for (name, length), rounds in found.items():
        whole, kernels, rest = (
            1e3 * statistics.median(part) for part in zip(*((a, b, a - b) for a, b in rounds), strict=True)
        )
        first = [a - b for a, b in found[name, options.lengths[0]]]
        ratio = statistics.median((a - b) / other for (a, b), other in zip(rounds, first, strict=True))
        print(f"| {name} | {length} | {whole:.2f} | {kernels:.2f} | {rest:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
