"""DREAM's weights: what they are called, how they learn, and how they are kept."""

from __future__ import annotations

import pytest
import torch
from dreams import VARIANTS, build, drafter_of, guided, open_gates
from heads import TOLERANCE, error, guesses_of, lesson_of
from tiny_requests import target_of
from torch.nn import functional

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import DreamDrafter
from mmspec.models.states import LAST
from mmspec.settings import configuration
from mmspec.training.losses import SmoothL1Intermediate, truth_at


@pytest.mark.parametrize("name", ["llava", "llama"])
def test_with_closed_gates_it_is_the_ablation(name):
    drafter, ablation = build(name, "dream"), build(name, "without memory")
    missing = ablation.load_state_dict(drafter.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("layers.1.") for key in missing.unexpected_keys)
    lesson = lesson_of(name)
    wanted = guesses_of(ablation, lesson, 3)
    assert max(error(logits, wanted[key]) for key, logits in guesses_of(drafter, lesson, 3).items()) > 0.1
    closed = guesses_of(open_gates(drafter, 0.0), lesson, 3)
    assert closed.keys() == wanted.keys()
    assert all(error(logits, wanted[key]) < TOLERANCE for key, logits in closed.items())


def test_a_new_one_begins_with_closed_gates_and_the_published_names():
    drafter = DreamDrafter(target_of("llava", "sdpa"))
    weights = drafter.state_dict()
    llama = [f"self_attn.{part}_proj.weight" for part in "qkvo"] + ["post_attention_layernorm.weight"]
    llama += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    cross = [f"cross_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    cross += ["cross_attn_attn_gate", "cross_attn_mlp_gate", *llama[4:], "input_layernorm.weight"]
    names = [f"layers.{layer}.{name}" for layer, part in ((0, llama), (1, cross), (2, llama)) for name in part]
    assert set(weights) == {*names, "layers.2.input_layernorm.weight", "norm.weight"}
    for gate in ("attn", "mlp"):
        assert weights[f"layers.1.cross_attn_{gate}_gate"].tolist() == [0.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(variant):
    drafter = build("llava", variant)
    sum(guess.logits.logsumexp(-1).sum() for guess in drafter.unroll(lesson_of("llava"), 3)).backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("detach", [False, True])
def test_a_step_teaches_earlier_ones_unless_detached(detach):
    drafter, lesson = build("llama", "dream"), lesson_of("llama")
    outputs, norm = [], drafter.norm.forward

    def recording(hidden):
        outputs.append(norm(hidden))
        outputs[-1].retain_grad()
        return outputs[-1]

    drafter.norm.forward = recording
    list(drafter.unroll(lesson, 3, detach))[2].logits.square().sum().backward()
    reached = [output.grad is not None and bool(output.grad.any()) for output in outputs]
    assert reached == [not detach, not detach, True]


def test_what_it_guesses_is_what_the_losses_compare():
    """The last output goes into the head; the first layer's is compared with an intermediate state."""
    drafter, lesson = drafter_of("llava", "dream"), lesson_of("llava")
    guess = next(drafter.unroll(lesson))
    assert error(lesson.target.family.head(guess.features), guess.logits) < TOLERANCE
    truth = truth_at(lesson, guess.places, None)
    loss = SmoothL1Intermediate(2)
    wanted = functional.smooth_l1_loss(guess.intermediate, lesson.states(2)[guess.places], reduction="none").mean(-1)
    assert loss(guess, truth).equal(wanted) and loss.feature_layers == (2,) and loss.name == "SmoothL1Intermediate"
    with pytest.raises(MMSpecError, match="SmoothL1Intermediate: this drafter guesses no intermediate"):
        loss(guess._replace(intermediate=None), truth)


def test_a_few_steps_of_the_recipe_reduce_its_loss():
    recipe = configuration.compose("train", ["recipe=dream", "recipe.intermediate_layer=2"]).recipe
    target, lesson = target_of("llava", "sdpa"), lesson_of("llava")
    torch.manual_seed(0)
    drafter, objective = configuration.build(recipe.drafter, target=target), configuration.build(recipe.objective)
    assert set(drafter.feature_layers) == {LAST, 2} and set(objective.feature_layers) == {LAST, 2}
    assert [loss.weight for loss in objective.losses] == [1.0, 0.2, 0.2]
    optimizer = configuration.build(recipe.optimizer, params=drafter.parameters())
    losses = []
    for _ in range(40):
        loss, _ = objective(drafter, lesson)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert drafter.layers[1].cross_attn_attn_gate.abs() > 1e-3, "the gate opens"


@pytest.mark.parametrize("variant", ["dream, other", "without memory", "guided"])
def test_what_is_saved_is_loaded(variant, tmp_path):
    drafter = guided("llava") if variant == "guided" else drafter_of("llava", variant)
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert isinstance(loaded, DreamDrafter) and loaded.config() == drafter.config()
    lesson = lesson_of("llava")
    ours, theirs = guesses_of(drafter, lesson, 2), guesses_of(loaded, lesson, 2)
    assert ours.keys() == theirs.keys() and all(error(theirs[key], ours[key]) < 1e-6 for key in ours)


def test_a_head_of_another_width_is_refused():
    with pytest.raises(MMSpecError, match="hidden size of this DreamDrafter is 16 but the target's is 32"):
        DreamDrafter(target_of("llava", "sdpa"), head={"hidden_size": 16})
