"""The target without some of its sub-layers drafts, and the pass that scores goes on behind the first whole layers."""

from __future__ import annotations

from collections import Counter

import models
import pytest
import torch
from refusals import refused
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import Target
from mmspec.context import Context
from mmspec.drafters import NGramDrafter, SkippingDrafter
from mmspec.drafters.skipping_arms import Arms, least_important
from mmspec.drafters.skipping_knapsack import NODES, candidates, knapsack_arms, promise, weights_of
from mmspec.evaluation.structures import structure_of
from mmspec.inputs import prepare
from mmspec.models.hooks import Ear, listening
from mmspec.models.states import END, capture
from mmspec.rounds import ArmSelector
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NEW = 12
TREES = {"chain": Chain(3), "dynamic": DynamicTree(3, 3, 8)}


def deep(layers: int = 6) -> Target:
    return Target(models.llama(layers=layers))


def begun(target: Target) -> tuple[Context, torch.Tensor]:
    """A request of two rows of different lengths behind its prompt, and its first root."""
    context = Context(target, prepare(target, inputs=models.inputs_for("llama", [0, 0], [9, 6])))
    root = context.logits.argmax(-1)
    context.admit(root[:, None].tolist())
    return context, root


@pytest.mark.parametrize("skipped", [(4,), (5,), (2, 5), (0, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen_vl", "gemma3", "mistral"])
def test_the_text_is_the_targets_whatever_is_skipped(name, skipped):
    target = target_of(name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    for tree in TREES.values():
        drafter = SkippingDrafter(target, skipped=skipped, tree=tree)
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected


def test_with_nothing_skipped_every_guess_is_right():
    target = target_of("llama", "sdpa")
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    out = mmspec.generate(target, SkippingDrafter(target, skipped=(), tree=Chain(3)), inputs=inputs, max_new_tokens=NEW)
    assert out.token_ids == expected
    assert all(one.accepted == one.drafted for one in out.stats.rounds[:-1])


def test_what_is_skipped_does_not_run_and_first_layers_run_once():
    """Of a chain every node passes once through the layers before the first that lacks something; the rest is run in
    the scoring pass, and in the draft but for what is skipped."""
    target, tree = deep(), Chain(3)
    counts: Counter[str] = Counter()

    def ear(label: str, module: torch.nn.Module) -> Ear:
        def heard(args, kwargs):
            counts[label] += (args[0] if args else kwargs["hidden_states"]).shape[1]

        return Ear(module, before=heard)

    ears = [
        ear(f"{kind} {n}", getattr(layer, kind))
        for n, layer in enumerate(target.family.layers)
        for kind in ("self_attn", "mlp")
    ]
    drafter = SkippingDrafter(target, skipped=(4, 6, 7, 9), tree=tree)  # of six layers
    inputs = models.inputs_for("llama", [0], [9])
    with listening(ears):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW)
    assert out.token_ids == models.reference(target.model, inputs, NEW)
    once = counts["self_attn 0"]
    assert {counts[f"{kind} {n}"] for kind in ("self_attn", "mlp") for n in (0, 1)} == {once}
    skipped = {counts[part] for part in ("self_attn 2", "self_attn 3", "mlp 3", "mlp 4")}
    drafted = {counts[part] for part in ("mlp 2", "self_attn 4", "self_attn 5", "mlp 5")}
    assert skipped == {once}, "the prompt and the scoring passes alone"
    assert len(drafted) == 1 and drafted.pop() > once


def test_layers_that_change_nothing_are_skipped_first():
    """Their output maps are zero, so the guesses stay right and the arms that skip them are the first."""
    target = deep(8)
    for number in (3, 5):
        layer = target.family.layers[number]
        with torch.no_grad():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    drafter = SkippingDrafter(target, tree=Chain(3), most=3)
    inputs = models.inputs_for("llama", [0, 0], [9, 6])
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=30)
    assert out.token_ids == models.reference(target.model, inputs, 30)
    arms = drafter.arms
    assert arms.complete and [len(skipped) for skipped in arms.sets] == [2, 4, 6]
    assert arms.sets[1] == {6, 7, 10, 11}
    assert structure_of(drafter)["layers"] == drafter.kept == 1 - len(arms.best) / 16
    again = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=30)
    assert again.token_ids == out.token_ids and drafter.arms is arms, "requests share what was found"


class Rests(Chain):
    """Drafts in every third round only."""

    shared = ("asked",)

    def __init__(self, length: int):
        super().__init__(length)
        self.asked = []

    def build(self, growth):
        self.asked.append(1)
        return super().build(growth) if len(self.asked) % 3 == 1 else growth.nothing()


@pytest.mark.parametrize("verifier", [Greedy(), Gated(Greedy(), Every(2))], ids=["greedy", "gated"])
def test_the_search_goes_on_behind_rounds_that_teach_nothing(verifier):
    """An arm that was chosen for a round without a draft, or for one that a gate has settled, is tried again."""
    target = deep(8)
    drafter = SkippingDrafter(target, most=3)
    inputs = models.inputs_for("llama", [0], [9])
    tree = Rests(3) if isinstance(verifier, Greedy) else Chain(3)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=60, tree=tree, verifier=verifier)
    arms, judged = drafter.arms, [one for one in out.stats.rounds if any(one.drafted) and not one.settled]
    assert arms.complete and len(arms.sets) == 3 and all(arms.bandit.counts)
    assert arms.rounds == len(judged)


def test_states_of_the_knapsack_are_those_of_a_branch_without_the_set():
    target = deep(4)
    context, root = begun(target)
    best = candidates(context, root, protected=1)
    weights = weights_of(target.family.layers, context.cache.longest, target.hidden_size)
    assert len(best) > 2 and max(best) <= sum(weights) // 2
    tokens = [root]
    whole = context.branch(skipped=())
    for place in range(NODES - 1):
        depth, seen = torch.full((2, 1), place), torch.ones(2, 1, place + 1, dtype=torch.bool)
        tokens.append(whole.read(tokens[-1][:, None], seen, depth).logits[:, -1].argmax(-1))
    whole.drop()
    chain, depth = torch.ones(NODES, NODES, dtype=torch.bool).tril().expand(2, -1, -1), torch.arange(NODES)
    for weight, one in best.items():
        assert sum(weights[number] for number in one.skipped) == weight
        assert not one.skipped & {0, 1, 6, 7}
        branch = context.branch(skipped=one.skipped)
        with torch.inference_mode(), capture(branch.model.family, [END]) as found:
            branch.read(torch.stack(tokens, 1), chain, depth.expand(2, -1))
        branch.drop()
        torch.testing.assert_close(one.states, found[END], atol=1e-4, rtol=1e-4)


def test_arms_of_the_knapsack_draft(monkeypatch):
    target = deep()
    drafter = SkippingDrafter(target, arms="knapsack", tree=Chain(3), most=3)
    inputs = models.inputs_for("llama", [0, 0], [9, 6])
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=20)
    assert out.token_ids == models.reference(target.model, inputs, 20)
    assert drafter.arms.complete and 1 <= len(drafter.arms.sets) <= 3
    context, root = begun(target)
    sizes = [len(skipped) for skipped in knapsack_arms(context, root, 1, 4)]
    assert sizes == sorted(sizes) and min(sizes) > 0


def test_the_best_arm_is_found_and_its_neighbours_are_tried():
    """Rewards with one peak, at the fourth of six arms."""
    rewards = (1.0, 1.5, 2.0, 2.6, 1.4, 0.8)
    arms = Arms([frozenset({number}) for number in range(6)], complete=True)
    chosen = Counter()
    for _ in range(300):
        arm = arms.choose()
        number = next(iter(arm))
        chosen[number] += 1
        arms.learn(arm, rewards[number], 1.0)
    assert chosen.most_common(1)[0][0] == 3 and chosen[3] > 150
    assert chosen[0] < 10 and chosen[2] > 1


def test_what_the_choice_rests_on():
    assert least_important([0.1, 0.05, 0.2], [0, 2, 3], {2}) == 0
    assert least_important([0.1], [1], {1}) is None
    assert promise(1.0, 0, 10) == pytest.approx(1.8) and promise(0.0, 5, 10) == pytest.approx(0.1)


def test_what_is_skipped_may_change_while_a_text_is_written(monkeypatch):
    use = SkippingDrafter._use
    target = target_of("llama", "sdpa")
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    drafter = SkippingDrafter(target, skipped=(2, 3))
    arms = [{"skipped": ()}, {"skipped": (4,)}, {"skipped": (2, 5)}, NGramDrafter(target)]
    selector = ArmSelector(target, drafter, arms, cost="work", lasting=True)
    assert mmspec.generate(target, selector, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    assert sum(count > 0 for count in selector.lessons.counts) >= 3
    drafter.start(begun(target)[0])
    both, used = ArmSelector(target, drafter, [{"skipped": ()}, Chain(2)], cost="work"), []
    monkeypatch.setattr(
        SkippingDrafter, "_use", lambda self, skipped: used.append(sorted(skipped)) or use(self, skipped)
    )
    assert mmspec.generate(target, both, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    assert used[2:4] == [[], [2, 3]], "behind two starts; an arm without the setting has the drafter's own"
    refused(lambda: drafter.adjust(layers=3), "SkippingDrafter has no setting 'layers' that can change")


def test_what_cannot_be():
    target = target_of("llama", "sdpa")
    refused(lambda: SkippingDrafter(target, skipped=(6,)), "skipped=6 is no sub-layer of 3 layers")
    refused(lambda: SkippingDrafter(target, skipped=tuple(range(6))), "names all 6 sub-layers")
    refused(lambda: SkippingDrafter(target, arms="best"), "arms='best' is unknown; there are importance, knapsack")
    refused(lambda: SkippingDrafter(target, protected=2), "protected=2 leaves none of the 3 layers")
    for strange in (4, "4", ["4"]):
        arms = [{"skipped": strange}, Chain(2)]
        refused(lambda arms=arms: ArmSelector(target, SkippingDrafter(target), arms), "skipped= ... must be a list")
    context, _ = begun(target)
    refused(lambda: context.branch(layers=1, skipped=(2,)), "give one of layers=, entries= and skipped=")
