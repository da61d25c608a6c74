"""`attn_implementation="flex_attention"`: trees as block masks.

On a processor flex attention runs uncompiled (see `mmspec.models.masks.kernels`); the references here do too.
"""

from __future__ import annotations

import copy
from functools import cache

import models
import pytest
import torch
from full_recompute import accept, random_tree, start, tree_error
from refusals import refused
from tiny_requests import RAGGED, case, ragged_inputs, target_of
from torch.nn.attention.flex_attention import BlockMask

import mmspec
from mmspec.drafters import as_drafter
from mmspec.loading import load_target
from mmspec.models.masks import MaskForm, TreeMask
from mmspec.target import Target
from mmspec.trees import DynamicTree

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
FLEX = ["llava", "gemma3", "mistral", "llama"]  # Qwen2.5-VL refuses it
NEW = 8


@cache
def flex(name: str) -> Target:
    """The same weights as the sdpa target's."""
    model = copy.deepcopy(target_of(name, "sdpa").model)
    model.set_attn_implementation("flex_attention")
    return Target(model)


@pytest.fixture(autouse=True)
def uncompiled():
    """transformers' own passes, that ours are compared with, are not compiled either."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("name", FLEX)
def test_random_trees_equal_a_recompute(name):
    """Ragged rows, longer than the windows of gemma3 and mistral, over rounds with different paths."""
    generator = torch.Generator().manual_seed(0)
    inputs = ragged_inputs(name)
    context = start(flex(name), inputs)
    for nodes in (6, 1, 9):
        tree = random_tree(context, nodes, generator)
        assert tree_error(context, inputs, tree, context.score(tree)) < 1e-4
        accept(context, tree, [nodes - 1, 0, nodes // 2, nodes // 3], [5, 6, 7, 8])


@pytest.mark.parametrize(("name", "shape"), [("llava", ((1,), (9,))), *((name, RAGGED) for name in FLEX)])
def test_text_is_that_of_the_other_back_ends(name, shape):
    inputs, expected = case(name, "sdpa", *shape, NEW)
    target = flex(name)
    drafter = as_drafter(target, models.blurred(target.model))
    accepted = 0
    for tree in (None, DynamicTree(3, 3, 8)):
        out = mmspec.generate(target, drafter if tree else None, inputs=inputs, max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected
        accepted += out.stats.num_accepted_draft_tokens
    assert accepted


def test_a_wrong_mask_is_seen(monkeypatch):
    """The block mask is what counts: without the tree in it, logits are wrong."""
    build = TreeMask.build
    monkeypatch.setattr(TreeMask, "build", lambda self, seen, *rest: build(self, torch.ones_like(seen).tril(), *rest))
    inputs = models.inputs_for("llama", [0], [9])
    context = start(flex("llama"), inputs)
    tree = random_tree(context, 6, torch.Generator().manual_seed(0))
    assert tree_error(context, inputs, tree, context.score(tree)) > 1e-2


def test_hybrid_models_get_a_block_mask_for_every_kind_of_attention():
    context = start(flex("gemma3"), models.inputs_for("gemma3", [1], [20]))
    tree = random_tree(context, 4, torch.Generator().manual_seed(0))
    opened = context.block(tree.ancestors, tree.depth)
    masks = opened.__enter__()
    assert set(masks) == {"full_attention", "sliding_attention"}
    slots = context.cache.slots_in_use
    assert all(isinstance(mask, BlockMask) and mask.seq_lengths == (4, slots) for mask in masks.values())
    twin = TreeMask(context.cache, flex("gemma3").windows, MaskForm.BOOLEAN, torch.float32)
    for name, mask in twin.build(tree.ancestors, tree.depth).items():
        asked = torch.meshgrid(torch.arange(4), torch.arange(slots), indexing="ij")
        assert masks[name].mask_mod(torch.tensor(0), torch.tensor(0), *asked).equal(mask[0, 0])


def test_a_single_token_gets_a_block_mask_too():
    """transformers would make one of its own, and compile it anew for every length."""
    context = start(flex("llama"), models.inputs_for("llama", [0], [9]))
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    assert isinstance(context.block(one, torch.zeros(1, 1, dtype=torch.long), True).__enter__(), BlockMask)


def test_a_processor_compiles_nothing():
    """Whatever the stance outside: vision, prompt and trees."""
    stances, target = [], flex("llava")
    parts = (target.model.model.multi_modal_projector, target.family.layers[0])
    note = lambda *_: stances.append(torch._dynamo.eval_frame._stance.stance)  # noqa: E731
    hooks = [part.register_forward_pre_hook(note) for part in parts]
    with torch.compiler.set_stance("default"):
        inputs = models.inputs_for("llava", [1])
        mmspec.generate(target, inputs=inputs, max_new_tokens=2)
        assert torch._dynamo.eval_frame._stance.stance == "default"
    for hook in hooks:
        hook.remove()
    assert stances == ["force_eager"] * 3


def test_a_model_that_flex_attention_does_not_know_is_refused(tmp_path):
    models.qwen_vl().save_pretrained(tmp_path)
    refused(
        lambda: load_target(tmp_path, attn_implementation="flex_attention", device="cpu"), "Qwen2_5_VLForConditiona"
    )


def test_attention_sinks_are_refused_on_a_processor():
    model = models.of_class(
        "GptOssConfig", "GptOssForCausalLM", "flex_attention", num_local_experts=2, num_experts_per_tok=1
    )
    refused(lambda: Target(model), "GptOssForCausalLM does not run with 'flex_attention'")


def test_compiling_as_a_whole_is_refused():
    refused(lambda: Target(flex("llama").model, compile=True), "compile=true takes masks that are tensors, and flex")
