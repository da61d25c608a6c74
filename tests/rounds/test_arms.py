"""Arms: the bandits find the best one, and whatever they choose, the text stays the target's."""

from __future__ import annotations

import copy
import random
from itertools import pairwise

import pytest
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.bandits import Bandit
from mmspec.compressors import Hide, Prune
from mmspec.drafters import JacobiDrafter, LookaheadDrafter, NGramDrafter
from mmspec.rounds import Arm, ArmSelector, GatedTree, RoundGate, Unimodal, UpperConfidence, VisualAttention, arms_of
from mmspec.speed import AutoTree
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Gated, PointMassSampling, RejectionSampling
from mmspec.verifiers.gates import Every

NEW = 16


class Turns(Bandit):
    """Takes the arms in turn, and notes what it heard."""

    def __init__(self):
        self.heard = []

    def prefer(self, known):
        return sum(self.pulls) % len(self.pulls)

    def learn(self, arm, tokens, cost):
        super().learn(arm, tokens, cost)
        self.heard.append((arm, tokens, cost))


def run(selector, name="llava", rows=RAGGED, **options):
    inputs, expected = case(name, "sdpa", *rows, NEW)
    return mmspec.generate(selector.target, selector, inputs=inputs, max_new_tokens=NEW, **options), expected


@pytest.mark.parametrize("bandit", [Unimodal(), UpperConfidence()], ids=["unimodal", "ucb"])
@pytest.mark.parametrize("peak", [0, 3, 7])
def test_the_peak_is_found_and_most_rounds_are_spent_there(bandit, peak):
    draws = random.Random(peak)
    bandit = copy.copy(bandit)
    bandit.begin(9)
    for _ in range(600):
        arm = bandit.choose()
        mean = 4 - 0.45 * abs(arm - peak)
        bandit.learn(arm, max(mean + draws.uniform(-0.5, 0.5), 1), 1.0 + 0.02 * arm)
    assert max(range(9), key=bandit.speed) == peak == bandit.pulls.index(max(bandit.pulls))
    if isinstance(bandit, Unimodal):  # little is spent beyond the neighbours
        far = [bandit.pulls[arm] for arm in range(9) if abs(arm - peak) > 2]
        assert bandit.pulls[peak] > 300 and max(far) < 20


@pytest.mark.parametrize("bandit", [Unimodal(), UpperConfidence()], ids=["unimodal", "ucb"])
def test_an_arm_of_which_nothing_was_heard_is_tried_again(bandit):
    """Its request has ended before the costs of its only round were known."""
    bandit = copy.copy(bandit)
    bandit.begin(3)
    assert [bandit.choose() for _ in range(3)] == [0, 1, 2]
    bandit.learn(0, 1.0, 1.0)
    bandit.learn(1, 2.0, 1.0)
    while not bandit.counts[2]:
        arm = bandit.choose()
        bandit.learn(arm, (1.0, 2.0, 9.0)[arm], 1.0)
        assert sum(bandit.counts) < 20
    for _ in range(40):
        arm = bandit.choose()
        bandit.learn(arm, (1.0, 2.0, 9.0)[arm], 1.0)
    assert bandit.pulls.index(max(bandit.pulls)) == 2
    assert sum(bandit.pulls) == sum(bandit.counts) + 1


def test_costs_count_and_not_tokens_alone():
    bandit = Unimodal()
    bandit.begin(3)
    for _ in range(200):
        arm = bandit.choose()
        bandit.learn(arm, 2.0 + arm, (1.0, 1.2, 4.0)[arm])
    assert bandit.pulls.index(max(bandit.pulls)) == 1


def test_the_formula_is_the_papers():
    bandit = Unimodal(beta=0.5, gamma=2.0)
    bandit.begin(3)
    for arm, tokens, cost in ((0, 3.0, 1.0), (1, 4.0, 1.0), (2, 3.9, 1.0), (1, 4.0, 1.0)):
        bandit.learn(arm, tokens, cost)
    bandit.pulls = [1, 2, 1]
    assert bandit.choose() == 1  # the leader, the first time that it leads
    # sqrt((1 + 1) / 1 * (1 + 2 ln(3 * 4 * sqrt 2))) = 3.6505
    assert bandit.bound(2, 0.5 * bandit._radius(1, 2)) == pytest.approx(3.9 + 0.5 * 3.6505, abs=1e-3)
    assert bandit.choose() == 2  # the neighbour with the larger bound


KINDS = {name: make for name, make in TINY_DRAFTERS.items() if name != "early exit, block"}


@pytest.mark.parametrize("name", KINDS)
def test_every_drafter_takes_turns_with_every_other_and_changes_nothing(name):
    """Members that rest read later what they missed: what they draft then is as good as without a rest."""
    drafter = KINDS[name]("llava", "sdpa")
    trees = [Arm(tree=Chain(2)), Arm(tree=StaticTree(["0", "1", "00"]))] if drafter.tree is not None else [drafter]
    others = [
        NGramDrafter(drafter.target, length=3),
        JacobiDrafter(drafter.target, 3),
        LookaheadDrafter(drafter.target),
    ]
    selector = ArmSelector(drafter.target, drafter, [*trees, *others], Turns(), cost="work")
    out, expected = run(selector)
    assert out.token_ids == expected and out.stats.lossless
    widths = {max(record.drafted) for record in out.stats.rounds}
    assert len(widths) > 2, "the arms were not all drafted"


def test_compressors_trees_and_drafters_are_arms_in_sampled_text_too():
    eagle, own = TINY_DRAFTERS["eagle"]("llava", "sdpa"), TINY_DRAFTERS["own model"]("llava", "sdpa")
    arms = [
        Hide(),
        Arm(compressor=Prune(0.5), tree=DynamicTree(2, 2, 6)),
        GatedTree(VisualAttention(0.2)),
        AutoTree(),
        own,
    ]
    selector = ArmSelector(eagle.target, eagle, arms, Turns())
    assert len(selector.members) == 4 and selector.max_nodes == 32
    out, expected = run(selector)
    assert out.token_ids == expected
    sampled = {"temperature": 0.8, "seed": 2, "verifier": PointMassSampling()}
    plain = run(target_plain := NGramDrafter(eagle.target), **sampled)[0]
    assert target_plain.target is eagle.target and run(selector, **sampled)[0].token_ids == plain.token_ids


class Hearing(RoundGate):
    """Notes which tokens were the newest when it heard of a round."""

    shared = ("heard",)

    def __init__(self):
        self.heard = []

    def start(self, context):
        self.context = context
        self.heard.append(len(context.history[0]))

    def drafts(self):
        return True

    def observe(self, scores, verdict):
        self.heard.append(len(self.context.history[0]))


def test_the_gate_of_an_arm_hears_of_the_rounds_of_others():
    """What it looks at is the newest token, whoever has drafted it."""
    drafter, gate = TINY_DRAFTERS["own model"]("llava", "sdpa"), Hearing()
    selector = ArmSelector(drafter.target, drafter, [Chain(2), GatedTree(gate, Chain(3))], Turns(), cost="work")
    out, expected = run(selector, rows=((1,), (9,)))
    assert out.token_ids == expected
    heard = gate.heard[1:]  # behind the beginning
    emitted = [record.emitted[0] for record in out.stats.rounds]
    assert len(heard) == len(emitted) and [b - a for a, b in pairwise(heard)] == emitted[1:]


def test_a_selector_is_an_arm_of_another():
    text, eagle = (TINY_DRAFTERS[name]("llava", "sdpa") for name in ("text only", "eagle"))
    inner = ArmSelector(text.target, text, [Chain(1), Chain(2)], bandit := Turns(), cost="work", lasting=True)
    selector = ArmSelector(text.target, None, [eagle, inner], Turns(), cost="work")
    out, expected = run(selector)
    assert out.token_ids == expected
    assert len(bandit.heard) == len(out.stats.rounds) // 2, "it learns from its own rounds alone"


def test_a_rest_costs_no_acceptance():
    """A drafter that is the target: it is always right, also after rounds of others."""
    drafter = TINY_DRAFTERS["own model"]("llava", "sdpa")
    twin = mmspec.drafters.as_drafter(target_of("llava", "sdpa"), target_of("llava", "sdpa").model)
    selector = ArmSelector(drafter.target, None, [Arm(drafter=twin, tree=Chain(3)), drafter], Turns(), cost="work")
    out, expected = run(selector, rows=((1,), (9,)))
    assert out.token_ids == expected
    assert all(sum(record.accepted) == 3 for record in out.stats.rounds[:-1:2])


class Adjustable(NGramDrafter):
    """An n-gram drafter whose length is a setting that can change."""

    def adjust(self, length):
        self.length = length


def test_a_setting_of_the_drafter_is_an_arm():
    target = target_of("llava", "sdpa")
    selector = ArmSelector(target, Adjustable(target, branches=1), [{"length": 1}, {"length": 3}], Turns())
    out, expected = run(selector, rows=((1,), (9,)))
    drafted = [record.drafted[0] for record in out.stats.rounds]
    assert out.token_ids == expected and set(drafted[::2]) <= {0, 1} and max(drafted[1::2]) > 1
    with pytest.raises(MMSpecError, match="NGramDrafter has no setting 'length' that can change while it drafts"):
        ArmSelector(target, NGramDrafter(target), [{"length": 1}, {"length": 3}])


def test_drawn_text_repeats_with_its_seed_and_lessons_last_only_where_that_is_asked():
    eagle = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    arms = [Chain(length) for length in (1, 2, 4)]
    drawn = {"temperature": 1.0, "seed": 5, "verifier": RejectionSampling()}
    once = ArmSelector(eagle.target, eagle, arms)
    texts = [run(once, **drawn)[0].token_ids for _ in range(2)]
    assert texts[0] == texts[1] and sum(once.lessons.counts) == 0
    lasting = ArmSelector(eagle.target, eagle, arms, lasting=True)
    counts = []
    for _ in range(2):
        run(lasting)
        counts.append(sum(lasting.lessons.counts))
    assert 0 < counts[0] < counts[1]
    heard = []
    for _ in range(2):
        bandit = Turns()
        run(ArmSelector(eagle.target, eagle, arms, bandit, cost="work", lasting=True))
        heard.append(bandit.heard)
    assert heard[0] == heard[1] and all(cost > 1 for *_, cost in heard[0])


def test_gates_of_verifiers_are_served_by_members_that_can():
    text, eagle = (TINY_DRAFTERS[name]("llava", "sdpa") for name in ("text only", "eagle"))
    gated = {"verifier": Gated(mmspec.verifiers.Greedy(), Every(2))}
    out, _ = run(ArmSelector(text.target, text, [Chain(1), NGramDrafter(text.target)], Turns()), **gated)
    assert any(record.settled for record in out.stats.rounds)
    lasting = ArmSelector(text.target, text, [Chain(1), Chain(2)], cost="work", lasting=True)
    out, _ = run(lasting, **gated)
    assert sum(not record.settled for record in out.stats.rounds) == sum(lasting.lessons.pulls)
    run(ArmSelector(eagle.target, eagle, [Chain(1), Chain(2)], Turns()), **gated)
    with pytest.raises(MMSpecError, match="ArmSelector"):
        run(ArmSelector(eagle.target, eagle, [Chain(1), text], Turns()), **gated)


def test_refusals():
    target = target_of("llava", "sdpa")
    eagle = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    for make, message in [
        (lambda: ArmSelector(target, eagle, [Chain(1)]), "arms=.* must be a list of two arms or more"),
        (lambda: ArmSelector(target, eagle, [Chain(1), 3]), "arms has 3, which is no arm"),
        (lambda: ArmSelector(target, None, [Chain(1), Chain(2)]), "every arm needs a drafter of its own"),
        (lambda: ArmSelector(target, eagle, [Chain(1), Chain(2)], bandit=3), "bandit=3"),
        (lambda: ArmSelector(target, eagle, [Chain(1), Chain(2)], cost="money"), "cost='money' must be time or work"),
        (lambda: ArmSelector(target, NGramDrafter(target), [Chain(1), Chain(2)]), "whole trees of its own"),
        (lambda: ArmSelector(target, eagle, [Chain(1), Chain(2)], bandit=0), "bandit=0"),
        (lambda: Arm(tree=0), "Arm: tree=0 is no TreeBuilder"),
        (lambda: Arm(drafter="eagle"), "Arm: drafter='eagle' is no Drafter"),
        (lambda: Arm(settings=3), "Arm: settings=3 must be settings of the drafter by name"),
        (lambda: Arm(settings={1: 2}), "Arm: settings={1: 2} must be settings of the drafter by name"),
        (lambda: Arm(cost=0), "Arm: cost=0 must be a number above 0"),
        (lambda: Unimodal(beta=-1), "Unimodal: beta=-1"),
        (
            lambda: ArmSelector(target, TINY_DRAFTERS["early exit, block"]("llava", "sdpa"), [Chain(1), eagle]),
            "has to read every round",
        ),
    ]:
        with pytest.raises(MMSpecError, match=message):
            make()
    with pytest.raises(MMSpecError, match="DynamicTree keeps the likeliest nodes"):
        run(ArmSelector(target, eagle, [Chain(1), DynamicTree()]), temperature=1.0, verifier=RejectionSampling())
    assert isinstance(arms_of(mmspec.load_target("tiny"), "tiny/eagle3", [Chain(1), Chain(2)]), ArmSelector)
