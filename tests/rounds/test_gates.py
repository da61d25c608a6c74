"""Gates of rounds: what they look at is what an eager model attends to, and the text stays the target's."""

from __future__ import annotations

import models
import pytest
import torch
from full_recompute import recompute
from tiny_drafters import TINY_DRAFTERS, eagle3_drafter
from tiny_requests import RAGGED, case, pictures_for, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.rounds import GatedTree, RoundGate, VisualAttention
from mmspec.speed import AutoTree
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import RejectionSampling

NEW = 14


class Noting(VisualAttention):
    """Notes how much was written before each decision, and the share that it went by."""

    shared = ("seen",)

    def __init__(self, threshold: float):
        super().__init__(threshold)
        self.seen: list = []

    def drafts(self):
        decided = super().drafts()
        lengths = [len(history) for history in self._context.history]
        self.seen.append((lengths, list(self._context.active), self.share, decided))
        return decided


def gated(name: str, threshold: float, make="eagle"):
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    drafter, gate = TINY_DRAFTERS[make](name, "sdpa"), Noting(threshold)
    out = mmspec.generate(
        drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=GatedTree(gate, Chain(2)), trace=True
    )
    assert out.token_ids == expected and out.stats.lossless
    return out, gate.seen, inputs


def eager_shares(name: str, inputs: dict, answers: list[list[int]]) -> list[list[float]]:
    """Of every row and token, the share of its attention in the last layer that falls on pictures."""
    eager, rows = models.eager_twin(name, target_of(name, "sdpa").model), []
    for row, answer in enumerate(answers):
        single = models.one_row(inputs, row)
        weights = recompute(eager, single, [answer], output_attentions=True).attentions[-1][0].mean(0)
        ids = torch.cat([single["input_ids"][0], torch.tensor(answer)])
        visual = target_of(name, "sdpa").family.is_visual(ids)
        rows.append(weights[:, visual].sum(-1).tolist())
    return rows


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_a_round_is_plain_exactly_where_the_newest_token_looks_at_the_picture(name):
    _, seen, inputs = gated(name, 9.0)
    middle = sorted(share for _, _, share, _ in seen)[len(seen) // 2]
    out, seen, _ = gated(name, middle)
    shares = eager_shares(name, inputs, out.token_ids)
    assert {decided for *_, decided in seen} == {True, False}
    for (lengths, active, share, decided), record in zip(seen, out.stats.rounds, strict=True):
        # The root is the last token of the history, and the newest one that the target has read is before it.
        rows = [shares[row][length - 2] for row, length in enumerate(lengths) if active[row]]
        assert share == pytest.approx(sum(rows) / len(rows), abs=1e-5)
        assert decided == (share < middle) == any(record.drafted)


def test_every_round_is_plain_or_none_is():
    out, _, _ = gated("llava", 1e-9)
    assert not any(any(record.drafted) for record in out.stats.rounds)
    out, seen, _ = gated("llava", 2.0)
    assert all(any(record.drafted) for record in out.stats.rounds) and len(seen) == len(out.stats.rounds)


def test_without_a_picture_nothing_is_looked_at():
    drafter = eagle3_drafter("llava", "sdpa")
    inputs = models.inputs_for("llava", pictures_for("llava", [0]), [12])
    gate = Noting(1e-9)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=6, tree=GatedTree(gate))
    assert all(decided and share == 0 for _, _, share, decided in gate.seen) and out.stats.num_draft_tokens


class Alternating(RoundGate):
    def __init__(self):
        self.count = 0

    def drafts(self):
        self.count += 1
        return self.count % 2 == 0


def test_any_gate_and_any_builder_and_two_requests_at_once():
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    for inner in (DynamicTree(2, 3, 8), AutoTree(remember=False)):
        tree = GatedTree(Alternating(), inner)
        runs = [mmspec.stream(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree) for _ in range(2)]
        rows = [[[] for _ in expected] for _ in runs]
        for pieces in zip(*runs, strict=True):
            for texts, piece in zip(rows, pieces, strict=True):
                texts[piece.row].extend(piece.token_ids)
        assert rows == [expected, expected]


def test_refusals():
    with pytest.raises(MMSpecError, match="VisualAttention: threshold=0 must be a number above 0"):
        VisualAttention(0)
    with pytest.raises(MMSpecError, match="GatedTree: gate=0.35 must be a? ?RoundGate"):
        GatedTree(0.35)
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    inputs = case("llava", "sdpa", *RAGGED, NEW)[0]
    with pytest.raises(MMSpecError, match="DynamicTree keeps the likeliest nodes"):
        mmspec.generate(
            drafter.target,
            drafter,
            inputs=inputs,
            temperature=1.0,
            tree=GatedTree(VisualAttention(), DynamicTree()),
            verifier=RejectionSampling(),
        )
