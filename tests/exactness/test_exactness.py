"""Greedy ids equal those of `model.generate`, whatever drafts; and each way of getting it wrong is seen to fail."""

from __future__ import annotations

import math

import helpers
import models
import pytest
import torch
from helpers import accept, blurred_drafter, case, own_mode, pictures_for, random_tree, start, target_of, tree_error

import mmspec
from mmspec.drafters import DraftModelDrafter
from mmspec.families import Qwen25VL
from mmspec.models.cache import TreeCache
from mmspec.models.masks import TreeMask
from mmspec.models.session import ModelSession
from mmspec.target import Target
from mmspec.trees import Chain, DynamicTree, StaticTree

NEW = 24
# Pictures and text tokens per row. The sliding window of gemma3 and mistral is 12 tokens wide.
SITUATIONS = {
    "one picture": ((1,), (9,)),
    "several pictures": ((3,), (6,)),
    "short text, answer crosses the window": ((0,), (4,)),
    "longer than the window": ((1,), (30,)),
    "ragged batch": helpers.RAGGED,
    "batch of equal lengths": ((1, 1), (8, 8)),
    "batch without pictures": ((0, 0, 0), (4, 15, 9)),
}
EAGER = ("one picture", "longer than the window", "ragged batch")
CASES = [
    (name, attention, situation)
    for name, attention in helpers.FAMILIES
    for situation, (images, _) in SITUATIONS.items()
    if (name in models.VISUAL or max(images) < 2) and (attention == "sdpa" or situation in EAGER)
]


@pytest.mark.parametrize(("name", "attention", "situation"), CASES)
def test_ids_equal_those_of_generate(name, attention, situation):
    target, drafter = target_of(name, attention), blurred_drafter(name, attention)
    inputs, expected = case(name, attention, *SITUATIONS[situation], NEW)
    assert mmspec.generate(target, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    accepted = set()
    for tree in (Chain(4), DynamicTree(4, 3, 10)):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected, tree
        assert out.stats.new_tokens == [NEW] * len(expected)
        accepted |= set(out.stats.acceptance_histogram)
    assert len(accepted) > 1, "rounds are to accept different numbers of tokens, else this tests little"


@pytest.mark.parametrize("name", models.MODELS)
def test_the_tiny_models_write_varied_text(name):
    """A model that repeats one token would agree with anything."""
    assert all(len(set(ids)) > 3 for ids in case(name, "sdpa", *helpers.RAGGED, NEW)[1])


@pytest.mark.parametrize(("name", "attention"), helpers.FAMILIES)
@pytest.mark.parametrize("situation", ["one picture", "ragged batch"])
def test_every_draft_of_the_target_itself_is_accepted(name, attention, situation):
    target = target_of(name, attention)
    drafter = DraftModelDrafter(target, target.model, own_mode(name))
    inputs, expected = case(name, attention, *SITUATIONS[situation], NEW)
    for length in (4, 22):  # five rounds, the last one cut; exactly one round
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
    drafter = DraftModelDrafter(target, target.model, own_mode(name))
    inputs, expected = case(name, "sdpa", *helpers.RAGGED, NEW)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=19, tree=StaticTree())
    assert out.token_ids == [ids[:19] for ids in expected]
    assert [record.accepted for record in out.stats.rounds] == [[5] * 4] * 3


@pytest.mark.parametrize(("name", "attention"), helpers.FAMILIES)
def test_a_random_drafter_changes_nothing(name, attention):
    target = target_of(name, attention)
    drafter = DraftModelDrafter(target, models.llama(attention, seed=5, layers=1), "text_only")
    inputs, expected = case(name, attention, *helpers.RAGGED, NEW)
    for tree in (Chain(2), StaticTree()):
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree).token_ids == expected


@pytest.mark.parametrize("name", models.MODELS)
def test_a_cache_without_a_slot_to_spare(name, monkeypatch):
    """It grows whenever it must; trees keep fewer levels than they might have, so paths are padded beyond its end."""
    monkeypatch.setattr("mmspec.models.cache.CHUNK", 1)
    target, drafter = target_of(name, "sdpa"), blurred_drafter(name, "sdpa")
    inputs, expected = case(name, "sdpa", *helpers.RAGGED, NEW)
    for tree in (DynamicTree(6, 1, 3), DynamicTree(6, 3, 5), StaticTree([[0], [0, 0], [1]])):
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree).token_ids == expected


@pytest.mark.parametrize("name", models.VISUAL)
def test_another_picture_changes_drafted_and_plain_text_alike(name):
    target, drafter, texts = target_of(name, "sdpa"), blurred_drafter(name, "sdpa"), []
    inputs = models.inputs_for(name, [1], [6])
    for pixels in (inputs["pixel_values"], -inputs["pixel_values"]):
        shown = {**inputs, "pixel_values": pixels}
        drafted = mmspec.generate(target, drafter, inputs=shown, max_new_tokens=NEW).token_ids
        assert drafted == models.reference(target.model, shown, NEW)
        texts.append(drafted)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("name", [*models.VISUAL, "mistral"])
def test_requests_share_target_and_drafter_without_disturbing_each_other(name):
    """Two streams in turns on the same objects, `model.generate` in between, and both requests once more afterwards."""
    target, drafter = target_of(name, "sdpa"), blurred_drafter(name, "sdpa")
    cases = [case(name, "sdpa", *SITUATIONS[s], NEW) for s in ("ragged batch", "longer than the window")]
    expected = [text for _, text in cases]
    texts = [[[] for _ in rows] for rows in expected]
    streams = {i: mmspec.stream(target, drafter, inputs=c[0], max_new_tokens=NEW) for i, c in enumerate(cases)}
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


# Negative controls: each patch makes one mistake that published implementations have made, and is to be seen.


def no_tree_mask(monkeypatch, target):
    """Every node sees all nodes before it."""
    read = ModelSession.read

    def causal(self, tokens, visible, depth, extends_chain=False):
        seen = torch.ones_like(visible).tril(visible.shape[2] - visible.shape[1])
        return read(self, tokens, seen, depth, extends_chain)

    monkeypatch.setattr(ModelSession, "read", causal)


def sequential_positions(monkeypatch, target):
    """Siblings stand behind one another, as the nodes do in the batch of tokens."""
    read = ModelSession.read

    def sequential(self, tokens, visible, depth, extends_chain=False):
        first = visible.shape[2] - visible.shape[1]
        return read(self, tokens, visible, torch.arange(first, visible.shape[2]).expand_as(depth), extends_chain)

    monkeypatch.setattr(ModelSession, "read", sequential)


def no_rope_delta(monkeypatch, target):
    """Tokens after a picture stand at their index."""
    positions = Qwen25VL.positions
    monkeypatch.setattr(
        Qwen25VL, "positions", lambda self, inputs: (positions(self, inputs)[0], 0 * positions(self, inputs)[1])
    )


def delta_of_another_request(monkeypatch, target):
    """What the model itself remembers: the offset of whoever came last."""
    positions = Qwen25VL.positions

    def leaking(self, inputs):
        position_ids, position_offset = positions(self, inputs)
        return position_ids, position_offset.roll(1, -1)

    monkeypatch.setattr(Qwen25VL, "positions", leaking)


def boolean_mask(monkeypatch, target):
    """Eager attention adds its mask to the scores: True becomes 1."""
    monkeypatch.setattr(TreeMask, "_finish", lambda self, mask: mask)


def no_window(monkeypatch, target):
    """Sliding-window layers see everything."""
    monkeypatch.setattr(target, "windows", dict.fromkeys(target.windows))


def window_in_slots(monkeypatch, target):
    """Distance is counted in entries of the cache, of which siblings take one each."""
    window = TreeMask._window

    def slots(self, full, size, depth, new):
        return window(self, full, size, torch.arange(depth.shape[1]).expand_as(depth), new)

    monkeypatch.setattr(TreeMask, "_window", slots)


def path_not_compacted(monkeypatch, target):
    """As many entries as were accepted are kept, but the first ones instead of the accepted ones."""
    commit = TreeCache.commit
    monkeypatch.setattr(TreeCache, "commit", lambda self, counts, path=None, kept=None: commit(self, counts))


def picture_dropped(monkeypatch, target):
    """The placeholders' own embeddings stand where the picture should."""
    monkeypatch.setattr(target.family, "embed", lambda ids, vision: target.model.get_input_embeddings()(ids))


MISTAKES = [
    *[
        (mistake, name)
        for mistake in (no_tree_mask, sequential_positions, path_not_compacted)
        for name in models.MODELS
    ],
    *[(mistake, name) for mistake in (no_window, window_in_slots) for name in ("gemma3", "mistral")],
    *[(mistake, "qwen_vl") for mistake in (no_rope_delta, delta_of_another_request)],
    *[(picture_dropped, name) for name in models.VISUAL],
    *[(boolean_mask, name) for name in models.MODELS],
]


def logits_error(name: str, target: Target) -> float:
    """The largest error of any node's logits over two rounds of random trees and random accepted paths."""
    generator = torch.Generator().manual_seed(0)
    inputs, _ = case(name, target.attention, *helpers.RAGGED, NEW)
    context, worst = start(target, inputs), 0.0
    for nodes in (6, 8):
        tree = random_tree(context, nodes, generator)
        worst = max(worst, tree_error(context, inputs, tree, context.score(tree)))
        accept(context, tree, [nodes - 1, 2, 3, nodes - 2], [5, 6, 7, 8])
    return worst


def ids(name: str, target: Target) -> list[list[int]]:
    inputs, _ = case(name, target.attention, *helpers.RAGGED, NEW)
    drafter = DraftModelDrafter(target, blurred_drafter(name, target.attention).model, own_mode(name))
    return mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=StaticTree()).token_ids


@pytest.mark.parametrize(("name", "attention"), helpers.FAMILIES)
def test_without_mistakes_the_same_runs_are_exact(name, attention):
    target = target_of(name, attention)
    assert logits_error(name, target) < 1e-4
    assert ids(name, target) == case(name, attention, *helpers.RAGGED, NEW)[1]


@pytest.mark.parametrize(("mistake", "name"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_a_mistake_is_seen(mistake, name, monkeypatch):
    """In the logits, and in the ids."""
    attention = "eager" if mistake is boolean_mask else "sdpa"
    target = Target(target_of(name, attention).model)
    mistake(monkeypatch, target)
    assert logits_error(name, target) > 1e-2
    assert ids(name, target) != case(name, attention, *helpers.RAGGED, NEW)[1]
