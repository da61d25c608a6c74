"""V5e-0: its heads against their formula, its trees, its factors, its training, its files."""

from __future__ import annotations

import json

import heads
import models
import pytest
import torch
from full_recompute import recompute
from safetensors.torch import load_file
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import V5e0Drafter
from mmspec.models.states import LAST
from mmspec.settings import configuration
from mmspec.trees import Chain, DynamicTree, StaticTree, TreeBuilder

FAMILIES = ("llava", "qwen_vl", "gemma3", "llama")
NEW = 14


def v5e0(name: str, count: int = 3) -> V5e0Drafter:
    drafter = V5e0Drafter(target_of(name, "sdpa"), heads=count, alpha=2.0, beta=-3.0)
    return models.redraw(drafter, seed=6).eval()


def formula(drafter: V5e0Drafter, state: torch.Tensor, root: int, above: list[int]) -> torch.Tensor:
    """Logits below a root, its state being `[hidden]`, after some drafted tokens; number by number."""
    model, weights = drafter.target.model, drafter.state_dict()
    embed = model.get_input_embeddings()
    total = state + 2.0 * embed(torch.tensor(root)) - 3.0 * sum(embed(torch.tensor(token)) for token in above)
    z = weights[f"heads.{len(above)}.weight"] @ total + weights[f"heads.{len(above)}.bias"]
    return drafter.target.family.head(z)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_it_is_trained_on_is_the_formula(name):
    drafter, lesson = v5e0(name), heads.lesson_of(name)
    guesses = heads.guesses_of(drafter, lesson, 9)
    assert {step for *_, step in guesses} == {0, 1, 2}, "a step a head"
    assert len(guesses) == sum(max(n - 1 - step, 0) for n in heads.ANSWERS for step in range(3))
    for (row, root, step), logits in guesses.items():
        answer = lesson.answers[row]
        state = heads.full_pass(name, row)[0][LAST][lesson.prompt.lengths[row] - 1 + root]
        expected = formula(drafter, state, answer[root], answer[root + 1 : root + 1 + step])
        assert heads.error(logits, expected) < heads.TOLERANCE


@pytest.mark.parametrize("tree", [Chain(5), StaticTree("v5e0"), DynamicTree(4, 3, 12)], ids=["chain", "native", "wide"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_node_it_drafts_has_the_probability_of_the_formula(name, tree, monkeypatch):
    drafter = v5e0(name)
    drafts = record_drafts(monkeypatch, V5e0Drafter)
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected and len(drafts) > 3
    row, draft = 1, drafts[2]
    single = models.one_row(inputs, row)
    prompt = single["input_ids"].shape[1]
    emitted = draft.history[row][prompt:]
    full = recompute(drafter.target.model, single, [emitted[:-1]], output_hidden_states=True)
    state, grown = full.hidden_states[-1][0, prompt + len(emitted) - 2], draft.tree
    tokens, parents = grown.tokens[row].tolist(), grown.parents[row].tolist()
    paths = {0: []}
    for node in range(1, grown.num_nodes):
        above = paths[parents[node]]
        wanted = formula(drafter, state, tokens[0], above).log_softmax(-1)[tokens[node]]
        paths[node] = [*above, tokens[node]]
        assert grown.log_probs[row, node].item() == pytest.approx(wanted.item(), abs=1e-3)
    assert max(map(len, paths.values())) == (2 if isinstance(tree, StaticTree) else 3)


def test_a_builder_may_mix_depths_and_goes_no_deeper_than_there_are_heads():
    class Mixed(TreeBuilder):
        def build(self, growth):
            first, second = growth.expand(growth.root, 2).split(1, dim=1)
            below = growth.expand(first, 1)
            growth.expand(torch.cat([second, below], dim=1), 1)
            return growth.keep_all()

    class Deep(TreeBuilder):
        def build(self, growth):
            nodes = growth.root
            for _ in range(4):
                nodes = growth.expand(nodes, 1)
            return growth.keep_all()

    drafter = v5e0("llama")
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Mixed())
    assert out.token_ids == expected
    with pytest.raises(MMSpecError, match="V5e0Drafter drafts 3 levels, but the tree asks for level 4"):
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Deep())


@pytest.mark.parametrize("name", FAMILIES)
def test_factors_that_are_left_out_make_embeddings_as_long_as_states(name):
    lesson = heads.lesson_of(name)
    settings = V5e0Drafter(lesson.target).settings
    states = torch.cat([heads.full_pass(name, row)[0][LAST] for row in range(len(lesson.answers))])
    ratio = states.norm(dim=-1).mean() / lesson.target.family.embed(torch.arange(50)[None], None).norm(dim=-1).mean()
    assert settings.alpha == settings.beta == pytest.approx(ratio.item(), rel=0.35)
    assert V5e0Drafter(lesson.target, alpha=30).settings.beta == 30


def test_it_begins_as_the_identity():
    lesson = heads.lesson_of("llava")
    drafter = V5e0Drafter(lesson.target, alpha=0.0, beta=0.0)
    heads.expect_the_targets_own_head(drafter, lesson, 2)


def test_the_recipe_trains_both_maps_and_nothing_else():
    recipe = configuration.compose("train", ["recipe=v5e0"]).recipe
    objective = configuration.build(recipe.objective)
    lesson = heads.lesson_of("llava")
    drafter = configuration.build(recipe.drafter, target=lesson.target)
    assert objective.steps == drafter.max_depth == 2
    ours, _ = objective(drafter, lesson)
    wanted = 0.0
    for (row, root, step), logits in heads.guesses_of(drafter, lesson, 2).items():
        wanted -= logits.log_softmax(-1)[lesson.answers[row][root + 1 + step]].item()
    assert ours.item() == pytest.approx(wanted, rel=1e-5)

    before = {name: weight.clone() for name, weight in drafter.named_parameters()}
    optimizer = configuration.build(recipe.optimizer, params=drafter.trainable_parameters())
    losses = []
    for _ in range(12):
        loss, _ = objective(drafter, lesson)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], losses
    assert not any(weight.equal(before[name]) for name, weight in drafter.named_parameters()), "all of it learns"
    lesson.target.model.zero_grad()  # the target is shared with other tests


def test_what_is_saved_is_what_is_loaded(tmp_path):
    drafter = v5e0("qwen_vl")
    drafter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["heads"], config["alpha"], config["beta"]) == (3, 2.0, -3.0)
    keys = {f"heads.{head}.{part}" for head in range(3) for part in ("weight", "bias")}
    assert load_file(tmp_path / "model.safetensors").keys() == keys
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    ours, theirs = (heads.guesses_of(one, heads.lesson_of("qwen_vl"), 3) for one in (drafter, loaded))
    assert all(theirs[key].equal(logits) for key, logits in ours.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 0}, "V5e0Drafter: heads=0"),
        ({"heads": 2.0}, "V5e0Drafter: heads=2.0"),
        ({"alpha": float("inf")}, "V5e0Drafter: alpha=inf must be a number or None"),
        ({"beta": "large"}, "V5e0Drafter: beta='large' must be a number"),
    ],
)
def test_settings_that_make_no_heads_are_refused(settings, message):
    with pytest.raises(MMSpecError, match=message):
        V5e0Drafter(target_of("llama", "sdpa"), **settings)
