"""Greedy ids equal those of `model.generate`, whatever drafts; and each way of getting it wrong is seen to fail."""

from __future__ import annotations

import math

import models
import pytest
import torch
from covering import covering
from full_recompute import accept, random_tree, start, tree_error
from mistakes import MISTAKES, boolean_mask
from tiny_drafters import blurred_drafter
from tiny_requests import BACK_ENDS, RAGGED, case, pictures_for, target_of

import mmspec
from mmspec.drafters import TextOnlyDrafter, as_drafter
from mmspec.target import Target
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Greedy

NEW = 18
# Pictures and text tokens per row. The sliding window of gemma3 and mistral is 12 tokens wide.
SITUATIONS = {
    "one picture": ((1,), (9,)),
    "several pictures": ((3,), (6,)),
    "short text, answer crosses the window": ((0,), (4,)),
    "longer than the window": ((1,), (30,)),
    "ragged batch": RAGGED,
    "batch of equal lengths": ((1, 1), (8, 8)),
    "batch without pictures": ((0, 0, 0), (4, 15, 9)),
}
EAGER = ("one picture", "longer than the window", "ragged batch")
CASES = [
    (name, attention, situation)
    for name, attention in BACK_ENDS
    for situation, (images, _) in SITUATIONS.items()
    if (name in models.VISUAL or max(images) < 2) and (attention == "sdpa" or situation in EAGER)
]


@pytest.mark.parametrize(("name", "attention", "situation"), CASES)
def test_ids_equal_those_of_generate(name, attention, situation):
    target, drafter = target_of(name, attention), blurred_drafter(name, attention)
    inputs, expected = case(name, attention, *SITUATIONS[situation], NEW)
    assert mmspec.generate(target, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    # Every target and every situation has both.
    tree = (Chain(4), DynamicTree(4, 3, 10))[(list(models.MODELS).index(name) + list(SITUATIONS).index(situation)) % 2]
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected, tree
    assert out.stats.new_tokens == [NEW] * len(expected)
    accepted = set(out.stats.acceptance_histogram)
    assert accepted not in ({0}, {4}), "rounds are to accept some tokens and to refuse some, else this tests little"


@pytest.mark.parametrize("name", models.MODELS)
def test_the_tiny_models_write_varied_text(name):
    """A model that repeats one token would agree with anything."""
    assert all(len(set(ids)) > 3 for ids in case(name, "sdpa", *RAGGED, NEW)[1])


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
@pytest.mark.parametrize("situation", ["one picture", "ragged batch"])
def test_every_draft_of_the_target_itself_is_accepted(name, attention, situation):
    target = target_of(name, attention)
    drafter = as_drafter(target, target.model)
    inputs, expected = case(name, attention, *SITUATIONS[situation], NEW)
    for length in (4, NEW - 2):  # four rounds, the last one cut; exactly one round
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(length))
        rounds = math.ceil((NEW - 1) / (length + 1))
        assert out.token_ids == expected
        assert len(out.stats.rounds) == rounds
        assert out.stats.mean_acceptance_length == (NEW - 1) / rounds
        full = out.stats.rounds[: (NEW - 1) // (length + 1)]
        assert full and all(record.accepted == [length] * len(expected) for record in full)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_tree_of_the_target_itself_holds_what_it_writes(name):
    """The likeliest child of every node is in a static tree, so no round ends before its full depth of 5."""
    target = target_of(name, "sdpa")
    drafter = as_drafter(target, target.model)
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=13, tree=StaticTree())
    assert out.token_ids == [ids[:13] for ids in expected]
    assert [record.accepted for record in out.stats.rounds] == [[5] * 4] * 2


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_a_random_drafter_changes_nothing(name, attention):
    target = target_of(name, attention)
    drafter = TextOnlyDrafter(target, models.llama(attention, seed=5, layers=1))
    inputs, expected = case(name, attention, *RAGGED, NEW)
    tree = StaticTree() if attention == "sdpa" else Chain(2)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree).token_ids == expected


SPARING = (DynamicTree(6, 1, 3), DynamicTree(6, 3, 5), StaticTree([[0], [0, 0], [1]]))


@pytest.mark.parametrize(("name", "tree"), covering(models.MODELS, SPARING, strength=1))
def test_a_cache_without_a_slot_to_spare(name, tree, monkeypatch):
    """It grows whenever it must; trees keep fewer levels than they might have, so paths are padded beyond its end."""
    monkeypatch.setattr("mmspec.models.cache.CHUNK", 1)
    target, drafter = target_of(name, "sdpa"), blurred_drafter(name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree).token_ids == expected


@pytest.mark.parametrize("name", [*models.VISUAL, "mistral"])
def test_requests_share_target_and_drafter_without_disturbing_each_other(name):
    """Two streams in turns on the same objects, the builder of trees and the rule among them, `model.generate` in
    between, and both requests once more afterwards."""
    target, drafter = target_of(name, "sdpa"), blurred_drafter(name, "sdpa")
    cases = [case(name, "sdpa", *SITUATIONS[s], NEW) for s in ("ragged batch", "longer than the window")]
    expected = [text for _, text in cases]
    texts = [[[] for _ in rows] for rows in expected]
    shared = {"max_new_tokens": NEW, "tree": StaticTree(["0", "1", "00", "10"]), "verifier": Greedy()}
    streams = {i: mmspec.stream(target, drafter, inputs=inputs, **shared) for i, (inputs, _) in enumerate(cases)}
    other = models.inputs_for(name, pictures_for(name, [2]), [5])
    while streams:
        for number, stream in list(streams.items()):
            piece = next(stream, None)
            if piece is None:
                del streams[number]
            else:
                texts[number][piece.row] += piece.token_ids
        target.model.generate(**other, max_new_tokens=1, do_sample=False)
    assert texts == expected
    again = [mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids for inputs, _ in cases]
    assert again == expected


# Negative controls.


def logits_error(name: str, target: Target) -> float:
    """The largest error of any node's logits over two rounds of random trees and random accepted paths."""
    generator = torch.Generator().manual_seed(0)
    inputs, _ = case(name, target.attention, *RAGGED, NEW)
    context, worst = start(target, inputs), 0.0
    for nodes in (6, 8):
        tree = random_tree(context, nodes, generator)
        worst = max(worst, tree_error(context, inputs, tree, context.score(tree)))
        accept(context, tree, [nodes - 1, 2, 3, nodes - 2], [5, 6, 7, 8])
    return worst


def ids(name: str, target: Target) -> list[list[int]]:
    inputs, _ = case(name, target.attention, *RAGGED, NEW)
    drafter = as_drafter(target, blurred_drafter(name, target.attention).model)
    return mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=StaticTree()).token_ids


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_without_mistakes_the_same_runs_are_exact(name, attention):
    target = target_of(name, attention)
    assert logits_error(name, target) < 1e-4
    assert ids(name, target) == case(name, attention, *RAGGED, NEW)[1]


@pytest.mark.parametrize(("mistake", "name"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_a_mistake_is_seen(mistake, name, monkeypatch):
    """In the logits, and in the ids."""
    attention = "eager" if mistake is boolean_mask else "sdpa"
    target = Target(target_of(name, attention).model)
    mistake(monkeypatch, target)
    assert logits_error(name, target) > 1e-2
    assert ids(name, target) != case(name, attention, *RAGGED, NEW)[1]
