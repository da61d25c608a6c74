"""AASD: it attends to the target's own cache, in decoding and in lessons, and to its own slots of the round alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import models
import pytest
import tiny_families
import torch
from heads import (
    ANSWERS,
    TOLERANCE,
    error,
    expect_loaded_as_saved,
    expect_own_behind_gates,
    expect_plain_texts,
    full_pass,
    guesses_of,
    inputs_of,
    lesson_of,
    trained_by_recipe,
)
from originals import Original
from scripted_rounds import Script, Told, guesses_compared
from tiny_requests import RAGGED, case, target_of
from torch.nn import functional

import mmspec
from mmspec import MMSpecError
from mmspec.compressors import Hide, Pool, Prune
from mmspec.drafters import AasdDrafter
from mmspec.inputs import prepare
from mmspec.models.keys_values import deepest_cached, keys_values_of
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree

NAMES = ("llava", "qwen_vl", "gemma3", "llama")
COMPRESSORS = {"all": lambda: None, "pool": lambda: Pool(2), "hide": Hide, "prune": lambda: Prune(0.5, by="uniform")}


def made(name: str, view: str = "all", **settings) -> AasdDrafter:
    """A drafter with random weights."""
    drafter = AasdDrafter(target_of(name, "sdpa"), compressor=COMPRESSORS[view](), **settings)
    return models.redraw(drafter, 21).eval()


drafter_of = cache(made)


# The target's keys and values.


@pytest.mark.parametrize("name", tiny_families.FAMILIES)
def test_those_of_a_lesson_are_those_of_the_cache(name):
    """Of all families, about all of their media, in a ragged batch; and another layer's are others."""
    tiny, target = tiny_families.FAMILIES[name], target_of(name)
    shown = [] if tiny.picture is None else list(tiny.kinds)
    inputs = tiny.inputs([shown, shown[:1], []], [5, 9, 7])
    request, deepest = prepare(target, inputs=inputs), deepest_cached(target)
    lesson = Teacher(target, [0, deepest]).study(request, [[3, 4, 5], [6, 7], [8, 9, 10, 11]])
    positions, _ = target.family.positions_until(lesson.prompt.inputs, lesson.embeds.shape[1])
    made = keys_values_of(target, deepest, lesson.features[deepest], positions)
    other = keys_values_of(target, 0, lesson.features[0], positions)
    held = target.prefill(request, target.encode(request)).keys_values(deepest)
    for ours, theirs, wrong in zip(made, held, other, strict=True):
        for row, length in enumerate(request.lengths):
            assert error(ours[row, :, :length], theirs[row, :, :length]) < 1e-5
            alike = wrong.shape == ours.shape  # Gemma 4's layers differ in size
            assert not alike or error(wrong[row, :, :length], theirs[row, :, :length]) > 1e-2


def test_a_model_that_makes_them_otherwise_is_not_trained_for(monkeypatch):
    target = target_of("llama", "sdpa")
    monkeypatch.setattr(type(target.family.layers[2]), "forward", lambda self, hidden_states, secret: None)
    with pytest.raises(MMSpecError, match="cannot be computed from its states.*choose another recipe") as caught:
        keys_values_of(target, 2, torch.zeros(1, 3, 32), torch.arange(3)[None])
    assert "\n" not in str(caught.value)


# What a slot says.


def expected(name: str, drafter: AasdDrafter, row: int, root: int, chain: int, wrong: str = "") -> list[torch.Tensor]:
    """Logits behind the answer's token number `root` and those that follow it, by the formulas, on a row alone.

    Args:
        name: of the family.
        drafter: of which only weights are used.
        row, root: where the chain begins.
        chain: steps.
        wrong: a mistake to make: `late`, the target's entry of the root itself is seen; `alone`, no slot sees the
            round's others; `place`, slots stand one place too early; `true`, further slots hold true states.
    """
    states, _, _ = full_pass(name, row)
    lesson, target = lesson_of(name), drafter.target
    until = lesson.prompt.lengths[row] + root  # the root's place
    ids = lesson.request.token_ids()[row]
    with torch.no_grad():
        one = models.one_row(inputs_of(name), row)
        text = torch.tensor([ids])
        request = prepare(target, inputs=one)
        longer = Teacher(target, [2]).study(request, [lesson.answers[row]])
        positions, _ = target.family.positions_until(longer.prompt.inputs, longer.embeds.shape[1])
        keys, values = keys_values_of(target, 2, longer.features[2], positions)
        axes = positions if positions.ndim == 3 else positions[None].expand(3, -1, -1)
        layer, table = Original.of(drafter), target.model.get_input_embeddings()
        seen = until + (wrong == "late")
        held = [
            layer.heads(map, part[0, :, :seen].transpose(0, 1).flatten(1))
            for map, part in (("key_projector", keys), ("value_projector", values))
        ]
        state, own, guesses = states[-1][until - 1], [], []
        for step in range(chain):
            if step and wrong == "true":
                state = states[-1][until - 1 + step]
            fused = layer.linear("fc", torch.cat([table(text[0, until + step]), state])[None])
            mixed = layer.norm("layers.0.input_layernorm", fused)
            at = until + step - (wrong == "place")
            places = axes[slice(None) if layer.sections else 0, 0, at : at + 1]
            q, k, v = (layer.heads(f"layers.0.self_attn.{map}_proj", mixed) for map in "qkv")
            q, k = layer.turn(q, places), layer.turn(k, places)
            own = [(k, v)] if wrong == "alone" else [*own, (k, v)]
            both = [torch.cat([part, *new], 1) for part, new in zip(held, zip(*own, strict=True), strict=True)]
            output = fused + layer.linear("layers.0.self_attn.o_proj", layer.attend(q, *both))
            x = layer.norm("layers.0.post_attention_layernorm", output)
            gate = functional.silu(layer.linear("layers.0.mlp.gate_proj", x))
            if drafter.head.hidden_act != "silu":
                gate = functional.gelu(layer.linear("layers.0.mlp.gate_proj", x), approximate="tanh")
            inner = gate * layer.linear("layers.0.mlp.up_proj", x)
            state = layer.norm("norm", output + layer.linear("layers.0.mlp.down_proj", inner))[0]
            guesses.append(target.family.head(state[None])[0])
    return guesses


@pytest.mark.parametrize("name", NAMES)
def test_unrolled_guesses_follow_the_formulas(name):
    drafter, lesson = drafter_of(name), lesson_of(name)
    guesses = guesses_of(drafter, lesson, 4)
    assert len(guesses) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(4))
    for row, root in ((0, 0), (0, 5), (2, 3), (3, 6)):
        steps = min(4, ANSWERS[row] - 1 - root)
        for step, logits in enumerate(expected(name, drafter, row, root, steps)):
            assert error(guesses[row, root, step], logits) < TOLERANCE


@pytest.mark.parametrize("wrong", ["late", "alone", "place", "true"])
def test_the_yardstick_tells_mistakes_apart(wrong):
    guesses = guesses_of(drafter_of("qwen_vl"), lesson_of("qwen_vl"), 3)
    mistaken = expected("qwen_vl", drafter_of("qwen_vl"), 0, 2, 3, wrong)
    assert max(error(guesses[0, 2, step], logits) for step, logits in enumerate(mistaken)) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "view"),
    [(name, view) for name in NAMES for view in COMPRESSORS if view == "all" or name in ("llava", "qwen_vl")],
)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, view, width):
    """At every root and step, in a ragged batch with two pictures in a row and none in another."""
    assert guesses_compared(drafter_of(name, view), lesson_of(name), name, width) > 25


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_one_pass_over_a_round_is_the_same_mask_over_true_states(name):
    """With the draws of `teaching="rounds"`, a guess is what a chain with true states would say at that step."""
    drafter, lesson, seen = made(name, teaching="rounds").train(), lesson_of(name), 0
    torch.manual_seed(5)
    for step, guess in enumerate(drafter.unroll(lesson, 3)):
        for place, root, logits in zip(guess.places.tolist(), guess.roots.tolist(), guess.logits, strict=True):
            row, begun = divmod(root, lesson.root_slots.shape[1])
            assert place == sum(ANSWERS[:row]) + begun + step + 1
            if step and seen < 12:
                assert error(logits, expected(name, drafter, row, begun, step + 1, "true")[-1]) < TOLERANCE
                seen += 1
    assert seen == 12
    with torch.no_grad():  # validation is about how it drafts
        assert guesses_of(drafter, lesson, 2).keys() == guesses_of(made(name), lesson, 2).keys()


# Drafting.


def test_the_cache_holds_what_the_target_holds_projected_and_nothing_of_the_draft():
    """After rounds that accepted nothing, one token and several, and rounds without the target."""
    drafter = drafter_of("qwen_vl")
    script = Script(drafter, inputs_of("qwen_vl"), lesson_of("qwen_vl").answers, Told(2, 3))
    for accepted, settled in (([0, 1, 3, 2], False), ([1, 0, 0, 1], True), ([1, 0, 2, 0], False), ([0] * 4, False)):
        script.round(accepted, settled)
    session, context = script.session, script.context
    with torch.inference_mode():
        session.expand_root(torch.tensor([history[-1] for history in context.history]))
        keys, values = context.keys_values(2)
        for number, part in ((0, keys), (1, values)):
            wanted = session.projected(*[part.transpose(1, 2).flatten(2)] * 2)[number]
            kept = session.session.keys_values(0)[number]
            for row, length in enumerate(context.entries):
                if context.active[row]:
                    assert session.session.entries[row] == length + 1, "the root has a slot of its own"
                    assert error(kept[row, :, :length], wanted[row, :, :length]) < 1e-6


def test_the_text_is_the_targets_with_pictures_without_and_interleaved():
    for name in ("llava", "qwen_vl"):
        expect_plain_texts(drafter_of(name), name, (DynamicTree(4, 3, 12), Chain(3), Chain(4)))


def test_under_guidance_it_reads_what_is_held_of_its_own_prompts():
    """The other prompts are longer, and so are their rows of the target's cache."""
    drafter, options = drafter_of("llama"), {"guidance_scale": 1.5, "max_new_tokens": 12}
    options |= {"inputs": models.inputs_for("llama", [0, 0], [5, 9])}
    options |= {"negative_prompt": models.inputs_for("llama", [0, 0], [14, 11], 5)}
    plain, drafted = (mmspec.generate(drafter.target, one, **options) for one in (None, drafter))
    assert plain.token_ids == drafted.token_ids


def test_it_goes_on_behind_tokens_that_the_target_has_not_read():
    expect_own_behind_gates(drafter_of("llava"), "llava", Chain(3))


def test_axes_of_the_target_are_taken_over():
    assert drafter_of("qwen_vl").axes is not None and drafter_of("llava").axes is None
    other = made("qwen_vl", head={"head_dim": 4})  # its axes do not fill such heads
    assert other.axes is None
    inputs, text = case("qwen_vl", "sdpa", *RAGGED, 8)
    assert mmspec.generate(other.target, other, inputs=inputs, max_new_tokens=8).token_ids == text
    assert guesses_compared(other, lesson_of("qwen_vl"), "qwen_vl", 1) > 25


# Training.


@pytest.mark.parametrize("teaching", ["chains", "rounds"])
def test_every_weight_is_trained_by_the_recipe(teaching):
    _, losses = trained_by_recipe(["recipe=aasd", f"recipe.drafter.teaching={teaching}"], 8)
    assert losses[-1] < 0.95 * losses[0]


def test_a_round_knows_nothing_of_what_comes_later():
    """No gradient reaches states behind the root, of the last layer or of the one whose keys are read."""
    drafter, lesson = made("llava"), lesson_of("llava")
    features = {n: states.clone().requires_grad_() for n, states in lesson.features.items()}
    *_, last = drafter.unroll(replace(lesson, features=features), 3)
    last.logits[last.roots == 2].square().sum().backward()
    root = lesson.prompt.lengths[0] + 2
    seen = features[-1].grad.any(-1)
    assert seen[0, root - 1] and seen.sum() == 1, "of the last states one is read, before the root"


def test_it_is_loaded_as_it_was_saved(tmp_path):
    expect_loaded_as_saved(made("llava", "pool"), tmp_path)
