"""Sparrow: text alone is attended to in use, pictures are seen in training; the former is a switch of every head."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import models
import pytest
import torch
from heads import (
    TOLERANCE,
    drafter_of,
    error,
    expect_loaded_as_saved,
    guesses_of,
    lesson_of,
    trained_by_recipe,
)
from refusals import refused
from scripted_rounds import Script, Told, guesses_compared
from tiny_requests import NEW, batch_of, target_of

import mmspec
from mmspec.compressors import Hide, Pool, Routing
from mmspec.drafters import (
    AasdDrafter,
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    MsdDrafter,
    MtpDrafter,
    PEagleDrafter,
    SparrowDrafter,
    SpecFlashDrafter,
)
from mmspec.scopes import load_scoped
from mmspec.trees import Chain

# What reads whole prompts in other ways than EAGLE's one layer.
OTHERS = {
    "eagle3": (Eagle3Drafter, {"visual": True}),
    "mtp": (MtpDrafter, {}),
    "mtp, in a row": (MtpDrafter, {"layers": 3}),
    "peagle": (PEagleDrafter, {"layers": 2, "depths": 5}),
    "dream": (DreamDrafter, {}),
    "specflash": (SpecFlashDrafter, {"tokens": 2}),
    "pooled": (EagleDrafter, {"compressor": Pool(2)}),
}


@cache
def made(name: str, cls, **settings):
    return models.redraw(cls(target_of(name, "sdpa"), **settings), 41).eval()


def same(ours: dict, theirs: dict) -> bool:
    assert ours.keys() == theirs.keys()
    return max(error(ours[key], theirs[key]) for key in ours) < TOLERANCE


# Text alone.


class Unseen(Routing):
    """Shows nothing: the layer reads all slots, and its attention masks those of visual tokens."""

    def route(self, relevance, visual):
        return torch.zeros_like(visual)


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
@pytest.mark.parametrize("cls", [EagleDrafter, Eagle3Drafter, MsdDrafter])
def test_text_alone_is_the_whole_prompt_with_its_visual_slots_masked(name, cls):
    """So its positions are those of the whole, and what is left out costs nothing in probability."""
    whole, lesson = made(name, cls), lesson_of(name)
    text, masked = whole.with_scope("text"), whole.with_compressor(Unseen())
    guesses = guesses_of(text, lesson, 3)
    assert same(guesses, guesses_of(masked, lesson, 3))
    assert not same(guesses, guesses_of(whole, lesson, 3))
    assert not same(guesses, guesses_of(whole.with_compressor(Hide()), lesson, 3)), "that hides before it pairs"
    assert same(guesses_of(text.with_scope("all"), lesson, 3), guesses_of(whole, lesson, 3))


@pytest.mark.parametrize("label", OTHERS)
def test_every_head_drafts_on_text_alone_as_it_is_taught(label):
    cls, settings = OTHERS[label]
    drafter = made("qwen_vl", cls, attention_scope="text", **settings)
    assert guesses_compared(drafter, lesson_of("qwen_vl"), "qwen_vl", 1) > 25


def other_pictures(lesson, spared: bool):
    """The same lesson, its target having seen other things at visual tokens: at all of them, or at all but the last of
    a picture."""
    visual = lesson.target.family.is_visual(lesson.request.inputs["input_ids"])
    if spared:
        visual = visual & visual.roll(-1, dims=1)
    noise = torch.randn(lesson.embeds.shape, generator=torch.Generator().manual_seed(5)) * visual[..., None]
    features = {layer: states + noise for layer, states in lesson.features.items()}
    return replace(lesson, embeds=lesson.embeds + noise, features=features)


@pytest.mark.parametrize("label", ["sparrow", "eagle", "eagle3", "msd"])
def test_of_a_picture_only_the_targets_states_beside_text_get_through(label):
    """The last state of a picture stands beside the first word behind it."""
    drafter, lesson = drafter_of("llava", label).with_scope("text"), lesson_of("llava")
    guesses = guesses_of(drafter, lesson, 2)
    assert same(guesses, guesses_of(drafter, other_pictures(lesson, spared=True), 2))
    assert not same(guesses, guesses_of(drafter, other_pictures(lesson, spared=False), 2))
    whole = drafter.with_scope("all")
    assert not same(guesses_of(whole, lesson, 2), guesses_of(whole, other_pictures(lesson, spared=True), 2))


def test_the_cache_holds_slots_of_text_alone():
    """However many visual tokens there are."""
    sizes = {}
    for images in (1, 3):
        inputs = models.inputs_for("qwen_vl", [images], [9 - images])  # a word goes with each picture
        for scope in ("all", "text"):
            drafter = drafter_of("qwen_vl", "sparrow").with_scope(scope)
            script = Script(drafter, inputs, [[5, 6, 7]], Told(1, 1))
            sizes[scope, images] = script.session.session.cache.lengths_list[0]
    visual = [4, 4 + 6 + 4]
    assert [sizes["all", count] - sizes["text", count] for count in (1, 3)] == visual
    assert sizes["text", 3] - sizes["text", 1] == 4, "two more pairs of delimiters"


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("alone", [True, False])
def test_the_text_is_the_targets_behind_pictures_and_videos(name, alone):
    """The drafter is untrained: no weight of it matters for the text."""
    inputs, expected = batch_of(name, alone)
    drafter = SparrowDrafter(target_of(name))
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=None if alone else Chain(3))
    assert out.token_ids == expected and out.stats.num_draft_tokens


def test_the_default_tree_is_the_papers():
    assert vars(drafter_of("llava", "sparrow").native_tree()) == {"depth": 4, "top_k": 8, "total": 30}


@pytest.mark.parametrize("pictures_first", [True, False])
def test_a_prompt_may_begin_or_end_with_a_picture(pictures_first):
    """The slot of the first word, or of the root, then has a picture's last state."""
    name, image, words = "llava", [models.IMAGE] * 4, [5, 6, 7]
    ids = image + words if pictures_first else words + image
    inputs = models.inputs_for(name, [1], [3]) | {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    drafter = drafter_of(name, "sparrow")
    plain = mmspec.generate(drafter.target, None, inputs=inputs, max_new_tokens=NEW)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == plain.token_ids
    script = Script(drafter, inputs, [[5, 6, 7]], Told(1, 1))
    # Every word but the first token of all has a slot.
    assert script.session.session.cache.lengths_list == [len(words) - (not pictures_first)]


# Training.


def test_pictures_are_seen_in_training_through_the_bridge_and_in_use_not_at_all():
    drafter, lesson = SparrowDrafter(target_of("llava", "sdpa")), lesson_of("llava")
    taught = guesses_of(drafter.train(), lesson, 3)
    used = guesses_of(drafter.eval(), lesson, 3)
    assert not same(taught, used)
    assert same(taught, guesses_of(drafter.with_scope("all").eval(), lesson, 3)), "as an explicit sequence has it"
    blind = SparrowDrafter(drafter.target, training_scope="text")
    blind.load_state_dict(drafter.state_dict())
    assert same(used, guesses_of(blind.train(), lesson, 3))


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_the_bridge_is_the_state_that_enters_its_layer(layer):
    """Half of the target's layers, unless another one is named; other states at visual tokens change nothing."""
    drafter = made("llava", SparrowDrafter, bridge_layer=layer).train()
    lesson = lesson_of("llava")
    entered = 1 if layer is None else layer
    assert drafter.lesson_layers == (-1, entered) and drafter.feature_layers == (-1,)
    assert drafter.config()["bridge_layer"] == entered
    changed, guesses = other_pictures(lesson, spared=True).features, guesses_of(drafter, lesson, 2)
    for number in range(3):
        features = lesson.features | {number: changed[number]}
        assert same(guesses, guesses_of(drafter, replace(lesson, features=features), 2)) == (number != entered)
    drafter.eval()


def test_a_bridge_at_the_first_layer_is_msd_and_without_one_it_is_eagle():
    lesson = lesson_of("llava")
    for cls, settings in ((MsdDrafter, {"bridge_layer": 0}), (EagleDrafter, {"bridge": False})):
        drafter, other = made("llava", SparrowDrafter, attention_scope="all", **settings), made("llava", cls)
        assert same(guesses_of(drafter, lesson, 3), guesses_of(other, lesson, 3))


@pytest.mark.parametrize("ablated", [[], ["recipe.objective.steps=1", "recipe.drafter.bridge=false"]])
def test_the_recipe_teaches_every_weight(ablated):
    drafter, losses = trained_by_recipe(["recipe=sparrow", *ablated], steps=14)
    assert losses[-1] < 0.8 * losses[0], losses
    assert drafter.settings.bridge == (not ablated) and drafter.settings.attention_scope == "text"


def test_it_is_loaded_as_it_was_saved(tmp_path):
    expect_loaded_as_saved(drafter_of("llava", "sparrow"), tmp_path)
    drafter_of("llava", "eagle").save_pretrained(tmp_path / "eagle")
    text = load_scoped(str(tmp_path / "eagle"), target_of("llava", "sdpa"))
    assert text.settings.attention_scope == "text" and isinstance(text, EagleDrafter)
    text.save_pretrained(tmp_path / "text")
    again = mmspec.load_drafter(str(tmp_path / "text"), text.target)
    assert same(guesses_of(again, lesson_of("llava"), 2), guesses_of(text, lesson_of("llava"), 2))


# What is refused.


def test_what_does_not_fit_is_refused_in_a_line():
    target, eagle, sparrow = target_of("llava", "sdpa"), drafter_of("llava", "eagle"), drafter_of("llava", "sparrow")
    refused(lambda: SparrowDrafter(target, bridge_layer=3), "bridge_layer=3 must be a layer ... from 0 to 2")
    refused(lambda: SparrowDrafter(target, visual=False), "visual=False leaves ... bridge=False")
    refused(lambda: sparrow.with_compressor(Routing()), "Routing chooses ... attends to text alone: leave")
    refused(lambda: eagle.with_compressor(Routing()).with_scope("text"), "Routing chooses ... attends to text alone")
    refused(lambda: eagle.with_scope("pictures"), "attention_scope='pictures' is unknown")
    refused(lambda: AasdDrafter(target).with_scope("text"), "AasdDrafter has no attention_scope ... compressor=hide")
    refused(
        lambda: load_scoped("tiny/text_only", mmspec.load_target()), "'tiny/text_only' is a TextOnlyDrafter ... hide"
    )
    inputs = models.inputs_for("llava", [1], [3]) | {"input_ids": torch.tensor([[models.IMAGE] * 4])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    refused(lambda: mmspec.generate(target, sparrow, inputs=inputs, max_new_tokens=3), "no text beside its pictures")
