"""The target's first layers draft, with a network above them, and the pass that scores goes on from their states."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import models
import pytest
import torch
from full_recompute import recompute
from refusals import refused
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import Target
from mmspec.context import Context
from mmspec.drafters import EarlyExitDrafter
from mmspec.evaluation.structures import structure_of
from mmspec.lesson import Lesson
from mmspec.models import session as sessions
from mmspec.models.cache import TreeCache
from mmspec.models.hooks import Ear, listening
from mmspec.models.own_layers import ResidualMLP
from mmspec.models.session import ModelSession
from mmspec.models.states import END, LAST, left
from mmspec.training import Objective
from mmspec.training.losses import CosineToLast, CrossEntropy, KullbackLeibler
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NEW = 12
TREES = {
    "chain": Chain(3),
    "static": StaticTree(["0", "1", "00", "10", "000"]),
    "dynamic": DynamicTree(3, 3, 8),
}
KINDS = {
    "none": {},
    "block": {"imitation": "block"},
    "mlp": {"imitation": "mlp", "inner": 24},
}


def drafter_of(target: Target, kind: str = "block", layers: int = 1, **options) -> EarlyExitDrafter:
    return models.redraw(EarlyExitDrafter(target, layers=layers, **KINDS[kind], **options), 5).eval()


def count_layers(target: Target, counts: Counter, layers) -> list[Ear]:
    """Observers that count, by number of the layer, the tokens that pass through it."""

    def ear(number: int, layer: torch.nn.Module) -> Ear:
        def heard(args, kwargs):
            counts[number] += (args[0] if args else kwargs["hidden_states"]).shape[1]

        return Ear(layer, before=heard)

    return [ear(number, layer) for number, layer in layers]


# What is computed.


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_token_runs_through_a_layer_twice(kind, tree, monkeypatch):
    """The first layers read what was expanded and what is left of the tree, the others read the tree; of a chain both
    are the same tokens. (Without going on, the first layers would read the tree a second time.)"""
    target = Target(models.llama(layers=4))
    drafter, rounds, counts = drafter_of(target, kind, 2), [], Counter()
    draft, commit = EarlyExitDrafter.draft, Context.commit

    def drafting(self, root):
        counts.clear()
        grown = draft(self, root)
        rounds.append([Counter(counts), grown])
        return grown

    def committing(self, grown, verdict):
        rounds[-1].append(Counter(counts))
        return commit(self, grown, verdict)

    monkeypatch.setattr(EarlyExitDrafter, "draft", drafting)
    monkeypatch.setattr(Context, "commit", committing)
    layers = [*enumerate(target.family.layers), *enumerate(drafter.imitation, start=10)]
    with listening(count_layers(target, counts, layers)):
        inputs = models.inputs_for("llama", [0], [9])
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=TREES[tree])
    assert out.token_ids == models.reference(target.model, inputs, NEW) and rounds
    for before, grown, after in rounds:
        left = int((grown.expansion < 0).sum())
        for number in (0, 1, *range(10, 10 + len(drafter.imitation))):
            assert after[number] == before[number] + left
        assert before[2] == before[3] == 0 and after[2] == after[3] == grown.num_nodes
        if tree == "chain":
            assert left == 1 and after[0] == grown.num_nodes


def test_a_round_that_drafts_nothing_runs_every_layer_once():
    target = Target(models.llama(layers=4))
    inputs, counts = models.inputs_for("llama", [0], [9]), Counter()

    class Nothing(Chain):
        def build(self, growth):
            return growth.nothing()

    for kind in KINDS:
        drafter = drafter_of(target, kind, 2)
        counts.clear()
        with listening(count_layers(target, counts, enumerate(target.family.layers))):
            out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Nothing())
        assert out.token_ids == models.reference(target.model, inputs, NEW)
        assert len(set(counts.values())) == 1, kind


# What would go wrong: each of these must be seen.


def rolled(pick):
    return lambda states, slots: pick(states, slots).roll(1, dims=1)


MISTAKES = {
    "states of other nodes": lambda patch: patch.setattr(sessions, "pick", rolled(sessions.pick)),
    "entries of other nodes": lambda patch: patch.setattr(TreeCache, "arrange", lambda *arguments: None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_states_and_wrong_entries_change_the_text(mistake, monkeypatch):
    target = target_of("llama", "sdpa")
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    drafter = EarlyExitDrafter(target, layers=2, imitation="block", tree=TREES["dynamic"])  # its guesses are right
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    MISTAKES[mistake](monkeypatch)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids != expected


# Text and states.


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
@pytest.mark.parametrize("kind", ["none", "block"])
def test_tokens_that_were_emitted_unread_go_on_from_their_states_too(kind, tree):
    target = target_of("llama", "sdpa")
    inputs = case("llama", "sdpa", *RAGGED, NEW)[0]
    gate = Gated(Greedy(), Every(2))
    settings = {"inputs": inputs, "max_new_tokens": NEW, "tree": TREES[tree], "verifier": gate}
    drafter = drafter_of(target, kind, 2)
    out = mmspec.generate(target, drafter, **settings)
    assert out.stats.num_unverified_tokens > 0
    with pytest.MonkeyPatch.context() as patch:  # the same rounds, scored from the first layer on
        patch.setattr(ModelSession, "go_on", lambda self, ahead, *block: self.read(*block))
        if kind == "none":
            assert mmspec.generate(target, drafter, **settings).token_ids == out.token_ids


class Curious(EarlyExitDrafter):
    """Asks for the states of every layer, and keeps those of the accepted paths."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.feature_layers = (0, 1, left(0), 2, END, END - 1, LAST)

    def start(self, context):
        super().start(context)
        self.seen.clear()

    def observe(self, tree, scores, verdict):
        super().observe(tree, scores, verdict)
        kept = verdict.path[0, : verdict.lengths[0]]
        self.seen.append({layer: states[0, kept] for layer, states in scores.features.items()})


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
@pytest.mark.parametrize("kind", ["none", "block"])
def test_states_of_all_layers_are_those_of_a_pass_over_the_text(kind, tree):
    target = target_of("llama", "sdpa")
    inputs = models.inputs_for("llama", [0], [9])
    Curious.shared = ("seen",)
    drafter = models.redraw(Curious(target, layers=2, **KINDS[kind], tree=TREES[tree]), 5)
    drafter.seen = []
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW)
    answer = out.token_ids[0]
    read = recompute(target.model, inputs, [answer], output_hidden_states=True)
    states, prompt = read.hidden_states, inputs["input_ids"].shape[1]
    wanted = {0: states[0], 1: states[1], left(0): states[1], 2: states[2], END - 1: states[2], LAST: states[3]}
    for layer, expected in wanted.items():
        found = torch.cat([one[layer] for one in drafter.seen])[: len(answer) - 1]
        torch.testing.assert_close(found, expected[0, prompt : prompt + len(found)], atol=1e-4, rtol=1e-4)
    before = torch.cat([one[END] for one in drafter.seen])
    torch.testing.assert_close(target.family.final_norm(before), torch.cat([one[LAST] for one in drafter.seen]))


# The network above.


@pytest.mark.parametrize("name", ["llama", "qwen_vl", "gemma3", "mistral"])
def test_a_block_that_is_the_next_layer_drafts_as_that_layer_does(name):
    """It begins with that layer's weights: n layers and a block guess what n + 1 layers guess, entry by entry."""
    target = target_of(name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    for tree in TREES.values():
        block, plain = (
            mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
            for drafter in (
                EarlyExitDrafter(target, layers=1, imitation="block", blocks=2),
                EarlyExitDrafter(target, layers=3),
            )
        )
        assert block.token_ids == plain.token_ids == expected
        assert [one.emitted for one in block.stats.rounds] == [one.emitted for one in plain.stats.rounds]
        assert block.stats.mean_acceptance_length > 2


def test_an_mlp_begins_as_the_identity():
    target = target_of("llama", "sdpa")
    inputs = case("llama", "sdpa", *RAGGED, NEW)[0]
    mlp, plain = (
        mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(3))
        for drafter in (EarlyExitDrafter(target, layers=2, imitation="mlp"), EarlyExitDrafter(target, layers=2))
    )
    assert [one.emitted for one in mlp.stats.rounds] == [one.emitted for one in plain.stats.rounds]


def lesson_of(name: str, drafter: EarlyExitDrafter, losses) -> tuple[Lesson, dict]:
    target = drafter.target
    inputs, answers = case(name, "sdpa", *RAGGED, NEW)
    layers = [*drafter.feature_layers, *(layer for loss in losses for layer in loss.feature_layers)]
    return Teacher(target, layers).study(mmspec.inputs.prepare(target, inputs=inputs), answers), inputs


@pytest.mark.parametrize("kind", ["block", "mlp"])
@pytest.mark.parametrize("name", ["llama", "qwen_vl", "gemma3"])
def test_a_lesson_guesses_what_the_drafter_guesses(name, kind, monkeypatch):
    drafter = drafter_of(target_of(name, "sdpa"), kind)
    lesson, inputs = lesson_of(name, drafter, [])
    guesses = list(drafter.unroll(lesson, 3))
    roots = []
    expand = EarlyExitDrafter.expand_root
    monkeypatch.setattr(
        EarlyExitDrafter, "expand_root", lambda self, root: roots.append(expand(self, root)) or roots[-1]
    )
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(1))
    first = guesses[0].places.tolist()
    assert first[0] == 1
    torch.testing.assert_close(roots[0][0], guesses[0].logits[0], atol=2e-4, rtol=2e-4)
    assert len(guesses) == 3 and guesses[1].places.tolist()[0] == 2
    later = first.index(2)
    torch.testing.assert_close(guesses[1].logits[0], guesses[0].logits[later])


@pytest.mark.parametrize("loss", [CosineToLast(), KullbackLeibler(), CrossEntropy()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("kind", ["block", "mlp"])
def test_training_changes_the_network_alone_and_brings_it_closer(kind, loss):
    target = Target(models.llama())
    torch.manual_seed(0)
    drafter = EarlyExitDrafter(target, layers=1, **KINDS[kind])
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    lesson, _ = lesson_of("llama", drafter, [loss])
    objective, optimizer = Objective([loss]), torch.optim.Adam(drafter.trainable_parameters(), lr=0.003)
    values = []
    for _ in range(15):
        value, _ = objective(drafter, lesson)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0], values
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())


def test_the_cosine_is_of_the_mean_of_the_last_three_states():
    target = target_of("llama", "sdpa")
    drafter, loss = drafter_of(target), CosineToLast()
    lesson, _ = lesson_of("llama", drafter, [loss])
    guess = next(iter(drafter.unroll(lesson)))
    mean = torch.stack([lesson.features[layer] for layer in (END, END - 1, END - 2)]).mean(0)
    mean = Lesson.states(replace(lesson, features={0: mean}), 0)[guess.places]
    truth = mmspec.training.losses.truth_at(lesson, guess.places, None)
    torch.testing.assert_close(loss(guess, truth), 1 - torch.cosine_similarity(guess.features, mean))


def test_saved_and_loaded(tmp_path):
    target = target_of("llama", "sdpa")
    for kind in ("block", "mlp"):
        drafter = drafter_of(target, kind)
        drafter.save_pretrained(tmp_path / kind)
        again = mmspec.load_drafter(str(tmp_path / kind), target)
        assert again.config() == drafter.config()
        for name, value in drafter.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


def test_what_cannot_be(monkeypatch):
    target = Target(models.llama())
    refused(lambda: EarlyExitDrafter(target, imitation="twig"), "imitation='twig' is unknown; there are block, mlp")
    refused(
        lambda: EarlyExitDrafter(target, layers=2, imitation="block", blocks=2),
        "layers=2 and blocks=2 are more than the 3 layers of LlamaForCausalLM",
    )
    refused(lambda: next(EarlyExitDrafter(target).unroll(None)), "imitation=None has no weights to train")
    monkeypatch.setattr(target, "compile", True)
    refused(lambda: EarlyExitDrafter(target, imitation="block"), "compile=true reads some without it")
    monkeypatch.setattr(target.family.text_config, "num_kv_shared_layers", 2, raising=False)
    refused(
        lambda: EarlyExitDrafter(target), "cannot begin at layer 1: with num_kv_shared_layers=2 its last layers read"
    )


def test_an_mlp_is_told_more_than_it_reads():
    mlp = ResidualMLP(4, 8)
    states = torch.randn(1, 2, 4)
    assert torch.equal(mlp(states, attention_mask=None, position_ids=None), states)


def test_projections_know_how_many_layers_draft():
    target = target_of("llama", "sdpa")
    described = structure_of(drafter_of(target, "block", 1))
    assert described["kind"] == "model" and described["layers"] == 2 / 3
    layer = sum(weight.numel() for weight in target.family.layers[0].parameters())
    head = target.vocab_size * target.hidden_size
    assert described["share"] == (2 * layer + head) / sum(weight.numel() for weight in target.model.parameters())
