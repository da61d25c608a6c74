"""EAGLE drafters in training, and with a reduced vocabulary."""

from __future__ import annotations

import models
import pytest
import torch
import transformers
from heads import (
    ANSWERS,
    TOLERANCE,
    VARIANTS,
    build,
    drafter_of,
    error,
    guesses_of,
    lesson_of,
)
from laws import g_test
from tiny_drafters import DRAFT_MODELS, record_drafts
from tiny_requests import target_of
from toy_law import PROMPT, ROWS, TOY_TOKENS, exact_law, toy

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import Eagle3Drafter, EagleDrafter, HiVisDrafter
from mmspec.training.beginnings import second_stage
from mmspec.trees import Chain, StaticTree
from mmspec.verifiers import RejectionSampling


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(variant):
    drafter, lesson = build(target_of("llava", "sdpa"), variant), lesson_of("llava")
    torch.manual_seed(0)
    for _ in range(8 if variant == "eagle, elastic" else 1):  # until every branch was drawn
        sum(guess.logits.logsumexp(-1).sum() for guess in drafter.unroll(lesson, 3)).backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-6, name


# Layers in a row are one deep model, whose states are no steps of a recursion.
STEPS = [variant for variant in VARIANTS if variant != "dream, without memory" and "in a row" not in variant]


@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize("detach", [False, True])
def test_a_step_teaches_earlier_ones_unless_detached(variant, detach, monkeypatch):
    drafter, outputs = build(target_of("llama", "sdpa"), variant), []
    next_state = type(drafter).next_state

    def recording(self, output):
        output.retain_grad()
        outputs.append(output)
        return next_state(self, output)

    monkeypatch.setattr(type(drafter), "next_state", recording)
    guesses = list(drafter.unroll(lesson_of("llama"), 3, detach))
    guesses[2].logits.square().sum().backward()
    reached = [output.grad is not None and bool(output.grad.any()) for output in outputs]
    assert reached == [not detach, not detach, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_a_head_that_continues_the_last_feature_guesses_it(variant):
    """And only heads without one of their own read the target's vocabulary head, which is large."""
    drafter, lesson = drafter_of("llama", variant), lesson_of("llama")
    first = VARIANTS[variant][0] is not Eagle3Drafter
    assert (drafter._rows() is not None) == first
    for guess in drafter.unroll(lesson, 2):
        assert (guess.features is not None) == drafter.guesses_features
        if drafter.guesses_features:
            logits = lesson.target.family.head(guess.features, drafter._rows())
            assert error(logits, guess.logits) < TOLERANCE


def test_the_second_stage_of_hivis_begins_as_the_first_one_ended(tmp_path):
    """Every draft step has a residual of its own then, and learns it."""
    target, lesson = target_of("llava", "sdpa"), lesson_of("llava")
    first = models.redraw(HiVisDrafter(target, steps=1, packed=True), seed=5)
    first.save_pretrained(tmp_path / "first")
    second = second_stage(target, str(tmp_path / "first"), steps=3)
    assert second.settings.packed and second.residual.shape == (3, 32) and second.config()["steps"] == 3
    ours, theirs = guesses_of(second, lesson, 4), guesses_of(first, lesson, 4)
    assert all(ours[key].equal(logits) for key, logits in theirs.items())
    for step, guess in enumerate(second.unroll(lesson, 4, detach=True)):
        second.zero_grad()
        guess.logits.square().sum().backward(retain_graph=True)
        reached = second.residual.grad.any(-1).tolist()
        assert reached == [row <= step for row in range(3)], "its own, and those of the entries that it sees"
    second.save_pretrained(tmp_path / "second")
    with pytest.raises(MMSpecError, match="is no HiViS drafter of the first stage, which has a single residual"):
        second_stage(target, str(tmp_path / "second"))
    drafter_of("llava", "eagle").save_pretrained(tmp_path / "eagle")
    with pytest.raises(MMSpecError, match="is no HiViS drafter of the first stage"):
        second_stage(target, str(tmp_path / "eagle"))


@pytest.mark.parametrize(("name", "label"), [("llava", "eagle"), ("llama", "eagle3"), ("llava", "text only")])
def test_chains_end_with_the_longest_answer(name, label):
    drafter = drafter_of(name, label) if label in VARIANTS else DRAFT_MODELS[label](name, "sdpa")
    assert len(list(drafter.unroll(lesson_of(name), 30))) == max(ANSWERS) - 1


# A reduced vocabulary, and sampling.


@pytest.mark.parametrize("cls", [EagleDrafter, Eagle3Drafter])
@pytest.mark.parametrize("tree", [Chain(2), StaticTree(["0", "1", "2", "00", "01", "10"])], ids=["chain", "static"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3}], ids=["plain", "processed"])
def test_sampled_text_follows_the_exact_law_with_a_reduced_vocabulary(cls, tree, options, monkeypatch):
    """What the drafter cannot propose the target still says, as often as it should."""
    target = Target(toy(0))
    drafter = cls(target, draft_vocab_size=4)
    drafter.choose_vocabulary(torch.tensor([5, 0, 2, 3]))
    models.redraw(drafter, seed=1)
    drafts = record_drafts(monkeypatch, cls)
    settings = {"temperature": 1.0, "seed": 11, "verifier": RejectionSampling(), "tree": tree, **options}
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, **settings)
    assert 0 < out.stats.num_accepted_draft_tokens < out.stats.num_draft_tokens
    for draft in drafts:
        q = draft.tree.draft_probs
        assert q.shape[-1] == target.vocab_size and (q[..., [1, 4]] == 0).all()
        assert (q.sum(-1) - 1).abs().max() < 1e-5
    processors = [transformers.TemperatureLogitsWarper(0.7), transformers.TopKLogitsWarper(3)] if options else []
    assert g_test([tuple(row) for row in out.token_ids], exact_law(target.model, *processors)) > 1e-4


def test_where_nothing_that_can_be_drafted_is_allowed_the_target_goes_on_alone():
    """A grammar, say, may rule out every token of a reduced vocabulary."""
    target = Target(toy(0))
    drafter = Eagle3Drafter(target, draft_vocab_size=3)  # tokens 0, 1 and 2
    only = transformers.SuppressTokensLogitsProcessor([0, 1, 2])
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    settings = {"temperature": 1.0, "verifier": RejectionSampling(), "logits_processor": [only], "tree": Chain(2)}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, **settings)
    assert out.stats.num_accepted_draft_tokens == 0
    assert g_test([tuple(row) for row in out.token_ids], exact_law(target.model, only)) > 1e-4


@pytest.mark.parametrize("tokens", [[], [1, 2], [1, 2, 2], [1, 2, 2, 3], [1, 2, 61], [-1, 2, 3]])
def test_a_vocabulary_of_other_tokens_is_refused(tokens):
    drafter = EagleDrafter(target_of("llava", "sdpa"), draft_vocab_size=3)
    with pytest.raises(
        MMSpecError,
        match="choose_vocabulary: . token ids lead to . tokens.*; 3 different ones of the target's 61 are needed",
    ):
        drafter.choose_vocabulary(torch.tensor(tokens))
    with pytest.raises(MMSpecError, match="this EagleDrafter drafts from all 61 tokens, .* make it with draft_vocab"):
        EagleDrafter(target_of("llava", "sdpa")).choose_vocabulary(torch.tensor(tokens))


def test_a_chosen_vocabulary_is_sorted_and_stored_as_offsets():
    """As in the published checkpoints: token i of the drafter is token i + d2t[i] of the target."""
    for cls in (EagleDrafter, Eagle3Drafter):
        drafter = cls(target_of("llama", "sdpa"), draft_vocab_size=3)
        assert drafter.draft_vocabulary.tolist() == [0, 1, 2]
        drafter.choose_vocabulary(torch.tensor([40, 7, 21]))
        assert drafter.draft_vocabulary.tolist() == [7, 21, 40] and drafter.d2t.tolist() == [7, 20, 38]
        assert drafter.t2d.nonzero()[:, 0].tolist() == [7, 21, 40] and drafter.t2d.dtype == torch.bool
    head = drafter.target.model.get_output_embeddings().weight
    assert drafter.lm_head.weight.equal(head[[7, 21, 40]]), "the head of EAGLE-3 begins as the target's"
    assert Eagle3Drafter(drafter.target).lm_head.weight.equal(head)
