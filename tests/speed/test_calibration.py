"""Calibration recovers costs that are known, because a fake clock charges them; and it leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace

import models
import pytest
import torch
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_requests import target_of

from mmspec import generate
from mmspec.context import Context
from mmspec.decoding import clock as clock_module
from mmspec.drafters import NGramDrafter, StepDrafter
from mmspec.inputs import prepare
from mmspec.speed import Line, Shape, calibration, predict
from mmspec.speed.calibration import measure_costs as measure
from mmspec.speed.calibration import random_request
from mmspec.trees import Chain, DynamicTree, StaticTree

FIRST, LEVEL, OVERHEAD, BRANCHING = Line(2.0, 0.25), Line(1.0, 0.125), Line(0.5, 0.03125), 0.375
STATIC, DYNAMIC, PLAIN = Line(0.25, 0.0625), Line(0.5, 0.125), 0.75


def score_seconds(nodes: int) -> float:
    return 8.0 + 0.125 * max(0, nodes - 4)


class Clock:
    """Stands still, but for what is charged."""

    now = 0.0

    def charge(self, seconds: float) -> None:
        self.now += seconds


class Charging(StepDrafter):
    """Guesses anything, at known costs."""

    def __init__(self, target, clock, tree=None):
        super().__init__(target, tree)
        self.clock = clock

    def start(self, context):
        super().start(context)
        self.read = [len(history) - 1 for history in context.history]

    def expand_root(self, root):
        lengths = [len(history) for history in self.context.history]
        self.clock.charge(FIRST(max(new - old for new, old in zip(lengths, self.read, strict=True))))
        self.read = lengths
        return self.guess(root[:, None])[:, 0]

    def expand(self, block):
        self.clock.charge(LEVEL(block.tokens.shape[1]))
        return self.guess(block.tokens)

    def guess(self, tokens):
        steps = torch.arange(self.target.vocab_size, device=tokens.device)
        return ((steps + tokens[..., None]) % 17).float()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    watch = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(clock_module, "time", watch)
    monkeypatch.setattr(calibration, "time", watch)

    def charged(cls, name, seconds):
        whole = getattr(cls, name)

        def method(self, *arguments):
            clock.charge(seconds(*arguments))
            return whole(self, *arguments)

        monkeypatch.setattr(cls, name, method)

    def overhead(tree, verdict):
        if tree.num_nodes == 1:
            return PLAIN
        return OVERHEAD(tree.num_nodes - 1) + (0.0 if tree.is_chain else BRANCHING)

    charged(Context, "score", lambda tree: score_seconds(tree.num_nodes))
    charged(Context, "commit", overhead)
    for builder, line in ((StaticTree, STATIC), (DynamicTree, DYNAMIC)):
        charged(builder, "build", lambda growth, line=line: line.base)
    expand = Charging.expand

    def choosing(self, block):
        line = {StaticTree: STATIC, DynamicTree: DYNAMIC}.get(type(self.tree), Line())
        clock.charge(line.slope)
        return expand(self, block)

    monkeypatch.setattr(Charging, "expand", choosing)
    return clock


@pytest.mark.parametrize("rows", [1, 2])
def test_known_costs_are_recovered(clock, rows):
    target = target_of("llama", "sdpa")
    costs = measure(target, Charging(target, clock), prefix=24, batch_size=rows, repeats=1, warmup=1)
    assert costs.plain_overhead == pytest.approx(PLAIN) and costs.block is None
    assert [costs.score(n) for n in (1, 2, 5, 9, 26)] == pytest.approx([score_seconds(n) for n in (1, 2, 5, 9, 26)])
    assert costs.branching == pytest.approx(BRANCHING)
    expected = {"overhead": OVERHEAD, "first": FIRST, "level": LEVEL, "static": STATIC, "dynamic": DYNAMIC}
    for name, line in expected.items():
        assert vars(getattr(costs, name)) == pytest.approx(vars(line)), name
    assert costs.conditions["batch_size"] == rows and costs.conditions["dtype"] == "float32"
    # A shape that was not timed: four levels of three nodes, eleven of them scored.
    one = predict(costs, Shape.dynamic(4, 3, 12), accepted=1.5)
    draft = FIRST(2.5) + 3 * LEVEL(3) + DYNAMIC(3)
    assert (one.draft, one.overhead) == (pytest.approx(draft), pytest.approx(OVERHEAD(11) + BRANCHING))


def test_a_drafter_of_whole_trees_has_one_price(clock, monkeypatch):
    target = target_of("llama", "sdpa")
    drafter = NGramDrafter(target)
    draft = NGramDrafter.draft

    def charged(self, root):
        clock.charge(0.25)
        return draft(self, root)

    monkeypatch.setattr(NGramDrafter, "draft", charged)
    costs = measure(target, drafter, prefix=24, repeats=1, warmup=0)
    assert costs.block == 0.25 and costs.first == Line()
    assert [costs.score(n) for n in (1, 2, 5, 17)] == pytest.approx([score_seconds(n) for n in (1, 2, 5, 17)])


def test_small_trees_only(clock):
    target = target_of("llama", "sdpa")
    costs = measure(target, Charging(target, clock), prefix=24, max_nodes=4, repeats=1, warmup=0)
    assert max(costs.score.counts) <= 5
    assert predict(costs, Shape.chain(3), 1.0).draft == pytest.approx(FIRST(2) + 2 * LEVEL(1))


def test_nothing_is_left_behind():
    target = target_of("llava", "sdpa")
    drafter = blurred_drafter("llava", "sdpa")
    inputs = models.inputs_for("llava", [1], [9])
    before = generate(target, drafter, inputs=inputs, max_new_tokens=12)
    random, attributes = torch.get_rng_state(), dict(vars(drafter))
    weights = [parameter.clone() for parameter in (*target.model.parameters(), *drafter.parameters())]
    costs = measure(target, drafter, prepare(target, inputs=inputs), repeats=1, warmup=0)
    assert costs.step > 0 and costs.first(2) + costs.level(1) > 0 and costs.plain_overhead > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert vars(drafter).keys() == attributes.keys() and drafter.tree is attributes["tree"]
    after = (*target.model.parameters(), *drafter.parameters())
    assert all(torch.equal(old, new) for old, new in zip(weights, after, strict=True))
    again = generate(target, drafter, inputs=inputs, max_new_tokens=12)
    assert again.token_ids == before.token_ids
    assert [r.accepted for r in again.stats.rounds] == [r.accepted for r in before.stats.rounds]


def test_random_text_has_no_pictures_in_it():
    target = target_of("llava", "sdpa")
    request = random_request(target, 400, rows=2)
    assert request.lengths == [400, 400] and target.family.image_token_id not in request.inputs["input_ids"].unique()
    assert len(request.inputs["input_ids"].unique()) > 20


@pytest.mark.parametrize("wrong", [{"prefix": 1}, {"batch_size": 0}, {"max_nodes": 0}, {"repeats": 0}, {"warmup": -1}])
def test_numbers_out_of_range(wrong):
    target = target_of("llama", "sdpa")
    refused(lambda: measure(target, Charging(target, Clock(), Chain(2)), **wrong), f"{next(iter(wrong))}=")
