"""What is particular to some families: order within a picture, positions, logits from states, windows."""

from __future__ import annotations

import models
import pytest
import tiny_families
import torch
import transformers
from full_recompute import recompute, start
from refusals import refused
from tiny_requests import RAGGED, case, target_of

from mmspec.drafters import Eagle3Drafter
from mmspec.families import CausalLM, family_of
from mmspec.inputs import prepare
from mmspec.models.states import LAST, capture
from mmspec.target import Target


def pixtral() -> Target:
    """A LLaVA whose pictures differ in size: their tokens come out of the tower in one run."""
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**models.TEXT),
        vision_config=transformers.PixtralVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            head_dim=8,
            image_size=32,
            patch_size=8,
        ),
        image_token_index=models.IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return Target(models.rescale(model, 0))


def pixtral_inputs() -> dict:
    """Two pictures of 2 x 2 and 3 x 1 tokens, with a separator after every row but the last."""
    image, row, end = models.IMAGE, models.VIDEO, models.VISION_END
    ids = [3, 4, *[image, image, row, image, image, end], 5, *[image, row, image, row, image, end], 7, 8]
    pixels = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": pixels,
        "image_sizes": torch.tensor([[16, 16], [24, 8]]),
    }


def qwen_inputs(grids: list[list[int]]) -> dict:
    """One row with pictures of the given sizes."""
    generator = torch.Generator().manual_seed(0)
    ids = [3]
    for _, height, width in grids:
        ids += [models.VISION_START, *[models.IMAGE] * (height * width // 4), models.VISION_END]
    ids = torch.tensor([[*ids, 4, 5]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == models.IMAGE).int(),
        "pixel_values": torch.randn(sum(h * w for _, h, w in grids), 96, generator=generator),
        "image_grid_thw": torch.tensor(grids),
    }


@pytest.mark.parametrize(
    ("name", "setting", "value", "number"),
    [
        ("Llava", "vision_feature_layer", 10**9, 10**9),
        ("Llava", "vision_feature_layer", -4, -4),
        ("VipLlava", "vision_feature_layers", [-1, 3], 3),
    ],
)
def test_states_that_the_tower_has_not(name, setting, value, number):
    def built(value):
        return tiny_families.builder(name, tiny_families.LLAMA, tiny_families.CLIP_VISION, **{setting: value})("sdpa")

    assert built(value).config.vision_config.num_hidden_layers == 2
    said = f"{setting} {number} of its configuration is none of the states of the 2 layers of its tower; set -3 to 2"
    refused(lambda: Target(built(value)), said)
    assert Target(built([-3, 2] if isinstance(value, list) else -3)).family.kinds == {"image"}


def vision_of(target: Target, inputs: dict):
    return target.encode(prepare(target, inputs=inputs))


@torch.no_grad()
def test_pictures_of_different_size_are_cut_apart():
    target, inputs = pixtral(), pixtral_inputs()
    vision = vision_of(target, inputs)
    assert (
        [embeds.shape[0] for embeds in vision.embeds] == [features.shape[0] for features in vision.features] == [4, 3]
    )
    for embeds, features in zip(vision.embeds, vision.features, strict=True):
        assert (target.model.model.multi_modal_projector(features) - embeds).abs().max() < 1e-5
    context = start(target, inputs)
    assert context.visual_spans() == [[(2, 7), (9, 14)]]
    full = recompute(target.model, inputs, [[]]).logits[:, -1]
    assert (context.logits - full).abs().max() < 1e-4


@torch.no_grad()
def test_qwen_windows_are_put_back_into_reading_order():
    """The patches of a token are neighbours in the picture: a change of theirs changes that token's input alone."""
    target, inputs = target_of("qwen_vl", "sdpa"), qwen_inputs([[1, 4, 8], [1, 8, 12]])
    tower = target.model.model.visual
    captured = {}
    # The patch embedding is local, so it shows the order before attention has mixed the patches.
    hooks = [
        layer.register_forward_hook(lambda _, args, output: output * 0 if isinstance(output, torch.Tensor) else output)
        for block in tower.blocks
        for layer in (block.attn, block.mlp)
    ]
    try:
        plain = vision_of(target, inputs).features
        for token in (0, 3, 7):
            changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
            changed["pixel_values"][4 * token : 4 * token + 4] += 1
            captured[token] = vision_of(target, changed).features
    finally:
        for hook in hooks:
            hook.remove()
    for token, features in captured.items():
        assert (features[0] - plain[0]).abs().amax(-1).nonzero().flatten().tolist() == [token]
        assert torch.equal(features[1], plain[1])


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_visual_spans_of_pictures_side_by_side(name):
    """Without a token between them, only the encoded sizes tell where one picture ends."""
    ids = torch.tensor([[3, *[models.IMAGE] * 8, 4]])
    inputs = {"input_ids": ids, "pixel_values": models.inputs_for(name, [2])["pixel_values"]}
    assert start(target_of(name, "sdpa"), inputs).visual_spans() == [[(1, 5), (5, 9)]]


@pytest.mark.parametrize("name", models.VISUAL)
def test_the_prompt_is_read_with_the_pictures_in_place_of_their_placeholders(name):
    target = target_of(name, "sdpa")
    inputs, _ = case(name, "sdpa", *RAGGED, 1)
    context = start(target, inputs)
    ids = context.request.inputs["input_ids"]
    visual = ids == models.IMAGE
    assert torch.equal(context.embeds[visual], torch.cat(context.vision.embeds))
    text = target.model.get_input_embeddings()(ids)
    assert torch.equal(context.embeds[~visual], text[~visual])


@pytest.mark.parametrize("grids", [[[1, 4, 4]], [[1, 8, 12], [1, 4, 8]]])
def test_a_picture_advances_the_position_by_its_longer_side(grids):
    target, inputs = target_of("qwen_vl", "sdpa"), qwen_inputs(grids)
    request = prepare(target, inputs=inputs)
    position_ids, position_offset = target.family.positions(request.inputs)
    saved = sum(height * width // 4 - max(height, width) // 2 for _, height, width in grids)
    assert saved and position_offset.tolist() == [[-saved]] * 3
    assert position_ids[:, 0, -1].tolist() == [request.max_length - 1 - saved] * 3


def test_positions_are_the_same_without_the_processors_token_types():
    target, inputs = target_of("qwen_vl", "sdpa"), case("qwen_vl", "sdpa", *RAGGED, 1)[0]
    bare = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
    results = [target.family.positions(prepare(target, inputs=each).inputs) for each in (inputs, bare)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


HEADS = {
    "cap": ("Gemma2", {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8, "attn_implementation": "eager"}),
    "divided": ("Granite", {"logits_scaling": 8.0}),
    "multiplied": ("Cohere", {"logit_scale": 0.25}),
    "multiplied under Granite's name": ("HyperCLOVAX", {"logits_scaling": 0.3}),
    "bias": ("Llama", {}),
}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "settings"), HEADS.values(), ids=list(HEADS))
def test_logits_from_the_last_state_are_the_models_own(kind, settings):
    config = getattr(transformers, f"{kind}Config")(**models.TEXT, **settings)
    model = models.rescale(getattr(transformers, f"{kind}ForCausalLM")(config).float(), 0)
    if kind == "Llama":
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, models.VOCAB))
    family = Target(model).family
    with capture(family, [LAST]) as features:
        logits = model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]]), use_cache=False).logits
    assert (family.head(features[LAST]) - logits).abs().max() < 1e-5
    some = torch.tensor([3, 50, 7])
    assert (family.head(features[LAST], family.head_rows(some)) - logits[..., some]).abs().max() < 1e-5
    if not settings.get("final_logit_softcapping") and kind != "Llama":  # what EAGLE-3's head begins as
        own = Eagle3Drafter(Target(model), draft_vocab_size=3).lm_head(features[LAST])
        assert (own - logits[..., :3]).abs().max() < 1e-5


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("config", "settings", "windows"),
    [
        ("LlamaConfig", {}, {FULL: None}),
        ("MistralConfig", {"sliding_window": 7}, {SLIDING: 7}),
        ("MistralConfig", {"sliding_window": None}, {FULL: None}),
        ("Qwen2Config", {"sliding_window": 7, "use_sliding_window": False}, {FULL: None}),
        ("Qwen2Config", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0}, {SLIDING: 7}),
        (
            "Qwen2Config",
            {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
            {FULL: None, SLIDING: 7},
        ),
        ("Gemma3TextConfig", {"sliding_window": 7, "layer_types": [SLIDING, SLIDING, FULL]}, {FULL: None, SLIDING: 7}),
    ],
)
def test_windows_are_those_of_the_config(config, settings, windows):
    config = getattr(transformers, config)(**{**models.TEXT, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert isinstance(family_of(model), CausalLM)
    assert family_of(model).attention_windows() == windows


def test_a_kind_of_attention_without_a_mask_form_is_refused():
    model = models.qwen3()
    model.config.layer_types = [FULL, "chunked_attention", FULL]
    refused(lambda: Target(model), "'qwen3' has layers of type chunked_attention")
