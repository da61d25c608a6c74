"""FOVEA's corrector: it begins as nothing, sees its own row's picture alone, and looks at as much of it as it may.

That it computes what its formulas say, for every node of a tree and in training, is tested with the heads that it is
put on (`heads.VARIANTS`); that it changes no text, with all drafters.
"""

from __future__ import annotations

import models
import pytest
import torch
from heads import VARIANTS, build, compressor, error, guesses_of, inputs_of, lesson_of, open_gates
from refusals import refused
from scripted_rounds import guesses_compared
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import drafters
from mmspec.compressors.base import compressor_of
from mmspec.drafters import (
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    FeatureDrafter,
    FeatureSettings,
    HiVisDrafter,
    MsdDrafter,
    MtpDrafter,
    PEagleDrafter,
    SparrowDrafter,
    SpecFlashDrafter,
    ViSpecDrafter,
)
from mmspec.drafters.corrector import CorrectorSettings, VisualCorrector
from mmspec.formats.export import export_speculators
from mmspec.inputs import prepare
from mmspec.settings import configuration
from mmspec.training.beginnings import corrected
from mmspec.training.teacher import Teacher
from mmspec.trees import DynamicTree

SMALL = {"depth": 2, "inner": 8, "least": 2, "most": 3}
HEADS = {
    "eagle": (EagleDrafter, {}),
    "eagle3, prune": VARIANTS["eagle3, prune"],
    "hivis": (HiVisDrafter, {"steps": 2}),
    "msd": (MsdDrafter, {}),
    "vispec": (ViSpecDrafter, {"queries": 3, "heads": 2}),
    "dream, pool": (DreamDrafter, compressor("pool.Pool", size=2)),
    "mtp": (MtpDrafter, {}),
    "sparrow": (SparrowDrafter, {}),
    "peagle": (PEagleDrafter, {"layers": 2, "depths": 4}),
}


def made(label: str, name: str = "llava", **settings) -> FeatureDrafter:
    """A head with random weights."""
    cls, own = HEADS[label]
    own = {**own, **settings, "compressor": compressor_of(own.get("compressor"))}
    return open_gates(models.redraw(cls(target_of(name, "sdpa"), **own), seed=3)).eval()


def corrector(seed: int = 0, **settings) -> VisualCorrector:
    return models.redraw(VisualCorrector(CorrectorSettings(**SMALL | settings), 6, 6), seed)


@pytest.mark.parametrize("label", HEADS)
def test_on_a_trained_head_it_begins_as_nothing_and_then_changes_trees_but_no_text(label, tmp_path, monkeypatch):
    """With it as it begins, all trees of an answer are bit for bit those without it; the texts are the target's."""
    head = made(label)
    head.save_pretrained(tmp_path)
    with_it = corrected(head.target, str(tmp_path), SMALL | {"depth": 3}).eval()
    assert type(with_it) is type(head) and with_it.config()["corrector"]["depth"] == 3
    opened = corrected(head.target, str(tmp_path), SMALL | {"depth": 3})
    models.redraw(opened.corrector, seed=4)
    opened.corrector.change[2].weight.data *= 8
    inputs, expected = case("llava", "sdpa", *RAGGED, 10)
    drafts = record_drafts(monkeypatch, type(head))
    taken = []
    for drafter in (head, with_it, opened):
        begin = len(drafts)
        out = mmspec.generate(head.target, drafter, inputs=inputs, tree=DynamicTree(3, 3, 8), max_new_tokens=10)
        assert out.token_ids == expected
        taken.append([(draft.tree.tokens, draft.tree.log_probs, draft.tree.parents) for draft in drafts[begin:]])
    first, second, third = taken
    assert len(first) == len(second) > 2
    for one, two in zip(first, second, strict=True):
        assert all(ours.equal(theirs) for ours, theirs in zip(one, two, strict=True))
    assert [one[1].shape for one in first] != [one[1].shape for one in third] or any(
        not ours[1].equal(theirs[1]) for ours, theirs in zip(first, third, strict=True)
    )


@pytest.mark.parametrize("label", ["eagle3, prune", "hivis", "peagle"])
def test_it_sees_the_pictures_of_its_own_row_alone_and_all_of_them(label):
    """Through whatever compressor the head reads them: hidden or pruned tokens are looked at too."""
    drafter, target = made(label, corrector=SMALL | {"depth": 3}), target_of("llava", "sdpa")
    inputs, answers = inputs_of("llava"), lesson_of("llava").answers
    lesson = lesson_of("llava")
    before, seen = guesses_of(drafter, lesson, 3), lesson.embeds.clone()
    visual = target.family.is_visual(lesson.request.inputs["input_ids"])
    counts = visual.sum(1).tolist()
    assert sorted(map(bool, counts)) == [False, True, True, True], "one row has no picture"
    look_at = drafter.corrector.look_at
    for row in range(len(answers)):
        for place in visual[row].nonzero()[:, 0].tolist()[:: max(counts[row] // 2, 1)]:
            changed = seen.clone()
            changed[row, place] *= -1

            def other(_, mask, changed=changed):  # what the head reads itself stays
                return look_at(changed, mask)

            drafter.corrector.look_at = other
            after = guesses_of(drafter, lesson, 3)
            moved = {key[0] for key, logits in after.items() if not logits.equal(before[key])}
            assert moved <= {row}, "nobody else sees it"
    drafter.corrector.look_at = look_at
    # Nothing is corrected where there is no picture.
    blind, empty = made(label), counts.index(0)
    for key, logits in guesses_of(blind, lesson, 3).items():
        assert (error(logits, before[key]) < 1e-6) == (key[0] == empty), key
    alone = prepare(target, inputs=models.one_row(inputs, empty))
    told = Teacher(target, range(3)).study(alone, [answers[empty]])
    assert guesses_of(drafter, told, 2).keys() == guesses_of(blind, told, 2).keys()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("label", ["vispec", "dream, pool", "peagle"])
def test_training_sees_what_decoding_does(label, width):
    assert guesses_compared(made(label, corrector=SMALL | {"depth": 3}), lesson_of("llava"), "llava", width) > 25


def test_with_room_for_all_it_is_plain_attention_and_else_the_likeliest_tokens():
    generator = torch.Generator().manual_seed(1)
    seen, queries = torch.randn(2, 9, 6, generator=generator), torch.randn(2, 4, 6, generator=generator)
    visual = torch.ones(2, 9, dtype=torch.bool)
    visual[1, ::2] = False  # the second row has four tokens, between others
    for told in ({"least": 9, "most": 9}, {"least": 1, "most": 9, "share": 1.0}):
        whole = corrector(**told)
        looked = whole.look_at(seen, visual)
        assert looked.there.sum(1).tolist() == [9, 4]
        for row, tokens in enumerate((looked.keys[0], looked.keys[1, :4])):
            wanted = (queries[row] @ tokens.T / 6**0.5).softmax(-1) @ looked.values[row, : len(tokens)]
            assert error(whole.attend(queries, looked)[row], wanted) < 1e-6
    fixed = corrector(least=2, most=2)
    weights = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])
    assert torch.allclose(fixed.budgeted(weights), torch.tensor([[0, 4, 0, 3, 0]]) / 7)
    byshare = corrector(least=1, most=4, share=0.7)
    assert torch.allclose(byshare.budgeted(weights), torch.tensor([[0, 4, 0, 3, 0]]) / 7), "0.7 is reached by two"
    assert (corrector(least=1, most=4, share=0.71).budgeted(weights) > 0).sum() == 3
    assert (corrector(least=1, most=2, share=0.99).budgeted(weights) > 0).sum() == 2
    assert (corrector(least=3, most=4, share=0.1).budgeted(weights) > 0).sum() == 3


def test_a_closed_gate_is_the_head_itself_and_deeper_levels_are():
    lesson = lesson_of("llava")
    drafter, head = made("eagle", corrector=SMALL | {"depth": 1}), made("eagle")
    ours, theirs = guesses_of(drafter, lesson, 3), guesses_of(head, lesson, 3)
    with_pictures = [row for row, length in enumerate(models_counts(lesson)) if length]
    for (row, root, step), logits in ours.items():
        assert logits.equal(theirs[row, root, step]) == (step > 0 or row not in with_pictures)
    drafter.corrector.gate[2].bias.data.fill_(-200.0)
    assert all(error(logits, theirs[key]) < 1e-6 for key, logits in guesses_of(drafter, lesson, 3).items())


def models_counts(lesson) -> list[int]:
    return lesson.target.family.is_visual(lesson.request.inputs["input_ids"]).sum(1).tolist()


def test_alone_it_is_all_that_is_trained(tmp_path):
    made("eagle3, prune").save_pretrained(tmp_path)
    alone = corrected(target_of("llava", "sdpa"), str(tmp_path), SMALL | {"alone": True})
    assert set(alone.trainable_parameters()) == set(alone.corrector.parameters())
    recipe = ["recipe=fovea", f"recipe.drafter.name={tmp_path}", "recipe.drafter.corrector.inner=8"]
    reached = {}
    for gate in (0.0, -4.0):
        config = configuration.compose("train", [*recipe, f"recipe.drafter.corrector.gate={gate}"]).recipe
        torch.manual_seed(0)
        drafter, objective = (
            configuration.build(config.drafter, target=target_of("llava", "sdpa")),
            configuration.build(config.objective),
        )
        assert set(drafter.trainable_parameters()) == set(drafter.parameters())
        optimizer = torch.optim.AdamW(drafter.corrector.parameters(), lr=0.02)
        losses = []
        for _ in range(12):
            loss, _ = objective(drafter, lesson_of("llava"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        reached[gate] = losses[-1] / losses[0]
    assert reached[0.0] < 0.97, "the corrector learns by itself"
    assert reached[0.0] < reached[-4.0] - 0.02, "and slower behind a gate that is nearly closed"
    without = configuration.compose("train", [*recipe[:2], "recipe.drafter.corrector=null"]).recipe.drafter
    assert configuration.build(without, target=target_of("llava", "sdpa")).corrector is None


def test_every_head_with_the_setting_is_put_to_use_here_or_refuses():
    """None takes the setting and leaves it unread."""
    exported = [getattr(drafters, name) for name in drafters.__all__]
    heads = [cls for cls in exported if isinstance(cls, type) and issubclass(cls, FeatureDrafter)]
    heads = [cls for cls in heads if issubclass(cls.Settings, FeatureSettings) and cls is not FeatureDrafter]
    used = {cls for cls, _ in HEADS.values()}
    assert {cls for cls in heads if cls.takes_corrector} == used | {Eagle3Drafter}


def test_bad_settings_and_heads_are_refused(tmp_path):
    target = target_of("llava", "sdpa")

    def with_(**settings):
        return lambda: EagleDrafter(target, corrector=settings)

    refused(with_(depths=1), "EagleDrafter: corrector: there is no setting 'depths' ... 'depth'")
    refused(with_(depth=0), "EagleDrafter: corrector: depth=0 must be a positive integer")
    refused(with_(width=0), "EagleDrafter: corrector: width=0 must be a positive integer")
    refused(with_(share=1.5), "corrector: share=1.5 must be above 0 and at most 1")
    refused(with_(least=9, most=3), "corrector: least=9 must not exceed most=3")
    refused(with_(reads="embed"), "corrector: reads='embed' is unknown ... 'embeds'")
    refused(lambda: EagleDrafter(target, corrector=2), "EagleDrafter: corrector=2 must be settings by name or None")
    refused(lambda: MtpDrafter(target, layers=2, corrector={}), "MtpDrafter: corrector= ... leave it out")
    refused(lambda: SpecFlashDrafter(target, corrector={}), "SpecFlashDrafter: corrector= ... another head")
    refused(lambda: corrected(target, "ngram_", {}), "'ngram_'")
    EagleDrafter(target).save_pretrained(tmp_path / "plain")
    refused(lambda: corrected(target, str(tmp_path / "plain"), 2), "corrector=2 must be settings by name or None")
    build(target, "eagle3, fovea").save_pretrained(tmp_path)
    refused(lambda: corrected(target, str(tmp_path), {}), "has a corrector already ... start=")
    fovea = Eagle3Drafter(target, corrector={"inner": 8})
    refused(
        lambda: export_speculators(fovea, tmp_path / "out", "vlm"), "looks at pictures through a corrector ... null"
    )
