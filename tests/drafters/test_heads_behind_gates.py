"""Heads on hidden states go on behind tokens that the target has not read, and are right again once it has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from heads import TOLERANCE, drafter_of, error, expect_own_behind_gates, inputs_of, lesson_of
from scripted_rounds import Script, Told, has_true_features_only

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import FeatureDrafter, MedusaDrafter
from mmspec.trees import Chain
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NAME = "llava"
# Settled or not, and what is emitted of the draft, per row. The second row ends unread.
BEGINNING = ((True, [1, 1, 2, 1]), (False, [0, 0, 1, 0]))
ROUNDS = (*BEGINNING, (True, [2, 0, 1, 1]), (True, [1, 0, 3, 1]), (False, [1, 0, 1, 0]))
VARIANTS = ["eagle", "eagle3.1", "eagle, pool", "hivis", "msd", "mtp, other", "vispec"]


def head(variant: str):
    return drafter_of(NAME, variant)


def scripted(variant: str, rounds=ROUNDS) -> Script:
    script = Script(head(variant), inputs_of(NAME), lesson_of(NAME).answers, Told(2, 3))
    for settled, accepted in rounds:
        script.round(accepted, settled)
    return script


@pytest.mark.parametrize("variant", [*VARIANTS, "dream", "dream, without memory"])
def test_once_the_target_has_read_a_head_has_true_states_only(variant):
    has_true_features_only(scripted(variant), head(variant), inputs_of(NAME))


def test_states_that_are_not_entered_anew_would_be_seen(monkeypatch):
    monkeypatch.setattr(FeatureDrafter, "_take_back", lambda self: None)
    with pytest.raises((AssertionError, RuntimeError)):
        has_true_features_only(scripted("eagle"), head("eagle"), inputs_of(NAME))


@pytest.mark.parametrize("variant", [*VARIANTS, "dream"])
def test_behind_unread_tokens_it_drafts_as_it_would_have_gone_on_itself(variant):
    """In the round after a settled one, the guess behind the root is what the same tree had behind that node."""
    before = scripted(variant, BEGINNING)
    drafted, _ = before.round([2, 0, 2, 1], settled=True)  # a full tree of 3 levels: the last node emitted was expanded
    wanted = [drafted.logits[count][row, drafted.path[count] - 2**count + 1] for row, count in ((0, 2), (2, 2), (3, 1))]
    after, _ = before.round([0] * 4)
    for row, logits in zip((0, 2, 3), wanted, strict=True):
        assert error(after.logits[0][row, 0], logits) < TOLERANCE


def test_a_gate_that_settles_nothing_changes_nothing():
    """Nor does one that has settled change what is verified: each token is the target's own, given those before it."""
    drafter = head("eagle")
    options = {"inputs": inputs_of(NAME), "max_new_tokens": 16, "tree": Chain(3)}
    alone = mmspec.generate(drafter.target, drafter, **options)
    shut = mmspec.generate(drafter.target, drafter, verifier=Gated(Greedy(), Every(0)), **options)
    assert shut.token_ids == alone.token_ids and shut.stats.acceptance_histogram == alone.stats.acceptance_histogram
    expect_own_behind_gates(drafter, NAME, Chain(3))


class Tailed(Greedy):
    """Emits a token of its own behind what was accepted."""

    lossless = False

    def verify(self, tree, scores):
        verdict = super().verify(tree, scores)
        return replace(verdict, tail=verdict.bonus[:, None])


def test_tokens_that_stand_in_no_draft_have_no_states():
    drafter = head("eagle")
    with pytest.raises(MMSpecError, match="EagleDrafter has no states for tokens that stand in no draft"):
        mmspec.generate(drafter.target, drafter, verifier=Tailed(), inputs=inputs_of(NAME), max_new_tokens=8)


def test_a_head_that_has_nothing_to_go_on_from_is_refused():
    """Medusa's heads all read one state of the target, and make none."""
    target = head("eagle").target
    with pytest.raises(MMSpecError, match="MedusaDrafter drafts from the target's hidden states.*leave the gate out"):
        mmspec.generate(target, MedusaDrafter(target), verifier=Gated(Greedy(), Every(2)), inputs=inputs_of(NAME))
    assert drafter_of(NAME, "eagle3").drafts_unread
