"""Measure the costs of a target and a drafter, by timing real rounds of the real loop."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..decoding.sampling import LogitsPipeline
from ..decoding.stopping import Stopping
from ..decoding.token_run import TokenRun
from ..drafters import Drafter, NoDrafter
from ..errors import MMSpecError
from ..inputs import Request, prepare
from ..models.weights import count_weights
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees import BestFirstTree, Chain, DynamicTree, StaticTree, TreeBuilder
from ..verifiers import Greedy, longest, reached
from .costs import Costs, Curve, Line
from .shapes import Shape

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target

ACCEPTED = (0, 2)
"""Numbers of accepted tokens, used in turns so that the drafter's first pass reads a short text in one round and a long
one in the next."""

FORWARD = ("draft", "score")
WIDE = [(r,) for r in range(4)] + [(r, s) for r in range(4) for s in range(3)] + [(r, 0, 0) for r in range(3)]


def shapes_to_time(max_nodes: int, independent: bool = False) -> list[TreeBuilder]:
    """Return chains and trees that draft at most `max_nodes` nodes, few enough to be timed in a second or two.

    Args:
        max_nodes: see above.
        independent: True for trees of marginals too, see `Drafter.independent`.
    """
    chains: list[TreeBuilder] = [Chain(length) for length in (1, 2, 4, 8) if length <= max_nodes]
    statics: list[TreeBuilder] = [StaticTree([(0,), (1,), (0, 0)]), StaticTree(WIDE), StaticTree("eagle1")]
    sizes = [(2, 2, 5), (3, 4, 13), (5, 4, 17), (4, 8, 33)]
    dynamics: list[TreeBuilder] = [DynamicTree(*size) for size in sizes]
    dynamics += [DynamicTree(6, 8, size + 1) for size in (48, 64) if size <= max_nodes]
    trees = [*statics, *dynamics, *(BestFirstTree(size) for size in (8, 32) if independent)]
    return [*chains, *(tree for tree in trees if tree.max_nodes is not None and tree.max_nodes <= max_nodes)]


class _Forced(Greedy):
    """Does the work of `Greedy`, then accepts a given number of tokens of the first-child path.

    Attributes:
        accept: number of drafted tokens to accept, as far as the tree goes.
        extra: seconds that this took, which no real verifier needs.
    """

    accept = 0
    extra = 0.0

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Accept `accept` tokens of the first-child path."""
        super().verify(tree, scores)
        started = time.perf_counter()
        allowed = reached(tree, tree.first_children & (tree.depth <= self.accept))
        verdict = longest(tree, allowed, scores.logits.argmax(-1))
        self.extra = time.perf_counter() - started
        return verdict


class _Filler(Drafter):
    """Proposes a chain of `length` copies of the newest token, for timing the target alone."""

    def __init__(self, target: Target, length: int = 1):
        super().__init__(target)
        self.length = length

    def start(self, context: Context) -> None:
        pass

    def draft(self, root: Tensor) -> DraftTree:
        return DraftTree.chain(root[:, None].expand(-1, self.length + 1).contiguous())


class _TimedRun:
    """A request whose prompt was run and whose rounds are timed.

    Attributes:
        confirmed: number of tokens that the last round confirmed.
    """

    def __init__(self, target: Target, drafter: Drafter | None, request: Request, room: int):
        if drafter is not None:
            drafter = drafter.fork()
        self.run = TokenRun(target, drafter, _Forced(), LogitsPipeline(), request, Stopping(room), 0)
        self.run.begin()
        assert isinstance(self.run.verifier, _Forced)
        self.verifier = self.run.verifier  # the copy for this request
        self.confirmed = 1

    @property
    def drafter(self) -> Drafter:
        """Drafter of the next round."""
        return self.run.drafter

    @drafter.setter
    def drafter(self, drafter: Drafter) -> None:
        self.run.drafter = drafter

    def round(self, shape: Shape | None, accept: int, timings: Timings | None = None) -> None:
        """Run one round, with as many tokens accepted as the tree has levels, `accept` at most."""
        self.verifier.accept = accept
        self.run.clock.resume()
        self.run.round()
        self.run.clock.settle()
        record = self.run.transcript.stats.rounds[-1]
        seconds = dict(record.seconds)
        seconds["verify"] = max(0.0, seconds["verify"] - self.verifier.extra)
        if shape is None:
            shape = Shape("block", (), max(record.drafted), record.depth)
        if timings is not None:
            timings.add(shape, self.confirmed, seconds)
        self.confirmed = max(record.emitted)


class Timings:
    """Durations of the phases of rounds, by shape and by the number of tokens that the round before confirmed."""

    def __init__(self) -> None:
        self.samples: dict[tuple[Shape, int], list[dict[str, float]]] = defaultdict(list)

    def add(self, shape: Shape, confirmed: int, seconds: dict[str, float]) -> None:
        """Add the seconds of one round, by phase."""
        self.samples[shape, confirmed].append(seconds)

    def rows(self, phases: Sequence[str]) -> list[tuple[Shape, int, float]]:
        """Return per shape and confirmed tokens the median seconds of some phases together."""
        return [
            (shape, confirmed, statistics.median(sum(one[phase] for phase in phases) for one in samples))
            for (shape, confirmed), samples in self.samples.items()
        ]


@torch.inference_mode()
def measure_costs(
    target: Target,
    drafter: Drafter,
    request: Request | None = None,
    *,
    prefix: int = 256,
    batch_size: int = 1,
    max_nodes: int = 32,
    repeats: int = 5,
    warmup: int = 2,
) -> Costs:
    """Time rounds of plain decoding and of the drafter with chains and trees of many sizes, in turns.

    Every time is the median over the repeats of one shape; the shapes take turns, so a machine that is busy for a while
    slows all of them alike. How much is accepted is forced, so the weights may be random. Nothing of target and drafter
    is changed, and no global random state is used.

    Args:
        target: the model that scores.
        drafter: the drafter to measure.
        request: the prompt, for drafters that need pictures and for costs at its own length; random text if None.
        prefix, batch_size: tokens and rows of the random text.
        max_nodes: number of nodes of the largest tree to time.
        repeats: number of rounds for every shape with every number of accepted tokens.
        warmup: number of rounds over all shapes that do not count.

    Raises:
        MMSpecError: if a number is not positive, or the drafter cannot serve the request.
    """
    for name, value, least in (("prefix", prefix, 2), ("batch_size", batch_size, 1), ("max_nodes", max_nodes, 1)):
        if value < least:
            raise MMSpecError(f"measure_costs: {name}={value} must be {least} or more")
    if repeats < 1 or warmup < 0:
        raise MMSpecError(f"measure_costs: repeats={repeats} must be 1 or more, warmup={warmup} 0 or more")
    request = request or random_request(target, prefix, batch_size)
    grows = drafter.tree is not None
    fillers = [] if grows else [Shape.chain(n) for n in (1, 2, 4, 8, 16, 32, 64) if n <= max_nodes]
    builders = shapes_to_time(max_nodes, drafter.independent) if grows else []
    each = len(builders) or len(fillers) + 1
    rounds = (warmup + repeats) * len(ACCEPTED) * each
    room = 2 + rounds * (1 + max(ACCEPTED))
    plain, filled, drafted = Timings(), Timings(), Timings()
    alone = _TimedRun(target, None, request, room)
    ours = _TimedRun(target, drafter, request, room)
    other = _TimedRun(target, _Filler(target), request, room) if fillers else ours
    for number in range(warmup + repeats):
        counts = number >= warmup
        for accept in ACCEPTED:
            alone.round(Shape.plain(), 0, plain if counts else None)
            for shape in fillers:
                other.drafter = _Filler(target, int(shape.nodes))
                other.round(shape, accept, filled if counts else None)
            for builder in builders:
                ours.drafter.tree = builder.fork()
                ours.round(Shape.of(builder), accept, drafted if counts else None)
            if not grows:
                ours.round(None, accept, drafted if counts else None)
            _catch_up(alone, ours)
    conditions = describe(target, drafter, request) | {"prefix": request.max_length + room // 2, "repeats": repeats}
    return _fit(plain, filled, drafted, grows, conditions)


def random_request(target: Target, length: int, rows: int = 1, seed: int = 0) -> Request:
    """Make rows of random text, `length` tokens each; no token stands for a picture."""
    special = {*target.family.placeholders, getattr(target.model.config, "video_token_id", None)}
    tokens = torch.tensor([token for token in range(target.vocab_size) if token not in special], device="cpu")
    generator = torch.Generator().manual_seed(seed)
    ids = tokens[torch.randint(len(tokens), (rows, length), generator=generator, device="cpu")].to(target.device)
    return prepare(target, inputs={"input_ids": ids})


def describe(target: Target, drafter: Drafter, request: Request) -> dict[str, Any]:
    """Return the conditions that costs depend on, as plain JSON values."""
    device = target.device
    try:
        settings = drafter.config()
    except NotImplementedError:  # a drafter that cannot be saved is told by its class and size
        settings = None
    return {
        "target": type(target.model).__name__,
        "target_config": target.family.text_config.to_diff_dict(),
        "target_parameters": count_weights(target.model),
        "attention": target.attention,
        "compiled": bool(getattr(target, "compile", False)),
        "drafter": f"{type(drafter).__module__}.{type(drafter).__qualname__}",
        "drafter_config": settings,
        "drafter_parameters": count_weights(drafter),
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "batch_size": request.batch_size,
    }


def _catch_up(alone: _TimedRun, ours: _TimedRun) -> None:
    """Make the text of the plain run as long as the other, so that both read as many tokens from the cache."""
    behind = len(ours.run.context.history[0]) - len(alone.run.context.history[0]) - 1
    if behind > 0:
        target = alone.run.target
        alone.drafter = _Filler(target, behind)
        alone.verifier.accept = behind
        alone.run.round()
        alone.drafter = NoDrafter(target)


def _fit(plain: Timings, filled: Timings, drafted: Timings, grows: bool, conditions: dict[str, Any]) -> Costs:
    """Fit the costs of the parts to the medians, which are sums of them."""
    others = [phase for phase in next(iter(drafted.samples.values()))[0] if phase not in FORWARD]
    ((_, _, step),) = plain.rows(["score"])
    # Plain run drafts nothing, but the loop's making of a root-only tree is booked there.
    ((_, _, alone),) = plain.rows(["draft", *others])
    scored = drafted.rows(["score"]) if grows else filled.rows(["score"])
    score = Curve.through([(1, step), *((shape.nodes + 1, seconds) for shape, _, seconds in scored)])
    rest = drafted.rows(others)
    base, slope, branching = _least_squares(
        [(1.0, shape.nodes, float(shape.kind not in ("chain", "block"))) for shape, _, _ in rest],
        [seconds for *_, seconds in rest],
    )
    common = Costs(
        score=score,
        plain_overhead=alone,
        overhead=Line(base, slope),
        branching=branching,
        conditions=conditions,
    )
    drafting = drafted.rows(["draft"])
    if not grows:
        return replace(common, block=statistics.median(seconds for *_, seconds in drafting))
    rows = []
    for shape, confirmed, _ in drafting:
        static, dynamic, further = shape.kind == "static", shape.kind == "dynamic", shape.passes - 1
        best = shape.kind == "best_first"
        choosing = (static, static * further, dynamic, dynamic * further, best, best * shape.nodes)
        rows.append((1.0, confirmed, further, sum(shape.levels[1:]), *choosing))
    fitted = _least_squares(rows, [seconds for *_, seconds in drafting])
    first, level, static_line, dynamic_line, best_line = (Line(*fitted[place : place + 2]) for place in range(0, 10, 2))
    return replace(common, first=first, level=level, static=static_line, dynamic=dynamic_line, best_first=best_line)


def _least_squares(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return factors of the columns, none below 0, that give the seconds with the least relative error.

    A factor below 0 is noise around 0: the most negative one is left out and the rest fitted again.
    """
    matrix, values = np.array(rows, dtype=float), np.array(seconds, dtype=float)
    scale = np.maximum(values, 1e-9)
    matrix, ones = matrix / scale[:, None], values / scale
    free = list(range(matrix.shape[1]))
    found = np.zeros(matrix.shape[1])
    while free:
        solution = np.linalg.lstsq(matrix[:, free], ones, rcond=None)[0]
        worst = int(solution.argmin())
        if solution[worst] >= -1e-12:
            found[free] = np.maximum(solution, 0.0)
            break
        del free[worst]
    return found.tolist()
