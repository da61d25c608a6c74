"""What mmspec takes for granted about transformers, one small test each: a version that changes it fails here first.

Each docstring names what rests on it. `.ci/run` runs this on the oldest supported version as well.
"""

from __future__ import annotations

import inspect

import models
import pytest
import torch
import transformers
from tiny_families import FAMILIES
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from mmspec.compat import CACHE
from mmspec.models.cache_layer import TreeCacheLayer

IDS = torch.tensor([[5, 6, 7, 8]])
# Node 3 sees nodes 0 and 2, not its neighbour 1; 1 and 2 are siblings.
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)[None, None]
PLACES = torch.tensor([[0, 1, 1, 2]])
CLOSE = 1e-4


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def tree_error(model, mask, places=PLACES) -> float:
    """How far the last node's logits are from those of its path alone."""
    path = model(input_ids=IDS[:, [0, 2, 3]]).logits[0, -1]
    return (model(input_ids=IDS, attention_mask=mask, position_ids=places).logits[0, -1] - path).abs().max().item()


# Masks and positions.


def test_a_4d_mask_is_taken_as_it_is():
    """`TreeMask`: nodes see their ancestors and nothing else. sdpa takes booleans, eager adds floats."""
    assert tree_error(models.llama("sdpa"), TREE) < CLOSE
    assert tree_error(models.llama("eager"), additive(TREE)) < CLOSE


def test_a_block_mask_is_taken_as_it_is():
    """`MaskForm.BLOCK`; and `kernels`, which has flex attention run uncompiled by a stance of torch."""
    mask = create_block_mask(lambda row, head, query, slot: TREE[0, 0, query, slot], 1, None, 4, 4, device="cpu")
    with torch.compiler.set_stance("force_eager"):
        assert tree_error(models.llama("flex_attention"), mask) < CLOSE


def test_eager_attention_adds_a_boolean_mask_without_a_word():
    """`MaskForm.ADDITIVE`: if this is ever refused or understood, the form can go."""
    assert tree_error(models.llama("eager"), TREE) > 1e-2


def test_positions_are_taken_as_they_are():
    """Siblings share a position: `Runner.extend`."""
    assert tree_error(models.llama(), TREE, torch.arange(4)[None]) > 1e-2


def test_positions_of_three_axes():
    """Qwen's prompt with pictures has three, and so has its answer; text alone has one that stands for all:
    `Family.positions`, `Runner.extend`."""
    model = models.qwen_vl()
    assert tree_error(model, TREE) < CLOSE
    assert tree_error(model, TREE, PLACES.expand(3, 1, 4)) < CLOSE


def test_hybrid_models_take_a_mask_per_kind_of_attention():
    """`TreeMask.build`: a dictionary by the names in `layer_types`; both masks count."""
    model = models.gemma3()
    assert set(model.config.get_text_config().layer_types) == {"full_attention", "sliding_attention"}
    kinds = dict.fromkeys(("full_attention", "sliding_attention"), TREE)
    assert tree_error(model, kinds) < CLOSE
    for kind in kinds:
        assert tree_error(model, kinds | {kind: torch.ones_like(TREE).tril()}) > 1e-3


def test_windows_have_the_names_that_are_read():
    """`Family.attention_windows`: `sliding_window` of the text config, and `layer_types` where kinds are mixed."""
    assert models.mistral().config.sliding_window == models.WINDOW
    assert models.gemma3().config.get_text_config().sliding_window == models.WINDOW


@pytest.mark.parametrize("name", models.MODELS)
def test_the_head_runs_on_given_columns(name):
    """`Runner.prefill`: `logits_to_keep` takes a tensor of indices."""
    model, inputs = models.MODELS[name](), models.inputs_for(name, [0])
    columns = torch.tensor([2, 5])
    some = model(**inputs, logits_to_keep=columns).logits
    assert (some - model(**inputs).logits[:, columns]).abs().max() < CLOSE


# Caches.


class Recorder(CacheLayerMixin):
    """A layer that keeps what it is asked."""

    is_sliding = False

    def __init__(self):
        super().__init__()
        self.calls, self.is_initialized = [], True

    def lazy_initialization(self, key_states, value_states):
        self.calls.append("lazy")

    def update(self, key_states, value_states, *args, **kwargs):
        self.calls.append(("update", tuple(key_states.shape), tuple(value_states.shape)))
        spare = torch.zeros_like(key_states[:, :, :1])  # more than was written, as in ragged rows
        return torch.cat([key_states, spare], 2), torch.cat([value_states, spare], 2)

    def get_mask_sizes(self, query_length):
        self.calls.append(("sizes", query_length))
        return query_length + 1, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return -1

    def get_max_cache_shape(self):
        return -1


def test_a_cache_layer_is_asked_no_more_than_ours_answers():
    """`TreeCacheLayer`: nothing abstract is left, whatever this version calls it."""
    assert not inspect.isabstract(TreeCacheLayer)
    assert {"update", "get_mask_sizes", "get_seq_length"} <= set(vars(TreeCacheLayer))


def test_attention_layers_call_a_cache_of_ours():
    """`TreeCache`: layers hand `[batch, heads, new, dim]` states to `update` and attend to what it returns, be it more
    than they wrote; masks that the model makes itself follow `get_mask_sizes`."""
    model = models.llama()
    layers = [Recorder() for _ in range(3)]
    mask = torch.nn.functional.pad(TREE, (0, 1))  # nobody sees the surplus
    logits = model(IDS, attention_mask=mask, position_ids=PLACES, **{CACHE: Cache(layers=layers)}).logits
    assert (logits[0, -1] - model(input_ids=IDS[:, [0, 2, 3]]).logits[0, -1]).abs().max() < CLOSE
    updates = [[call for call in layer.calls if call[0] == "update"] for layer in layers]
    assert updates == [[("update", (1, 2, 4, 8), (1, 2, 4, 8))]] * 3
    layers = [Recorder() for _ in range(3)]
    logits = model(IDS, attention_mask=torch.ones(1, 4), **{CACHE: Cache(layers=layers)}).logits
    assert ("sizes", 4) in layers[0].calls and (logits - model(IDS).logits).abs().max() < CLOSE


@pytest.mark.parametrize("name", models.MODELS)
def test_a_cache_without_a_config_keeps_everything(name):
    """`Target._probe` learns shapes from it, and `mmspec.models.attention` reads keys: sliding layers
    forget nothing."""
    model, cache = models.MODELS[name](), DynamicCache()
    model(torch.ones(1, 20, dtype=torch.long), **{CACHE: cache}, use_cache=True)
    assert [layer.keys.shape for layer in cache.layers] == [(1, 2, 20, 8)] * 3


# Pictures.


@pytest.mark.parametrize("name", models.VISUAL)
def test_encoded_pictures_come_one_by_one(name):
    """`Encoder.read`: `get_image_features(...).pooler_output` has an entry per picture, as long as its
    placeholders are many."""
    model, inputs = models.MODELS[name](), models.inputs_for(name, [2, 1])
    pixels = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    found = model.get_image_features(**pixels, return_dict=True).pooler_output
    sizes = [image.reshape(-1, image.shape[-1]).shape[0] for image in found]
    assert len(sizes) == 3 and sum(sizes) == int((inputs["input_ids"] == model.config.image_token_id).sum())


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", ["Qwen2_5_VL", "LlavaOnevision"])
def test_encoders_take_pixels_first(family, kind):
    """Whatever the argument is called: that of LLaVA-OneVision for videos has another name in 5.17 than in 5.23."""
    model = getattr(transformers, f"{family}ForConditionalGeneration")
    first = list(inspect.signature(getattr(model, f"get_{kind}_features")).parameters)[1]
    assert first.startswith("pixel_values")


@pytest.mark.parametrize("name", models.VISUAL)
def test_embeddings_may_stand_in_for_pictures(name):
    """`Runner.prefill`: a prompt is read as `inputs_embeds`, pictures included, at positions that are given."""
    from mmspec.inputs import prepare
    from mmspec.target import Target

    model, inputs = models.MODELS[name](), models.inputs_for(name, [1])
    target = Target(model)
    request = prepare(target, inputs=inputs)
    embeds = target.family.embed(inputs["input_ids"], target.encode(request))
    places, _ = target.family.positions(request.inputs)
    types = {key: inputs[key] for key in ("token_type_ids",) if key in inputs}
    ours = model(inputs_embeds=embeds, position_ids=places, use_cache=False, **types).logits
    assert (ours - model(**inputs).logits).abs().max() < CLOSE


def test_gemma_sees_pictures_in_both_directions_by_token_types():
    """`Gemma3.prefill_inputs`."""
    model, inputs = models.gemma3(), models.inputs_for("gemma3", [1])
    causal = inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
    assert (model(**inputs).logits - model(**causal).logits).abs().max() > 1e-3


def test_rope_indices_need_token_types():
    """The rotary families pass `mm_token_type_ids`, and get `[3, batch, length]` positions and `[batch, 1]` deltas."""
    model, inputs = models.qwen_vl(), models.inputs_for("qwen_vl", [1])
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    options = {"image_grid_thw": grid, "attention_mask": inputs["attention_mask"]}
    places, delta = model.model.get_rope_index(ids, mm_token_type_ids=inputs["mm_token_type_ids"], **options)
    assert places.shape == (3, *ids.shape) and delta.shape == (1, 1)
    assert places[:, 0, -1].tolist() == [ids.shape[1] - 1 + delta.item()] * 3 and delta < 0
    with pytest.raises((TypeError, ValueError)):
        model.model.get_rope_index(ids, **options)


def test_rope_deltas_are_state_that_given_positions_leave_alone():
    """One attribute for all requests, so it is never read; passes with positions of their own do not change it."""
    model, inputs = models.qwen_vl(), models.inputs_for("qwen_vl", [1])
    model(**inputs)
    first = model.model.rope_deltas.clone()
    assert first.item() < 0
    embeds = model.get_input_embeddings()(IDS)
    model(inputs_embeds=embeds, position_ids=PLACES, **{CACHE: DynamicCache()})
    assert model.model.rope_deltas.equal(first)


def test_the_order_of_vision_windows():
    """`mmspec.families.qwen_vl.Windowed` undoes it; the function is no method of a model."""
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(torch.tensor([[1, 8, 8]]), spatial_merge_size=2, window_size=16, patch_size=4)
    assert order.sort().values.tolist() == list(range(16)) and order.tolist() != list(range(16))


# Hidden states.


@pytest.mark.parametrize("name", models.MODELS)
def test_hooks_before_layers_see_the_entering_states(name):
    """`mmspec.models.states.capture`: a layer's states are its first argument or a keyword; the last norm gives
    what the head reads."""
    model, inputs = models.MODELS[name](), models.inputs_for(name, [0])
    decoder, seen, hooks = model.get_decoder(), {}, []
    for number, layer in enumerate(decoder.layers):
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, number=number: seen.update(
                    {number: args[0] if args else kwargs["hidden_states"]}
                ),
                with_kwargs=True,
            )
        )
    decoder.norm.register_forward_hook(lambda _, args, output: seen.update({3: output}))
    out = model(**inputs, output_hidden_states=True)
    for number, states in enumerate(out.hidden_states):
        assert seen[number].equal(states), number
    assert (model.get_output_embeddings()(seen[3]) - out.logits).abs().max() < CLOSE


def test_deep_features_join_behind_a_layers_own_hooks():
    """`capture` reads entering states for this: they hold what DeepStack adds, and a layer's output does not."""
    model, inputs, seen = FAMILIES["qwen3_vl"].build(), models.inputs_for("qwen_vl", [1]), {}
    layers = model.get_decoder().layers
    layers[0].register_forward_hook(
        lambda _, args, output: seen.update(left=output[0] if isinstance(output, tuple) else output)
    )
    layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(entered=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**inputs)
    visual = inputs["input_ids"] == models.IMAGE
    differs = (seen["entered"] - seen["left"]).abs().amax(-1) > 1e-3
    assert differs.equal(visual)


def test_the_language_model_takes_deep_features_that_the_outer_model_drops():
    """`Qwen3VL.forward`: prompts go to the language model directly."""
    model, inputs = FAMILIES["qwen3_vl"].build(), models.inputs_for("qwen_vl", [1])
    expected = model(**inputs).logits
    found = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    # Per layer all pictures, in one tensor or (as of 5.23) in one each.
    layers = [torch.cat(list(one)) if isinstance(one, (list, tuple)) else one for one in found.deepstack_features]
    visual = inputs["input_ids"] == models.IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(visual, 0))
    embeds = embeds.masked_scatter(visual[..., None], torch.cat(list(found.pooler_output)))
    options = {"image_grid_thw": inputs["image_grid_thw"], "attention_mask": inputs["attention_mask"]}
    places, _ = model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], **options
    )
    deep = {"visual_pos_masks": visual, "deepstack_visual_embeds": layers}
    states = model.get_decoder()(inputs_embeds=embeds, position_ids=places, **deep).last_hidden_state
    assert (model.get_output_embeddings()(states) - expected).abs().max() < CLOSE
    outer = model(inputs_embeds=embeds, position_ids=places).logits
    assert (outer - expected).abs().max() > 1e-2


# Generation.


def called(model, inputs: dict, **options) -> dict:
    """What `generate` gives to a callable that asks for pictures by name."""
    given = {}

    def run(model, input_ids, *, pixel_values=None, image_grid_thw=None, **further):
        given.update(further, model=model, input_ids=input_ids)
        given.update(pixel_values=pixel_values, image_grid_thw=image_grid_thw)
        return input_ids

    model.generate(**inputs, custom_generate=run, **options)
    return given


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_a_custom_loop_is_called_as_generates_own_loops_are(name):
    """`mmspec.hf`: arguments by these names; pictures reach a callable that names them."""
    model, inputs = models.MODELS[name](), models.inputs_for(name, [1, 0], [9, 20])  # padded, else there is no mask
    given = called(model, inputs, max_new_tokens=7)
    assert given["model"] is model and given["input_ids"].equal(inputs["input_ids"])
    assert given["attention_mask"].equal(inputs["attention_mask"])
    for key in ("pixel_values", "image_grid_thw"):
        assert (key not in inputs) or given[key].equal(inputs[key])


def test_generate_has_merged_all_settings_before_the_loop():
    """`mmspec.hf` takes processors, criteria and lengths as they come; `LogitsPipeline` merges in the same way."""
    model, inputs = models.llama(), models.inputs_for("llama", [0])
    model.generation_config.repetition_penalty = 1.3
    given = called(model, inputs, max_new_tokens=7, eos_token_id=5, do_sample=True, temperature=0.5)
    assert (
        given["generation_config"].max_length == inputs["input_ids"].shape[1] + 7
        and given["generation_config"].do_sample
    )
    kinds = [type(one).__name__ for one in given["logits_processor"]]
    assert kinds.count("RepetitionPenaltyLogitsProcessor") == kinds.count("TemperatureLogitsWarper") == 1
    criteria = {type(one).__name__: one for one in given["stopping_criteria"]}
    assert {"MaxLengthCriteria", "EosTokenCriteria"} <= set(criteria)
    assert criteria["MaxLengthCriteria"].max_length == given["generation_config"].max_length
    assert criteria["EosTokenCriteria"].eos_token_id.tolist() == [5]
    assert model.generation_config.max_length != given["generation_config"].max_length, (
        "the model's own stays as it was"
    )


def test_an_assistant_starts_from_an_empty_cache_given_by_name():
    """`mmspec.evaluation.assistant.sighted` shows it the pictures then: it drafts with what it is handed otherwise."""
    model, inputs, starts = models.llava(), models.inputs_for("llava", [1]), []

    def note(_, args, kwargs):
        cache = kwargs.get(CACHE)
        starts.append((cache is None or cache.get_seq_length() == 0, kwargs.get("input_ids") is not None))

    assistant = models.llava()
    assistant.register_forward_pre_hook(note, with_kwargs=True)
    model.generate(**inputs, max_new_tokens=5, do_sample=False, assistant_model=assistant)
    assert starts[0] == (True, True) and not any(empty for empty, _ in starts[1:])


# Loading and what models say of themselves.


def test_loading_says_what_is_missing(tmp_path):
    """`load_target` refuses models with random weights in them, and asks for a precision by `dtype=`."""
    model = models.llama()
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert set(info["missing_keys"]) == {"model.layers.1.mlp.up_proj.weight"} and not info["unexpected_keys"]
    assert loaded.dtype == torch.bfloat16


def test_back_ends_are_named_in_the_text_config():
    """`Target.attention` reads `_attn_implementation`; the setter changes it for text and vision alike."""
    model = models.llava("eager")
    assert model.config.get_text_config()._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert {part._attn_implementation for part in (model.config.text_config, model.config.vision_config)} == {"sdpa"}
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        models.qwen_vl("flex_attention")


def test_recurrent_models_say_so():
    """`Target` refuses what `_is_stateful`, which attention-only models are not."""
    assert transformers.MambaForCausalLM._is_stateful
    assert not any(model()._is_stateful for model in models.MODELS.values())


@pytest.mark.parametrize("name", models.MODELS)
def test_models_are_taken_apart_by_their_accessors(name):
    """`Family`: the decoder with its layers and norm, the embeddings, the text config, the placeholder."""
    model = models.MODELS[name]()
    decoder, text = model.get_decoder(), model.config.get_text_config(decoder=True)
    assert len(decoder.layers) == text.num_hidden_layers and decoder.norm.weight.shape == (text.hidden_size,)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape
    if name in models.VISUAL:
        assert model.config.image_token_id == models.IMAGE


def test_parts_of_llama_that_heads_are_made_of():
    """`mmspec.drafters.layer` and `feature`: rotary embedding, MLP, norm and rotation."""
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, rotate_half

    config = transformers.LlamaConfig(**models.TEXT)
    states = torch.randn(1, 4, 32)
    cos, sin = LlamaRotaryEmbedding(config)(states, PLACES)
    assert cos.shape == sin.shape == (1, 4, 8) and cos[0, 1].equal(cos[0, 2])
    assert LlamaMLP(config)(states).shape == LlamaRMSNorm(32, eps=1e-6)(states).shape == states.shape
    assert rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-3.0, -4.0, 1.0, 2.0]
