"""DREAM: the mistake of its release, its gates, what it learns. What it shares with other heads is tested with them."""

from __future__ import annotations

import models
import pytest
import torch
from dreams import guided, reference_at
from full_recompute import paths_of
from heads import TOLERANCE, build, drafter_of, error, guesses_of, inputs_of, lesson_of, open_gates
from scripted_rounds import Script, Told
from tiny_requests import RAGGED, case, target_of
from torch.nn import functional

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import DreamDrafter, dream
from mmspec.models.states import LAST
from mmspec.settings import configuration
from mmspec.training.losses import SmoothL1Intermediate, truth_at


def worst_at(name: str, drafter, row: int, root: int, builder, tree, tree_row: int) -> tuple[float, int]:
    """The largest error at any node that a row's tree expanded, and their number; its levels are full, of width 2."""
    worst, nodes = 0.0, 0
    for path in paths_of(tree, tree_row):
        chain = tree.tokens[tree_row, path[1:-1]].tolist()
        for level, logits in enumerate(reference_at(name, drafter, row, root, chain)):
            worst = max(worst, error(builder.logits[level][tree_row, path[level] - 2**level + 1], logits))
            nodes += 1
    return worst, nodes


def test_without_the_tree_mask_nodes_would_remember_their_siblings(monkeypatch):
    """The release has none in its cross-attention. In the first round of one row only other branches are not masked."""
    drafter, row = drafter_of("llava", "dream"), 0
    made, attend, keys_values = [], dream.attend, drafter.layers[1].keys_values

    def remembering(states):
        made.append(1)  # the memory's entries are the last ones made before its attention
        return keys_values(states)

    def careless(queries, keys, values, mask):
        memory = bool(made)
        made.clear()
        return attend(queries, keys, values, None if memory else mask)

    for masked in (True, False):
        if not masked:
            monkeypatch.setattr(drafter.layers[1], "keys_values", remembering)
            monkeypatch.setattr(dream, "attend", careless)
        script = Script(drafter, models.one_row(inputs_of("llava"), row), [lesson_of("llava").answers[row]], Told(2, 3))
        worst, nodes = worst_at("llava", drafter, row, 0, *script.round([0]), 0)
        assert nodes > 10 and (worst < TOLERANCE) == masked


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_inside_generate_it_finds_the_pictures_and_their_positions(name):
    drafter = guided(name)
    inputs, expected = case(name, "sdpa", *RAGGED, 12)
    options = {"max_new_tokens": 12, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    assert drafter.target.model.generate(**inputs, **options)[:, -12:].tolist() == expected


@pytest.mark.parametrize("name", ["llava", "llama"])
def test_with_closed_gates_it_is_the_ablation(name):
    target = target_of(name, "sdpa")
    drafter, ablation = build(target, "dream"), build(target, "dream, without memory")
    missing = ablation.load_state_dict(drafter.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("layers.1.") for key in missing.unexpected_keys)
    lesson = lesson_of(name)
    wanted = guesses_of(ablation, lesson, 3)
    assert max(error(logits, wanted[key]) for key, logits in guesses_of(drafter, lesson, 3).items()) > 0.1
    closed = guesses_of(open_gates(drafter, 0.0), lesson, 3)
    assert closed.keys() == wanted.keys()
    assert all(error(logits, wanted[key]) < TOLERANCE for key, logits in closed.items())


def test_a_new_one_begins_with_closed_gates():
    weights = DreamDrafter(target_of("llava", "sdpa")).state_dict()
    assert [weights[f"layers.1.cross_attn_{gate}_gate"].tolist() for gate in ("attn", "mlp")] == [[0.0], [0.0]]


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
