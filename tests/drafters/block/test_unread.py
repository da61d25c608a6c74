"""Behind tokens that the target has not read, a block begins with them; once it has, their states are there."""

from __future__ import annotations

import pytest
import torch
from blocks import VARIANTS, build, drafter_of, reference_at
from heads import TOLERANCE, error, inputs_of, lesson_of, own_where_asked
from scripted_rounds import Script, Told, has_true_features_only
from tiny_requests import target_of

import mmspec
from mmspec.drafters import BlockDrafter
from mmspec.drafters.block.unread import Unread
from mmspec.trees import BestFirstTree, Chain, ConfidenceChain, DynamicTree, SageTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Confident, Every

NAME = "llava"
# Settled or not, and what is emitted of the draft, per row. The second row ends unread.
ROUNDS = (
    *((True, [1, 1, 2, 1]), (False, [0, 0, 1, 0]), (True, [2, 0, 1, 1])),
    *((True, [1, 0, 3, 1]), (False, [1, 0, 1, 0])),
)


def guesses_behind(variant: str, wrong: str = "") -> list[float]:
    """How far every guess behind unread tokens is from that of an explicit block."""
    drafter, answers = drafter_of(NAME, variant), lesson_of(NAME).answers
    script, errors = Script(drafter, inputs_of(NAME), answers, Told(2, 3)), []
    for settled, accepted in ROUNDS:
        unread = [max(count - 1, 0) for count in script.context.pending]
        places = list(script.places)
        builder, _ = script.round(accepted, settled)
        for row in [row for row, count in enumerate(unread) if count]:
            chain = builder.told[row, :2].tolist()
            wanted = reference_at(NAME, drafter, row, places[row], chain, wrong, unread[row])
            for step, logits in enumerate(wanted):
                node = builder.path[step] - (2**step - 1)
                errors.append(error(builder.logits[step][row, node], logits))
    return errors


@pytest.mark.parametrize("variant", VARIANTS)
def test_guesses_are_those_of_an_explicit_block_that_begins_with_these_tokens(variant):
    """In rows with different numbers of them, at all depths, of all corrections."""
    errors = guesses_behind(variant)
    assert len(errors) > 20 and max(errors) < TOLERANCE


@pytest.mark.parametrize("variant", ["dflash", "dspark, rnn", "dflash 2"])
def test_a_block_that_knows_nothing_of_them_would_be_seen(variant):
    assert min(guesses_behind(variant, "masked")) > 10 * TOLERANCE


def test_surplus_slots_of_shorter_rows_would_be_seen(monkeypatch):
    """They are hidden from a block that sees itself in both directions."""
    monkeypatch.setattr(Unread, "sizes", lambda self, size: self.before * 0 + self.most + size)
    assert max(guesses_behind("dflash")) > 10 * TOLERANCE


def test_a_correction_that_had_not_read_them_would_be_seen(monkeypatch):
    monkeypatch.setattr(
        Unread, "read", lambda self, correction, slots, embed: correction.begin(self.tokens[:, :1], embed)
    )
    assert max(guesses_behind("domino")) > 10 * TOLERANCE


@pytest.mark.parametrize("variant", ["dflash", "dflash, shifted", "dflash, windows", "dflash, pool", "domino"])
def test_once_the_target_has_read_the_cache_holds_true_states_only(variant):
    script = Script(drafter_of(NAME, variant), inputs_of(NAME), lesson_of(NAME).answers, Told(2, 3))
    for settled, accepted in ROUNDS:
        script.round(accepted, settled)
    has_true_features_only(script, drafter_of(NAME, variant), inputs_of(NAME))


def test_states_that_are_left_out_would_be_seen(monkeypatch):
    enter = BlockDrafter._absorb

    def without_unread(self):
        self._waiting = [(states, [min(count, 1) for count in counts]) for states, counts in self._waiting]
        enter(self)

    monkeypatch.setattr(BlockDrafter, "_absorb", without_unread)
    with pytest.raises(AssertionError):
        test_once_the_target_has_read_the_cache_holds_true_states_only("dflash")


@pytest.mark.parametrize(
    ("variant", "tree"),
    [
        ("dflash", Chain(8)),
        ("dflash", BestFirstTree(12)),
        ("dflash, shifted", DynamicTree(4, 2, 9)),
        ("dspark", ConfidenceChain(0.01)),
        ("domino", SageTree(min_depth=2, max_depth=5)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("gate", [Every(2), Confident(1e-6, 5)], ids=["every", "confident"])
def test_what_the_target_is_asked_about_is_its_own(variant, tree, gate):
    """With every kind of tree, in ragged batches."""
    drafter, options = drafter_of(NAME, variant), {"inputs": inputs_of(NAME), "max_new_tokens": 20, "tree": tree}
    out = mmspec.generate(drafter.target, drafter, verifier=Gated(Greedy(), gate), **options)
    assert out.stats.num_unverified_tokens > 4
    assert own_where_asked(drafter, out, inputs_of(NAME)) > 8


def test_a_round_behind_a_whole_block_drafts_a_whole_block():
    drafter = build(target_of("llama", "sdpa"), "dflash").eval()
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    gated = {"verifier": Gated(Greedy(), Every(2)), "tree": Chain(8), "eos_token_id": []}
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=40, **gated)
    assert [record.drafted for record in out.stats.rounds[:4]] == [[8]] * 4
    assert [record.settled for record in out.stats.rounds[:4]] == [False, True, False, True]
