"""Medusa: its heads against their formula, its trees, its training, its files."""

from __future__ import annotations

import json

import heads
import models
import pytest
import torch
from full_recompute import recompute
from safetensors.torch import load_file, save_file
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import MedusaDrafter
from mmspec.formats.convert import convert
from mmspec.models.states import LAST
from mmspec.settings import configuration
from mmspec.speed import AutoTree
from mmspec.training import Objective
from mmspec.training.losses import CrossEntropy
from mmspec.trees import BestFirstTree, Chain, ConfidenceTree, DynamicTree, SageTree, StaticTree, TreeBuilder

FAMILIES = ("llava", "qwen_vl", "llama")
NEW = 14
DEEP = {
    "chain": Chain(9),
    "static": StaticTree(["0", "1", "00", "10", "000", "0000", "0001", "00000"]),
    "released": StaticTree("medusa"),
    "dynamic": DynamicTree(depth=6, top_k=3, total=18),
    "best first": BestFirstTree(14, top_k=2),
    "confidence": ConfidenceTree(depth=6),
    "sage": SageTree(min_depth=6, max_depth=8),
}


def medusa(name: str, count: int = 3, layers: int = 2) -> MedusaDrafter:
    return models.redraw(MedusaDrafter(target_of(name, "sdpa"), heads=count, layers=layers), seed=6).eval()


def formula(weights: dict[str, torch.Tensor], head: int, state: torch.Tensor) -> torch.Tensor:
    """Logits of a head at `[hidden]`, number by number from the paper's equation 1."""
    block = 0
    while (name := f"medusa_head.{head}.{block}.linear") + ".weight" in weights:
        inner = weights[f"{name}.weight"] @ state + weights[f"{name}.bias"]
        state = state + inner / (1 + torch.exp(-inner))
        block += 1
    return weights[f"medusa_head.{head}.{block}.weight"] @ state


@pytest.mark.parametrize("name", FAMILIES)
def test_what_it_is_trained_on_is_the_formula(name):
    drafter, lesson = medusa(name), heads.lesson_of(name)
    weights, guesses = dict(drafter.state_dict()), heads.guesses_of(drafter, lesson, 9)
    assert {step for *_, step in guesses} == {0, 1, 2}, "a step a head"
    expected = {
        (row, root, step)
        for row, answer in enumerate(lesson.answers)
        for step in range(3)
        for root in range(len(answer) - 1 - step)
    }
    assert guesses.keys() == expected
    for (row, root, step), logits in guesses.items():
        state = heads.full_pass(name, row)[0][LAST][lesson.prompt.lengths[row] - 1 + root]
        assert heads.error(logits, formula(weights, step, state)) < heads.TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_what_it_drafts_is_the_formula_at_the_token_before_the_root(name, monkeypatch):
    drafter = medusa(name)
    drafts = record_drafts(monkeypatch, MedusaDrafter)
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(3))
    assert out.token_ids == expected and len(drafts) > 3
    weights = dict(drafter.state_dict())
    for row in range(len(expected)):
        single = models.one_row(inputs, row)
        prompt = single["input_ids"].shape[1]
        for draft in drafts:
            if not draft.active[row]:
                continue
            emitted = draft.history[row][prompt:]
            full = recompute(drafter.target.model, single, [emitted[:-1]], output_hidden_states=True)
            state = full.hidden_states[-1][0, prompt + len(emitted) - 2]
            wanted = [formula(weights, head, state).argmax().item() for head in range(3)]
            assert draft.tree.tokens[row].tolist() == [emitted[-1], *wanted]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tree", DEEP)
def test_every_tree_ends_where_the_heads_do(name, tree, monkeypatch):
    drafter = medusa(name)
    drafts = record_drafts(monkeypatch, MedusaDrafter)
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DEEP[tree])
    assert out.token_ids == expected
    assert max(int(draft.tree.validate().depth.max()) for draft in drafts) == 3
    for draft in drafts:  # nodes of a depth have the same distribution, wherever they hang
        for depth in range(1, 4):
            here = (draft.tree.depth[0] == depth) & (
                torch.tensor(True) if draft.tree.valid is None else draft.tree.valid[0]
            )
            pairs = set(zip(draft.tree.tokens[0][here].tolist(), draft.tree.log_probs[0][here].tolist(), strict=True))
            assert len(pairs) == len({token for token, _ in pairs})


def test_the_tree_that_adapts_ends_there_too():
    drafter = medusa("llava")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    tree = AutoTree(limit=8)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected
    assert max(record.depth for record in out.stats.rounds) <= 3


def test_a_builder_that_goes_deeper_is_told_so():
    class Blind(TreeBuilder):
        def build(self, growth):
            nodes = growth.root
            for _ in range(4):
                nodes = growth.expand(nodes, 1)
            return growth.keep_all()

    inputs, _ = case("llama", "sdpa", *RAGGED, NEW)
    drafter = medusa("llama")
    with pytest.raises(MMSpecError, match="MedusaDrafter drafts 3 levels, but the tree asks for level 4"):
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Blind())


def test_a_builder_may_expand_a_level_in_several_goes():
    class Twice(TreeBuilder):
        def build(self, growth):
            first, second = growth.expand(growth.root, 2).split(1, dim=1)
            below = growth.expand(first, 1)
            growth.expand(second, 1)
            growth.expand(below, 1)
            return growth.keep_all()

    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    drafter = medusa("llama")
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Twice())
    assert out.token_ids == expected


def test_the_marginals_are_what_every_node_is_expanded_with():
    class Compared(TreeBuilder):
        def build(self, growth):
            nodes, levels = growth.expand(growth.root, 2), [growth.logits]
            for _ in range(2):
                nodes = growth.expand(nodes, 1)
                levels.append(growth.logits)
            marginals = growth.drafter.marginals(3)
            for depth, logits in enumerate(levels):
                assert logits.equal(marginals[:, depth, None].expand_as(logits))
            assert growth.drafter.marginals(2).equal(marginals[:, :2]) and growth.drafter.confidence() is None
            return growth.keep_all()

    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    drafter = medusa("llama")
    assert drafter.independent and drafter.cheap_levels
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Compared())
    assert out.token_ids == expected


def test_it_begins_as_the_targets_own_head():
    lesson = heads.lesson_of("llava")
    drafter = MedusaDrafter(lesson.target, heads=2, layers=3)
    heads.expect_the_targets_own_head(drafter, lesson, 2)


def test_the_recipe_is_the_papers_and_training_lowers_its_loss():
    recipe = configuration.compose("train", ["recipe=medusa"]).recipe
    objective = configuration.build(recipe.objective)
    lesson = heads.lesson_of("llava")
    drafter = configuration.build(recipe.drafter, target=lesson.target)
    ours, _ = objective(drafter, lesson)
    wanted = 0.0
    for (row, root, step), logits in heads.guesses_of(drafter, lesson, 5).items():
        token = lesson.answers[row][root + 1 + step]
        wanted += 0.8 ** (step + 1) * -logits.log_softmax(-1)[token].item()
    assert ours.item() == pytest.approx(wanted, rel=1e-5)

    before = {name: weight.clone() for name, weight in drafter.named_parameters()}
    lesson.target.model.zero_grad()  # the target is shared with other tests
    optimizer = configuration.build(recipe.optimizer, params=drafter.trainable_parameters())
    losses = []
    for _ in range(12):
        loss, _ = objective(drafter, lesson)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0] and losses == sorted(losses, reverse=True)
    assert not any(weight.equal(before[name]) for name, weight in drafter.named_parameters()), "all of it learns"
    assert not any(parameter.grad is not None for parameter in lesson.target.model.parameters())


def test_fewer_steps_than_heads_train_the_first_heads():
    lesson, drafter = heads.lesson_of("llama"), medusa("llama")
    loss, _ = Objective([CrossEntropy()], steps=2)(drafter, lesson)
    loss.backward()
    trained = [any(p.grad is not None for p in head.parameters()) for head in drafter.medusa_head]
    assert trained == [True, True, False]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    drafter = medusa("qwen_vl")
    drafter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["heads"], config["layers"]) == (3, 2)
    keys = {f"medusa_head.{i}.{j}.linear.{part}" for i in range(3) for j in range(2) for part in ("weight", "bias")}
    assert load_file(tmp_path / "model.safetensors").keys() == keys | {f"medusa_head.{i}.2.weight" for i in range(3)}
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    ours, theirs = (heads.guesses_of(one, heads.lesson_of("qwen_vl"), 3) for one in (drafter, loaded))
    assert all(theirs[key].equal(logits) for key, logits in ours.items())


def publish(folder, weights: dict, **config) -> None:
    """A checkpoint as the release writes one, but for the pickle."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"base_model_name_or_path": "owner/target", **config}))
    save_file(weights, folder / "model.safetensors")


def published(prefix: str = "", count: int = 2, layers: int = 1, vocab: int = models.VOCAB) -> dict:
    """Keys and shapes written down from the release's classes, with random numbers."""
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for head in range(count):
        for block in range(layers):
            weights[f"{prefix}{head}.{block}.linear.weight"] = torch.randn(32, 32, generator=generator) / 6
            weights[f"{prefix}{head}.{block}.linear.bias"] = torch.randn(32, generator=generator)
        weights[f"{prefix}{head}.{layers}.weight"] = torch.randn(vocab, 32, generator=generator)
    return weights


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_published_checkpoint_is_loaded_whatever_its_config_counts(prefix, layers, tmp_path):
    weights = published(prefix, layers=layers)
    publish(tmp_path, weights, medusa_num_heads=5, medusa_num_layers=7)
    target, lesson = target_of("llava", "sdpa"), heads.lesson_of("llava")
    drafter = mmspec.load_drafter(str(tmp_path), target)
    assert (
        type(drafter) is MedusaDrafter and drafter.config() == {"heads": 2, "layers": layers} and not drafter.training
    )
    named = {f"medusa_head.{key.removeprefix('medusa_head.')}": tensor for key, tensor in weights.items()}
    for (row, root, step), logits in heads.guesses_of(drafter, lesson, 5).items():
        state = heads.full_pass("llava", row)[0][LAST][lesson.prompt.lengths[row] - 1 + root]
        assert heads.error(logits, formula(named, step, state)) < heads.TOLERANCE
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected


def test_published_checkpoints_that_do_not_fit_are_refused(tmp_path):
    target, whole = target_of("llava", "sdpa"), published()
    for weights, message in (
        ({key: value for key, value in whole.items() if key != "1.1.weight"}, r"missing keys \['1.1.weight'\]"),
        ({key: value for key, value in whole.items() if key != "0.0.linear.bias"}, r"\['0.0.linear.bias'\]"),
        (published(vocab=models.VOCAB + 30), r"0.1.weight has shape \[91, 32\], but the target asks for \[61, 32\]"),
        (whole | {"medusa_head.0.1.weight": whole["0.1.weight"] + 1}, "unexpected keys"),
    ):
        publish(tmp_path, weights)
        with pytest.raises(MMSpecError, match=message):
            mmspec.load_drafter(str(tmp_path), target)
    publish(tmp_path, {"fc.weight": torch.zeros(1)})
    with pytest.raises(MMSpecError, match="holds no heads of Medusa"):
        mmspec.load_drafter(str(tmp_path), target, format="medusa")
    (tmp_path / "model.safetensors").unlink()
    torch.save(whole, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(MMSpecError, match="python -m mmspec.formats.convert"):
        mmspec.load_drafter(str(tmp_path), target)
    convert(tmp_path)
    assert mmspec.load_drafter(str(tmp_path), target).max_depth == 2
    (tmp_path / "model.safetensors").rename(tmp_path / "medusa_lm_head.safetensors")  # as the release's training does
    assert mmspec.load_drafter(str(tmp_path), target).max_depth == 2


@pytest.mark.parametrize("settings", [{"heads": 0}, {"layers": 0}, {"heads": 2.0}])
def test_numbers_that_make_no_heads_are_refused(settings):
    with pytest.raises(MMSpecError, match=f"MedusaDrafter: {next(iter(settings))}="):
        MedusaDrafter(target_of("llama", "sdpa"), **settings)
