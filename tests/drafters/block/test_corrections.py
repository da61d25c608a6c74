"""Corrections of a block: chains of Markov and their law, and how sure they are."""

from __future__ import annotations

import models
import pytest
import torch
from blocks import KINDS, build, drafter_of, reference_at, taps_of
from covering import covering
from heads import TOLERANCE, error, guesses_of, lesson_of
from laws import g_test
from refusals import refused
from scripted_rounds import Told, decode
from tiny_drafters import record_drafts
from tiny_requests import target_of
from toy_law import PROMPT, ROWS, TOY_TOKENS, exact_law, toy

import mmspec
from mmspec import Target
from mmspec.drafters import BlockDrafter, DFlashDrafter, DFlyDrafter, DominoDrafter, DSparkDrafter, LiLiCorrDrafter
from mmspec.trees import Chain, ConfidenceChain, StaticTree
from mmspec.verifiers import RejectionSampling

SURE = ("dspark", "dspark, rnn")


@pytest.mark.parametrize("variant", ["dspark", "dspark, gated", "dspark, rnn"])
def test_it_begins_as_the_plain_block(variant):
    drafter, lesson = build(target_of("llava", "sdpa"), variant), lesson_of("llava")
    assert not drafter.independent and drafter.cheap_levels
    torch.nn.init.zeros_(drafter.markov_head.markov_w2.weight)
    for guess in drafter.unroll(lesson, 4):
        assert guess.logits.equal(guess.base)
    fresh = DSparkDrafter(lesson.target)
    assert not fresh.markov_head.markov_w2.weight.any() and fresh.markov_head.markov_w1.weight.any()


def test_all_others_begin_as_the_plain_block_too():
    """DFlash 2, Domino, DFly and LiLiCorr: with the weights of a plain block they say what it says."""
    lesson = lesson_of("llava")
    plain = build(lesson.target, "dflash", layout="same")
    for cls, settings in (
        (DFlashDrafter, {"conv_kernel": 2, "selector_rank": 4, "selector_top_k": 5}),
        (DominoDrafter, {"layout": "same", "gru_hidden": 4, "rank": 3, "block_size": 9}),
        (DFlyDrafter, {"fusion": "linear"}),
        (LiLiCorrDrafter, {"candidates": 5, "lattice_size": 12, "lattice_layers": 1, "residual": True}),
    ):
        drafter = cls(lesson.target, **settings)
        drafter.load_state_dict(plain.state_dict(), strict=False)
        for ours, theirs in zip(drafter.unroll(lesson, 3), plain.unroll(lesson, 3), strict=True):
            seen = ours.logits > -torch.inf
            assert seen.sum(-1).unique().tolist() == [
                settings.get("selector_top_k", settings.get("candidates", models.VOCAB))
            ]
            assert error(ours.logits[seen], theirs.logits[seen]) < 1e-5 and ours.base.equal(theirs.logits)


@pytest.mark.parametrize("variant", SURE)
def test_it_is_as_sure_in_training_as_in_drafting_and_as_the_formula_says(variant):
    """Also below nodes that were not written, and without looking at the token that it is about."""
    name, drafter, lesson = "llava", drafter_of("llava", variant), lesson_of("llava")
    roots, taught, compared = lesson.root_slots.shape[1], {}, 0
    with torch.no_grad():
        for step, guess in enumerate(drafter.unroll(lesson, 4)):
            for root, logit in zip(guess.roots.tolist(), guess.confidence, strict=True):
                taught[(*divmod(root, roots), step)] = logit.sigmoid()

    class Sure(Told):
        def build(self, growth):
            self.sure, expand = [], growth.drafter.confidence
            original = growth.expand

            def noting(*arguments):
                children = original(*arguments)
                self.sure.append(expand())
                return children

            growth.expand = noting
            return super().build(growth)

    for at, builder, tree in decode(drafter, name, 2, 3, Sure):
        for row, root in at.items():
            for step in range(min(3, len(lesson.answers[row]) - 1 - root)):
                node = builder.path[step] - (2**step - 1)
                assert error(builder.sure[step][row, node], taught[row, root, step]) < TOLERANCE
                compared += 1
            block = KINDS[type(drafter)](drafter)
            taps, before, anchor, place = taps_of(name, drafter, row, root)
            chain = tree.tokens[row, [1, 3]].tolist()  # the first children
            with torch.no_grad():
                wanted = block.sureness(block.hidden(taps, before, anchor, place), anchor, chain)
            ours = torch.stack([sure[row, 0] for sure in builder.sure])
            assert error(ours, wanted) < TOLERANCE
    assert compared > 15


def test_a_number_that_is_none_is_named_as_it_was_given():
    for variant, settings, said in (
        ("domino", {"uncorrected": -1}, "uncorrected=-1 must be a whole number"),
        ("domino", {"uncorrected": 100}, "DominoDrafter: uncorrected=100 leaves none of the ... use a smaller number"),
        ("dfly", {"correction_size": -1}, "DFlyDrafter: correction_size=-1 must be a whole number, 0 or more"),
        ("lilicorr", {"lattice_size": 0}, "LiLiCorrDrafter: lattice_size=0 must be a positive integer"),
        ("lilicorr", {"candidates": 1}, "LiLiCorrDrafter: candidates=1 must be a whole number, 2 or more"),
        (
            "lilicorr",
            {"candidates": 7, "draft_vocab_size": 3},
            "LiLiCorrDrafter: candidates=7 are more than the 3 tokens that can be drafted: use fewer",
        ),
    ):
        refused(lambda v=variant, s=settings: build(target_of("llama", "sdpa"), v, **s), said)


@pytest.mark.parametrize("variant", ["dspark, gated", "dflash"])
def test_without_a_head_it_says_nothing(variant):
    drafter, lesson = drafter_of("llava", variant), lesson_of("llava")
    assert all(guess.confidence is None for guess in drafter.unroll(lesson, 2))


SMALL = {"block_size": 4}


def test_its_block_alone_is_a_dflash_drafter():
    lesson = lesson_of("llava")
    for variant in ("dspark", "dspark, rnn"):
        drafter = drafter_of("llava", variant)
        plain = drafter.plain()
        assert type(plain) is DFlashDrafter and not plain.training
        for ours, theirs in zip(plain.unroll(lesson, 4), drafter.unroll(lesson, 4), strict=True):
            assert ours.logits.equal(theirs.base)
        assert plain.norm.weight.data_ptr() != drafter.norm.weight.data_ptr(), "a copy"


CHAINS = {
    "vanilla": (DSparkDrafter, {"markov_rank": 4}),
    "gated": (DSparkDrafter, {"markov": "gated", "markov_rank": 4, "layout": "same"}),
    "rnn": (DSparkDrafter, {"markov": "rnn", "markov_rank": 4, "mask_token_id": 1}),
    "selector": (DFlashDrafter, {"conv_kernel": 2, "conv_group": 4, "selector_rank": 4, "selector_top_k": 3}),
    "domino": (DominoDrafter, {"gru_hidden": 4, "rank": 4}),
    "dfly": (DFlyDrafter, {}),
    "lilicorr": (LiLiCorrDrafter, {"candidates": 3, "lattice_size": 8, "lattice_heads": 2}),
    "lilicorr, residual": (
        LiLiCorrDrafter,
        {"candidates": 4, "lattice_size": 4, "lattice_heads": 1, "residual": True, "mask_token_id": 1},
    ),
}


SHAPES = {
    "chain": Chain(3),
    "static": StaticTree(["0", "1", "00", "01", "10", "000"]),
    "sure": ConfidenceChain(0.5, 3),
}


@pytest.mark.parametrize(
    ("kind", "shape"), covering(CHAINS, SHAPES, strength=1, always=lambda kind, shape: shape == "static")
)
def test_sampled_text_follows_the_exact_law(kind, shape, monkeypatch):
    """Whatever the corrections draw, and wherever the drafter's own estimate ends a chain."""
    target = Target(toy(0))
    cls, settings = CHAINS[kind]
    drafter = models.redraw(cls(target, **SMALL | settings), seed=1)
    drafts = record_drafts(monkeypatch, BlockDrafter)
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    options = {"temperature": 1.0, "seed": 11, "verifier": RejectionSampling(), "tree": SHAPES[shape]}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, **options)
    assert 0 < out.stats.num_accepted_draft_tokens < out.stats.num_draft_tokens
    for draft in drafts if drafter.settings.mask_token_id is not None else []:
        assert not draft.tree.draft_probs[torch.tensor(draft.active), ..., 1].any()
    assert g_test([tuple(row) for row in out.token_ids], exact_law(target.model)) > 1e-4


def test_guesses_depend_on_the_token_above_and_no_other():
    """Of the plainest form; the recurrent one remembers them all."""
    lesson = lesson_of("llava")
    for variant, remembers in (("dspark", False), ("dspark, rnn", True)):
        drafter = drafter_of("llava", variant)
        tokens = lesson.request.inputs["input_ids"]
        other = {**lesson.request.inputs, "input_ids": tokens.clone()}
        root = lesson.prompt.lengths[0]
        other["input_ids"][0, root + 1] = (tokens[0, root + 1] + 5) % 50
        changed = mmspec.lesson.replace(lesson, request=mmspec.lesson.replace(lesson.request, inputs=other))
        ours, theirs = guesses_of(drafter, lesson, 3), guesses_of(drafter, changed, 3)
        differs = [error(ours[0, 0, step], theirs[0, 0, step]) > 1e-4 for step in range(3)]
        assert differs == [False, True, remembers]


@pytest.mark.parametrize("variant", ["lilicorr", "lilicorr, residual"])
def test_a_lattice_is_told_of_the_newest_state_before_the_anchor(variant):
    """The state before that one would give other scores; these are told apart."""
    drafter, lesson, answer = drafter_of("llava", variant), lesson_of("llava"), lesson_of("llava").answers[0]
    guesses, (before, *_) = guesses_of(drafter, lesson, 2), reference_at("llava", drafter, 0, 2, answer[3:4], "newest")
    seen = before > -torch.inf
    assert seen.equal(guesses[0, 2, 0] > -torch.inf)
    assert error(guesses[0, 2, 0][seen], before[seen]) > 10 * TOLERANCE


def test_a_candidate_is_scored_by_what_may_stand_behind_it():
    """Which no correction by the tokens above does: another candidate of the last slot changes the first choice."""
    lesson = lesson_of("llava")
    drafter = build(lesson.target, "lilicorr")
    drafter._prepare()
    hidden, newest = drafter._unrolled(lesson, lesson.anchors[0])
    base, scores = drafter.logits(hidden), []
    for least in (False, True):
        changed = base.clone()
        if least:
            changed[..., -1, :] = -changed[..., -1, :]
        scores.append(drafter.lilicorr.walk(changed, hidden, newest, drafter.token_embeds, None).scores)
    first = [each.unflatten(0, (-1, drafter.settings.drafts, 8))[:, 0] for each in scores]
    assert error(*first) > 1e-3
