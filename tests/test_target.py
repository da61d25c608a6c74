"""Target passes against full recomputes without a cache: logits and features of trees, over rounds of ragged rows."""

from __future__ import annotations

import models
import pytest
import torch
import transformers
from full_recompute import accept, paths_of, random_tree, recompute, start, tree_error
from refusals import refused
from tiny_requests import BACK_ENDS, pictures_for, ragged_inputs, target_of

from mmspec.errors import MMSpecError
from mmspec.inputs import prepare
from mmspec.models.states import LAST
from mmspec.target import Target
from mmspec.tree import DraftTree

TOLERANCE = 1e-4
# Feature layer to the index in transformers' `hidden_states`, for the three layers of the tiny models.
FEATURES = {0: 0, 1: 1, 2: 2, LAST: 3}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_random_trees_equal_a_recompute_over_rounds(name, attention, seed):
    """Every round the rows accept other paths of other lengths, some of them nothing but the root."""
    generator = torch.Generator().manual_seed(seed)
    inputs = ragged_inputs(name, seed)
    context = start(target_of(name, attention), inputs)
    for nodes in (6, 1, 9, 4):
        tree = random_tree(context, nodes, generator)
        assert tree_error(context, inputs, tree, context.score(tree)) < TOLERANCE
        ends = torch.randint(0, nodes, (4,), generator=generator).tolist()
        bonus = torch.randint(1, 50, (4,), generator=generator).tolist()
        emitted = accept(context, tree, ends, bonus)
        assert [row[-1] for row in emitted] == bonus
        assert context.lengths.tolist() == [len(history) - 1 for history in context.history]


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_after_a_path_through_a_non_first_child_the_next_step_equals_a_recompute(name, attention):
    inputs = models.inputs_for(name, pictures_for(name, [1]), [11])
    context = start(target_of(name, attention), inputs)
    root = context.history[0][-1]
    tree = DraftTree(torch.tensor([[root, 7, 8, 9, 10, 11]]), torch.tensor([[-1, 0, 0, 0, 2, 2]]), max_depth=2)
    context.score(tree)
    assert accept(context, tree, [5], [12]) == [[8, 11, 12]]
    for _ in range(2):
        step = DraftTree.root_only(torch.tensor([context.history[0][-1]]))
        assert tree_error(context, inputs, step, context.score(step)) < TOLERANCE
        accept(context, step, [0], [13])


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_features_equal_the_hidden_states_of_a_recompute(name, attention):
    """A layer's number stands for the state that enters it, LAST for the state after the final norm."""
    generator = torch.Generator().manual_seed(0)
    inputs = ragged_inputs(name)
    context = start(target_of(name, attention), inputs, feature_layers=tuple(FEATURES))
    for row in range(4):
        single = models.one_row(inputs, row)
        states = recompute(context.target.model, single, [[]], output_hidden_states=True).hidden_states
        for layer, index in FEATURES.items():
            ours = context.features[layer][row, : single["input_ids"].shape[1]]
            assert (ours - states[index][0]).abs().max() < TOLERANCE, (row, layer)
    for _ in range(2):
        tree = random_tree(context, 5, generator)
        scores = context.score(tree)
        assert set(scores.features) == set(FEATURES)
        assert tree_error(context, inputs, tree, scores, FEATURES) < TOLERANCE
        accept(context, tree, [4, 0, 2, 3], [5, 6, 7, 8])


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_padding_on_either_side_or_none_makes_no_difference(name, attention):
    target = target_of(name, attention)
    left = ragged_inputs(name)
    order = left["attention_mask"].argsort(dim=1, descending=True, stable=True)
    right = {key: v.gather(1, order) if v.shape == order.shape else v for key, v in left.items()}
    assert not torch.equal(left["input_ids"], right["input_ids"])
    contexts = [start(target, inputs) for inputs in (left, right)]
    alone = [start(target, models.one_row(left, row)) for row in range(4)]
    for context in contexts:
        for row, single in enumerate(alone):
            assert context.history[row] == single.history[0]
            assert (context.logits[row] - single.logits[0]).abs().max() < TOLERANCE
    bare = recompute(target.model, models.one_row(left, 2), [[]]).logits[0, -1]
    assert (contexts[0].logits[2] - bare).abs().max() < TOLERANCE


def test_a_request_leaves_the_position_state_of_the_model_alone():
    target, inputs = target_of("qwen_vl", "sdpa"), models.inputs_for("qwen_vl", [2])
    target.model.model.rope_deltas = theirs = torch.tensor([[-123]])
    context = start(target, inputs)
    tree = random_tree(context, 3, torch.Generator().manual_seed(0))
    scores = context.score(tree)
    assert target.model.model.rope_deltas is theirs and theirs.item() == -123
    assert tree_error(context, inputs, tree, scores) < TOLERANCE


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_a_cache_that_grows_in_the_middle_of_a_request(name, attention, monkeypatch):
    monkeypatch.setattr("mmspec.models.cache.CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    inputs = ragged_inputs(name)
    context = start(target_of(name, attention), inputs)
    capacities = set()
    for nodes in (5, 2, 7):
        tree = random_tree(context, nodes, generator)
        assert tree_error(context, inputs, tree, context.score(tree)) < TOLERANCE
        accept(context, tree, [nodes - 1, 0, 1, nodes - 1], [5, 6, 7, 8])
        capacities.add(context.cache.capacity)
    assert len(capacities) > 1


@pytest.mark.parametrize("name", models.VISUAL)
def test_another_picture_gives_other_logits_in_its_row_only(name):
    target, inputs = target_of(name, "sdpa"), ragged_inputs(name)
    context = start(target, inputs)
    # The last pictures of the batch belong to row 3.
    other = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    other["pixel_values"][-1] = -other["pixel_values"][-1]
    changed = (start(target, other).logits - context.logits).abs().amax(-1)
    assert changed[3] > 1e-2 and changed[:3].max() < TOLERANCE


def test_rows_that_have_finished_stay_as_they_are():
    target, inputs = target_of("llama", "sdpa"), ragged_inputs("llama")
    context = start(target, inputs)
    context.active = [True, False, True, False]
    before = [list(history) for history in context.history]
    tree = random_tree(context, 5, torch.Generator().manual_seed(0))
    scores = context.score(tree)
    lengths = context.lengths.tolist()
    emitted = accept(context, tree, [4, 4, 4, 4], [9, 9, 9, 9])
    assert [bool(tokens) for tokens in emitted] == context.active
    assert [h == b for h, b in zip(context.history, before, strict=True)] == [False, True, False, True]
    assert [n == old for n, old in zip(context.lengths.tolist(), lengths, strict=True)] == [False, True, False, True]
    assert scores.logits.shape == (4, 5, models.VOCAB)
    step = random_tree(context, 2, torch.Generator().manual_seed(1))
    assert tree_error(context, inputs, step, context.score(step)) < TOLERANCE


def test_the_recompute_walks_every_path():
    """Guards the guard: all nodes of the helper's trees lie on a path that is compared."""
    context = start(target_of("llama", "sdpa"), ragged_inputs("llama"))
    tree = random_tree(context, 9, torch.Generator().manual_seed(3))
    for row in range(4):
        assert {node for path in paths_of(tree, row) for node in path} == set(range(9))
        assert len(paths_of(tree, row)) > 1


# Other plain causal LMs need no family of their own.

OTHERS = {
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "qwen2_mixed_windows": ("Qwen2Config", "Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "deepseek": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
        | {"first_k_dense_replace": 1, "num_key_value_heads": 4, "sliding_window": None},
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_plain_language_models_work_without_a_family(other):
    config, model, settings = OTHERS[other]
    generator = torch.Generator().manual_seed(0)
    inputs = ragged_inputs("llama")
    context = start(Target(models.of_class(config, model, **settings)), inputs)
    for _ in range(2):
        tree = random_tree(context, 6, generator)
        assert tree_error(context, inputs, tree, context.score(tree)) < TOLERANCE
        accept(context, tree, [5, 0, 3, 4], [5, 6, 7, 8])


# Refused at load, with the reason.

LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
RECURRENT = {
    "MambaForCausalLM": ("MambaConfig", {"state_size": 4}),
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", LINEAR),
    "JambaForCausalLM": ("JambaConfig", {"num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4}),
}


@pytest.mark.parametrize("model", RECURRENT)
def test_recurrent_state_is_refused(model):
    config, settings = RECURRENT[model]
    refused(
        lambda: Target(models.of_class(config, model, **settings)),
        f"{model} keeps recurrent state that cannot be rolled back",
    )


def test_linear_attention_layers_are_refused():
    model = models.of_class("MiniMaxConfig", "MiniMaxForCausalLM", num_local_experts=2, num_experts_per_tok=1)
    refused(lambda: Target(model), "'minimax' has layers of type ... cannot be rolled back")


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_attention_without_arbitrary_masks_is_refused(attention):
    model = models.llava()
    # As a model loaded with this back end has it; loading it takes a GPU.
    model.config.get_text_config()._attn_implementation_internal = attention
    refused(lambda: Target(model), f"'{attention}' takes no tree mask; ... 'sdpa' or 'eager' or 'flex")


def test_a_model_without_the_parts_that_are_read_is_refused():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    refused(lambda: Target(model), "GPT2LMHeadModel: its decoder GPT2Model has no `layers` and")


# Bad inputs.


@pytest.mark.parametrize("name", models.VISUAL)
@pytest.mark.parametrize(("placeholders", "given"), [(1, 2), (2, 1), (1, 0), (0, 1)])
def test_pictures_and_placeholders_must_agree(name, placeholders, given):
    inputs = models.inputs_for(name, [placeholders])
    for key in ("pixel_values", "image_grid_thw"):
        inputs.pop(key, None)
    pictures = models.inputs_for(name, [given])
    inputs |= {key: pictures[key] for key in ("pixel_values", "image_grid_thw") if key in pictures}
    target = target_of(name, "sdpa")
    with pytest.raises(MMSpecError, match=r"the prompt has \d+ image placeholder tokens but") as caught:
        target.encode(prepare(target, inputs=inputs))
    assert ("no image was given" in str(caught.value)) == (given == 0)


def test_a_video_is_refused():
    target, inputs = target_of("qwen_vl", "sdpa"), models.inputs_for("qwen_vl", [0])
    inputs["input_ids"][0, 3:5] = models.VIDEO
    refused(lambda: target.encode(prepare(target, inputs=inputs)), "video placeholder tokens")


IDS = torch.ones(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs has no input_ids, only nothing"),
        ({"pixel_values": IDS}, "inputs has no input_ids, only pixel_values"),
        ({"input_ids": None}, "inputs has no input_ids"),
        ({"input_ids": IDS[0]}, "input_ids must be [batch, length], got shape (5,)"),
        ({"input_ids": IDS[None]}, "input_ids must be [batch, length], got shape (1, 2, 5)"),
        ({"input_ids": IDS[:0]}, "at least one token per row"),
        ({"input_ids": IDS[:, :0]}, "at least one token per row, the rows' lengths are [0, 0]"),
        ({"input_ids": IDS, "attention_mask": IDS * torch.tensor([[1], [0]])}, "rows' lengths are [5, 0]"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :4]}, "attention_mask has shape (2, 4) but input_ids (2, 5)"),
        ({"input_ids": IDS, "token_type_ids": IDS[:1]}, "token_type_ids has shape (1, 5) but input_ids"),
        ({"input_ids": IDS, "pixel_values": IDS}, "inputs has pixel_values, which ... LlamaForCausalLM"),
        ({"input_ids": IDS, "input_features": IDS}, "inputs has input_features"),
        ({"input_ids": IDS.repeat(1, 103)}, "515 tokens ... but the model's limit is 512"),
    ],
)
def test_bad_inputs_are_explained(inputs, message):
    refused(lambda: prepare(target_of("llama", "sdpa"), inputs=inputs), message)


def test_lists_are_as_good_as_tensors():
    target = target_of("llama", "sdpa")
    request = prepare(target, inputs={"input_ids": [[0, 5, 6], [7, 8, 9]], "attention_mask": [[0, 1, 1], [1, 1, 1]]})
    assert request.token_ids() == [[5, 6], [7, 8, 9]]


def test_what_is_read_is_one_of_prompt_and_inputs():
    target = target_of("llama", "sdpa")
    for arguments in ({}, {"prompt": "a", "inputs": {"input_ids": IDS}}):
        with pytest.raises(MMSpecError, match="give either prompt="):
            prepare(target, **arguments)
    refused(lambda: prepare(target, images=[object()], inputs={"input_ids": IDS}), "images= goes with prompt=")
    refused(lambda: prepare(target, prompt="hello"), "the target has no processor")
