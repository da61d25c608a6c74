"""Rounds that draft nothing: the drafter reads their tokens later, and drafts as if it had read them at once."""

from __future__ import annotations

import pytest
import torch
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import RAGGED, case

import mmspec
from mmspec.drafters import FeatureDrafter
from mmspec.trees import TreeBuilder
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Confident, Every

NEW = 24
PATTERN = (True, False, False, True, False, True, True, False)


class Resting(TreeBuilder):
    """Drafts chains of two in some rounds and nothing in the others; notes what it drafts behind every beginning of a
    row."""

    shared = ("seen",)

    def __init__(self, drafts: tuple[bool, ...]):
        self.drafts, self.round, self.seen = drafts, 0, {}

    def build(self, growth):
        self.round += 1
        if not self.drafts[self.round % len(self.drafts)]:
            return growth.nothing()
        tree, context = growth.chain(2), growth.drafter.context
        for row, (history, active) in enumerate(zip(context.history, context.active, strict=True)):
            if active:
                self.seen[row, len(history)] = tree.log_probs[row].tolist(), tree.tokens[row].tolist()
        return tree


def texts(drafter, drafts: tuple[bool, ...], **options):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    tree = Resting(drafts)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree, **options)
    return out, expected, tree.seen


def difference(seen: dict, other: dict) -> float:
    both = seen.keys() & other.keys()
    assert len(both) > 6
    return max(
        abs(torch.tensor(seen[place][0]) - torch.tensor(other[place][0])).max().item()
        if seen[place][1] == other[place][1]
        else float("inf")
        for place in both
    )


@pytest.mark.parametrize("name", TINY_DRAFTERS)
def test_a_drafter_that_has_rested_drafts_as_one_that_has_not(name):
    drafter = TINY_DRAFTERS[name]("llava", "sdpa")
    (rested, expected, seen), (always, _, all_seen) = (texts(drafter, drafts) for drafts in (PATTERN, (True,)))
    assert rested.token_ids == always.token_ids == expected
    assert sum(not any(record.drafted) for record in rested.stats.rounds) > 4
    assert difference(seen, all_seen) < 1e-4


def test_states_that_are_forgotten_would_be_seen(monkeypatch):
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    _, _, seen = texts(drafter, (True,))

    def last_only(self, states, scores, verdict):
        return states[:, -1:].expand(-1, max(self.session.pending), -1)

    monkeypatch.setattr(FeatureDrafter, "_behind_skipped", last_only)
    _, _, wrong = texts(drafter, PATTERN)
    assert difference(seen, wrong) > 1e-2


@pytest.mark.parametrize("gate", [Every(2, 2), Confident(0.05)], ids=["every", "confident"])
def test_a_gate_settles_nothing_where_nothing_was_drafted(gate):
    for name in ("own model", "eagle"):
        out, _, _ = texts(TINY_DRAFTERS[name]("llava", "sdpa"), PATTERN, verifier=Gated(Greedy(), gate))
        assert all(any(record.drafted) for record in out.stats.rounds if record.settled)
        assert [len(row) for row in out.token_ids] == [NEW] * len(out.token_ids)
