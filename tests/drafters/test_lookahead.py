"""Lookahead decoding: what the look-ahead branch writes is the target's own, and the pool holds it."""

from __future__ import annotations

import models
import pytest
import torch
from full_recompute import recompute
from refusals import refused
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import Target
from mmspec.drafters import LookaheadDrafter, NoDrafter
from mmspec.drafters.continuations import Branches
from mmspec.verifiers import Greedy, RejectionSampling

NEW = 20


@pytest.mark.parametrize("name", ["llava", "mistral"])
def test_text_is_the_targets_in_a_ragged_batch(name):
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    stop = expected[1][6]
    drafter = LookaheadDrafter(target_of(name, "sdpa"), window=5, ngram=3, candidates=2)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, eos_token_id=stop)
    assert out.token_ids == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert all(max(record.drafted) <= drafter.max_nodes for record in out.stats.rounds)


def test_n_grams_are_what_the_target_says_behind_the_window(monkeypatch):
    """From full passes over the path of every place: the levels grow one a round, and then move."""
    target, ngram, window = target_of("mistral", "sdpa"), 3, 4
    drafter = LookaheadDrafter(target, window=window, ngram=ngram, candidates=3)
    inputs, _ = case("mistral", "sdpa", (0,), (9,), NEW)
    noted = []

    def observe(self, tree, scores, verdict, original=LookaheadDrafter.observe):
        before = [list(level) for level in self._levels[0]]
        original(self, tree, scores, verdict)
        noted.append((before, [list(level) for level in self._levels[0]], self._pools[0]))

    monkeypatch.setattr(LookaheadDrafter, "observe", observe)
    drafts = record_drafts(monkeypatch, LookaheadDrafter)
    mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW)
    prompt = inputs["input_ids"].shape[1]
    for number, ((before, after, pool), draft) in enumerate(zip(noted, drafts, strict=True)):
        assert len(before) == min(number + 1, ngram - 1)
        written = draft.history[0][prompt:]
        for place in range(window):
            path = [*before[0][: place + 1], *(level[place] for level in before[1:])]
            said = recompute(target.model, inputs, [[*written, *path]]).logits[0, -1].argmax().item()
            assert after[-1][place] == said
            if len(before) == ngram - 1:
                found = (*(level[place] for level in before[1:]), said)
                behind = pool[before[0][place]]
                assert found in behind or len(behind) == drafter.candidates
        assert after == [*before, after[-1]][-(ngram - 1) :]
    assert number > 4


def test_the_newest_n_grams_of_a_token_are_kept_and_verified():
    drafter, pool = LookaheadDrafter(target_of("mistral", "sdpa"), window=2, ngram=3, candidates=2), {}
    for found in ([5, 1, 2], [5, 1, 3], [5, 1, 2], [5, 4, 4], [6, 1, 1]):
        drafter._enter(pool, found)
    assert [*pool[5]] == [(1, 2), (4, 4)] and [*pool[6]] == [(1, 1)]
    tree = Branches(5)
    ends = drafter._grow(tree, pool, [[7, 8], [9, 10]])
    #                    (4, 4) first, then (1, 2); the window 7, 8 with 9 below 7 and 10 below 8
    assert tree.tokens == [5, 4, 4, 1, 2, 7, 8, 9, 10]
    assert tree.parents == [-1, 0, 1, 0, 3, 0, 5, 5, 6]
    assert ends == [7, 8]


def test_a_text_that_repeats_takes_few_rounds():
    """A model without attention to speak of goes in circles, which the pool learns."""
    model = models.llama(layers=1)
    for parameter in model.model.layers.parameters():
        parameter.data.zero_()
    target = Target(model)
    inputs = models.inputs_for("mistral", [0], [6])
    drafter = LookaheadDrafter(target)
    for verifier in (Greedy(), None):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=60, verifier=verifier)
        plain = mmspec.generate(target, None, inputs=inputs, max_new_tokens=60)
        assert out.token_ids == plain.token_ids and len(out.stats.rounds) < 30 < len(plain.stats.rounds)


def test_drawn_text_keeps_the_seeds_draws_and_point_proposals():
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    drafter = LookaheadDrafter(target_of("llava", "sdpa"))
    options = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 0.8, "seed": 4}
    plain = mmspec.generate(drafter.target, NoDrafter(drafter.target), **options)
    assert mmspec.generate(drafter.target, drafter, **options).token_ids == plain.token_ids
    out = mmspec.generate(drafter.target, drafter, verifier=RejectionSampling(), **options)
    assert out.stats.lossless and [len(row) for row in out.token_ids] == [NEW] * len(out.token_ids)


def test_sizes_that_cannot_be_are_refused():
    target = target_of("mistral", "sdpa")
    refused(lambda: LookaheadDrafter(target, ngram=1), "ngram=1 must be at least 2")
    refused(lambda: LookaheadDrafter(target, window=0), "window=0 must be a positive integer")
    assert torch.is_tensor(target.model.lm_head.weight)
