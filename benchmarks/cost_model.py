"""How well the cost model predicts speed-ups that it was not fitted to. Prints Markdown.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --drafters eagle3 --threads 1 --output errors.md

For every drafter the costs are measured once, by `mmspec.speed.measure_costs`, on one prompt. Then methods that were
not timed there (other depths and sizes of tree) and plain decoding answer other prompts, in turns, in one process. From
the tokens per round that a method was seen to accept, and its shape, the model predicts its speed-up of decoding; that
is held against the measured one, medians over the repeats. A second column takes the accepted tokens, too, from
elsewhere: from the acceptance by level and rank that rounds of one wide tree taught on the same prompts.

At the end the roofline of `mmspec bench simulate` is held against this machine: its bandwidth, peak and launching cost
are measured on bare products and on the smallest model, then the passes of bigger random models are projected and
timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec.evaluation.sheets import Sheet
from mmspec.inputs import prepare
from mmspec.outcome import Verdict
from mmspec.speed import Acceptance, Costs, Shape, measure_costs, predict
from mmspec.speed.calibration import random_request
from mmspec.speed.knowledge import RANKS
from mmspec.speed.learning import AcceptanceTracker
from mmspec.speed.roofline import Architecture, Device, pass_seconds
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree, StaticTree, TreeBuilder

HELD_OUT: dict[str, TreeBuilder] = {
    "chain 3": Chain(3),
    "chain 6": Chain(6),
    "static 8": StaticTree([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 0, 0)]),
    "dynamic 3x3, 10": DynamicTree(3, 3, 11),
    "dynamic 4x6, 20": DynamicTree(4, 6, 21),
    "dynamic 6x4, 24": DynamicTree(6, 4, 25),
}
SIZES = {"wide": (768, 6), "deep": (384, 24)}  # hidden size and layers of the random models


class Taught(DynamicTree):
    """A wide tree that counts what becomes of its nodes."""

    def __init__(self, tracker: AcceptanceTracker):
        super().__init__(6, 4, 33)
        self.tracker = tracker

    def observe(self, tree: DraftTree, scores, verdict: Verdict) -> None:
        path = [node for node in verdict.path[0].tolist() if node >= 0]
        self.tracker.add(tree.parents[0].tolist(), path)


def questions(target: mmspec.Target, indices: range) -> list:
    """Prepared test pictures, one of every task per index."""
    samples = [mmspec.zoo.sample(task, "test", index) for index in indices for task in mmspec.zoo.TASKS]
    return [prepare(target, prompt, [image]) for image, prompt, _ in samples]


def decode(target, drafter, tree, requests, tokens: int) -> tuple[float, float]:
    """Seconds of decoding per token, and tokens per round, over all requests."""
    seconds = new = emitted = rounds = 0.0
    for request in requests:
        stats = mmspec.generate(target, drafter, inputs=request, tree=tree, max_new_tokens=tokens).stats
        seconds += stats.decode_seconds
        new += stats.new_tokens[0] - 1
        emitted += sum(record.emitted[0] for record in stats.rounds)
        rounds += len(stats.rounds)
    return seconds / new, emitted / rounds


def taught(target, drafter, requests, tokens: int) -> Acceptance:
    """Acceptance by level and rank on these prompts."""
    tracker = AcceptanceTracker(RANKS[:4], levels=6, decay=1.0, weight=1.0)
    for request in requests:
        mmspec.generate(target, drafter, inputs=request, tree=Taught(tracker), max_new_tokens=tokens)
    return tracker.acceptance()


def expected(acceptance: Acceptance, tree: TreeBuilder) -> float:
    """Accepted tokens of a tree, from acceptance by level and rank alone."""
    if isinstance(tree, Chain):
        return acceptance.chain(tree.length)
    if isinstance(tree, StaticTree):
        return acceptance.static(tree.paths)
    nodes = acceptance.likeliest(tree.max_nodes, tree.depth, tree.top_k)
    return sum(node.probability for node in nodes)


def methods(target, options) -> tuple[list[list[str]], list[float], list[float]]:
    """A row per held-out method, and the relative errors with measured and with predicted acceptance."""
    calibrating, requests = questions(target, range(300, 301))[0], questions(target, range(100, 100 + options.prompts))
    rows, errors, blind = [], [], []
    for name in options.drafters:
        say(f"{name}: calibrating")
        drafter = mmspec.load_drafter(f"tiny/{name}", target)
        costs: Costs = measure_costs(target, drafter, calibrating, repeats=options.repeats)
        acceptance = taught(target, drafter, requests, options.tokens)
        sides = {"plain": None, **HELD_OUT}
        per_token: dict[str, list[float]] = {label: [] for label in sides}
        per_round: dict[str, float] = {}
        for number in range(-1, options.repeats):  # the first is warm-up
            say(f"{name}: repeat {number + 1} of {options.repeats}")
            for label, tree in list(sides.items())[:: 1 if number % 2 else -1]:
                one = drafter if tree is not None else None
                seconds, per_round[label] = decode(target, one, tree, requests, options.tokens)
                if number >= 0:
                    per_token[label].append(seconds)
        medians = {label: statistics.median(values) for label, values in per_token.items()}
        for label, tree in HELD_OUT.items():
            shape, measured = Shape.of(tree), medians["plain"] / medians[label]
            told = predict(costs, shape, per_round[label] - 1)
            guessed = predict(costs, shape, expected(acceptance, tree))
            errors.append(told.speedup / measured - 1)
            blind.append(guessed.speedup / measured - 1)
            cells = [f"{per_round[label]:.2f}", f"{guessed.tokens:.2f}", f"{measured:.2f}", f"{told.speedup:.2f}"]
            cells += [f"{errors[-1]:+.1%}", f"{guessed.speedup:.2f}", f"{blind[-1]:+.1%}", f"{told.share:.0%}"]
            rows.append([f"{name}, {label}", *cells])
    return rows, errors, blind


def median_of(run: Callable[[], object], count: int = 7) -> float:
    """The median seconds of a call, after one warm-up."""
    seconds = []
    for _ in range(count + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def this_machine() -> Device:
    """Bandwidth of a product of a matrix with a vector, and peak of a product of matrices, in float32."""
    side = 4096
    matrix, vector = torch.randn(side, side), torch.randn(side, 1)
    bandwidth = 4 * side**2 / median_of(lambda: matrix @ vector) / 1e9
    small = torch.randn(1024, 1024)
    compute = 2 * 1024**3 / median_of(lambda: small @ small) / 1e12
    return Device(bandwidth, compute, memory=1.0)


@torch.inference_mode()
def roofline(prefix: int = 128) -> tuple[list[list[str]], list[float], str]:
    """A row per pass of the bigger models, the relative errors, and what the machine was found to be."""
    device = this_machine()
    tiny = random_model(192, 16)
    launch = max(0.0, timed_pass(tiny, 1, prefix) - projected(tiny, device, 1, prefix, 0.0)) / 16
    rows, errors = [], []
    for name, (hidden, layers) in SIZES.items():
        target = random_model(hidden, layers)
        for nodes in (1, 8, 32):
            measured = timed_pass(target, nodes, prefix)
            expected = projected(target, device, nodes, prefix, launch)
            errors.append(expected / measured - 1)
            cells = [f"{1e3 * measured:.1f}", f"{1e3 * expected:.1f}", f"{errors[-1]:+.0%}"]
            rows.append([f"{name}: {layers} layers of {hidden}", str(nodes), *cells])
    found = f"{device.bandwidth:.1f} GB/s, {1e3 * device.compute:.0f} GFLOP/s, {1e6 * launch:.0f} us a layer"
    return rows, errors, found


def random_model(hidden: int, layers: int) -> mmspec.Target:
    torch.manual_seed(0)
    heads = hidden // 64
    sizes = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": layers}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=8000)
    return mmspec.Target(LlamaForCausalLM(config))


def timed_pass(target: mmspec.Target, nodes: int, prefix: int) -> float:
    """The median seconds of scoring a chain."""
    context = target.prefill(random_request(target, prefix), capacity=prefix + nodes)
    tree = DraftTree.chain(torch.randint(1, 8000, (1, nodes), generator=torch.Generator().manual_seed(0)))
    verdict = Verdict(torch.full((1, 1), -1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))

    def run() -> None:
        context.score(tree)
        context.commit(tree, verdict)  # nothing is kept

    return median_of(run)


def projected(target: mmspec.Target, device: Device, nodes: int, prefix: int, launch: float) -> float:
    """Seconds that the roofline gives a pass."""
    config = target.family.text_config
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    sizes = Architecture(
        config.hidden_size, config.num_hidden_layers, config.intermediate_size, heads, heads, size, config.vocab_size
    )
    return pass_seconds(sizes, device, nodes, prefix=prefix, width=4, launch=launch)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def summary(errors: list[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"mean {statistics.mean(sizes):.1%}, median {statistics.median(sizes):.1%}, largest {max(sizes):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafters", nargs="+", default=["eagle3", "draft_model", "vispec"])
    parser.add_argument("--prompts", type=int, default=1, help="pictures of each task")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per answer at most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="also write the Markdown to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    rows, errors, blind = methods(mmspec.load_target("tiny"), options)
    headings = ["method", "tokens a round", "predicted", "speed-up", "predicted", "error"]
    headings += ["with predicted acceptance", "error", "share of limit"]
    say("the roofline on this machine")
    passes, roof, found = roofline()
    parts = [
        f"Decoding of the embedded target, {options.threads} threads, float32; {options.prompts} pictures of each "
        f"task, at most {options.tokens} tokens, medians of {options.repeats} repeats.",
        Sheet("", headings, rows).markdown(),
        f"- Error with the measured tokens a round: {summary(errors)}.\n"
        f"- Error with predicted acceptance as well: {summary(blind)}.",
        f"Passes of random models of another size, float32, from {found}:",
        Sheet("", ["method", "nodes", "measured ms", "projected ms", "error"], passes).markdown(),
        f"- Error of the roofline: {summary(roof)}.\n- All of this took {time.perf_counter() - started:.0f} s.",
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
