"""Rows that have ended leave the batch: passes run on the others, and nobody's text changes."""

from __future__ import annotations

import models
import pytest
from full_recompute import start
from tiny_drafters import NEED_PICTURES, TINY_DRAFTERS, blurred_drafter
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.drafters import EarlyExitDrafter, JacobiDrafter, NGramDrafter, ReferenceDrafter
from mmspec.drafters.layer import DraftLayer
from mmspec.loop import Run
from mmspec.models import rows
from mmspec.trees import Chain, DynamicTree

NEW = 14
DRAFTERS = {
    "nobody": lambda target: None,
    "ngram": NGramDrafter,
    "reference": ReferenceDrafter,
    "jacobi": lambda target: JacobiDrafter(target, 3),
    "early exit": lambda target: EarlyExitDrafter(target, tree=Chain(3)),
    "early exit, tree": lambda target: EarlyExitDrafter(target, tree=DynamicTree(3, 3, 8)),
    **{
        name: lambda target, build=build: build("llama", "sdpa")
        for name, build in TINY_DRAFTERS.items()
        if name not in NEED_PICTURES
    },
}


LIMITS = (2, NEW, 5, 9)
"""Tokens that each row may write: the first row leaves first, and the last one takes its place, and so on."""


def endings(name: str = "llama") -> tuple[dict, list[list[int]]]:
    """Arguments for a ragged batch whose rows end one after the other, and the answers."""
    inputs, full = case(name, "sdpa", *RAGGED, NEW)
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    limits = {tuple(prompt[:4]): len(prompt) + limit for prompt, limit in zip(prompts, LIMITS, strict=True)}
    assert len(limits) == len(LIMITS)

    def over(ids, scores) -> bool:
        return ids.shape[1] >= limits[tuple(ids[0, :4].tolist())]

    options = {"inputs": inputs, "max_new_tokens": NEW, "stopping_criteria": over}
    return options, [row[:limit] for row, limit in zip(full, LIMITS, strict=True)]


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, int]]:
    """Of every pass in a round, how many rows had not ended, and how many it was about."""
    seen, target, going_on = [], target_of("llama", "sdpa"), []
    plain, forward, finish = Run.round, type(target.model).forward, DraftLayer.finish

    def counted_round(run):
        going_on[:] = [sum(run.context.active)]
        pieces = plain(run)
        going_on.clear()  # what comes between rounds, such as a prompt, is about all rows
        return pieces

    def counted_pass(model, input_ids=None, **arguments):
        if going_on and input_ids is not None:
            seen.append((going_on[0], len(input_ids)))
        return forward(model, input_ids=input_ids, **arguments)

    def counted_layer(layer, residual, attended):
        if going_on:
            seen.append((going_on[0], len(residual)))
        return finish(layer, residual, attended)

    monkeypatch.setattr(Run, "round", counted_round)
    monkeypatch.setattr(type(target.model), "forward", counted_pass)
    monkeypatch.setattr(DraftLayer, "finish", counted_layer)
    return seen


@pytest.mark.parametrize("name", DRAFTERS)
def test_passes_are_about_rows_that_go_on_and_texts_stay(name, passes):
    options, answers = endings()
    target = target_of("llama", "sdpa")
    drafter = DRAFTERS[name](target)
    for tree in [None] if drafter is None or drafter.tree is None else [Chain(3), DynamicTree(3, 3, 9)]:
        passes.clear()
        assert mmspec.generate(target, drafter, tree=tree, **options).token_ids == answers
        # Members of a mixture that share a model are rows of one pass.
        most = len(getattr(drafter, "members", [drafter]))
        assert passes and all(rows % going_on == 0 and rows // going_on <= most for going_on, rows in passes)
        assert {rows for _, rows in passes} >= {4, 1}


def wrong_order(monkeypatch):
    """The rows behind the one that left are thought to have moved up; in the storage the last one took its place."""
    replace = rows.Staying.replace

    def mistaken(self, row):
        before = list(self.rows)
        places = replace(self, row)
        self.rows[:] = [one for one in before if one != row]
        return places

    monkeypatch.setattr(rows.Staying, "replace", mistaken)


def forgotten_entries(monkeypatch):
    """The row that takes a place leaves its entries where they were."""
    replace = rows.Staying.replace
    monkeypatch.setattr(rows.Staying, "replace", lambda self, row: (replace(self, row)[0],) * 2)


@pytest.mark.parametrize("mistake", [wrong_order, forgotten_entries])
def test_a_mistake_is_seen(mistake, monkeypatch):
    options, answers = endings()
    mistake(monkeypatch)
    assert mmspec.generate(target_of("llama", "sdpa"), **options).token_ids != answers


@pytest.mark.parametrize("name", ["qwen_vl", "gemma3"])
def test_positions_and_windows_go_with_their_rows(name):
    """Rows with pictures at positions of several axes, and windows that are narrower than the text."""
    options, answers = endings(name)
    drafter = blurred_drafter(name, "sdpa")
    assert mmspec.generate(drafter.target, drafter, tree=DynamicTree(3, 3, 9), **options).token_ids == answers


def test_what_a_row_has_read_is_told_by_its_place_in_the_batch():
    """Also once others have left, whoever asks."""
    target = target_of("llama", "sdpa")
    context = start(target, models.inputs_for("llama", [0, 0, 0], [9, 4, 12]))
    before = context.keys_values(0)
    context.finish(0)
    context.leave()
    assert context.cache.rows == 2 and context.cache.rows_present == [2, 1]
    for kept, whole in zip(context.keys_values(0), before, strict=True):
        assert kept[1:].equal(whole[1:]) and not kept[0].any()
    assert context.entries == [9, 4, 12] == context.lengths.tolist()
    context.finish(1)
    context.finish(2)
    context.leave()
    assert context.cache.rows == 1, "one stays, as there are no empty batches"
