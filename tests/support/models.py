"""Tiny random models of the real Hugging Face classes, and inputs for them.

Weights are rescaled to a standard deviation of 1/sqrt(fan_in): with the default initialisation all logits are nearly
equal, and a wrong position or mask would hide in the noise.
"""

from __future__ import annotations

import copy
import itertools
import logging

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

logging.getLogger("transformers").setLevel(logging.ERROR)

VOCAB = 61
IMAGE, VISION_START, VISION_END, VIDEO, AUDIO, PAD = 60, 59, 58, 57, 56, 0
WINDOW = 12
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}


def rescale(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`redraw` a language model, let it write without an end, and never an image placeholder."""
    redraw(model, seed)
    model.get_output_embeddings().weight.data[IMAGE:VOCAB] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def redraw(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draw every matrix anew with a standard deviation of 1/sqrt(fan_in), and every bias and norm a little off."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("class_embedding"):  # CLIP's is a vector that transformers draws, and not from our seed
                parameter.copy_(noise)
            elif parameter.ndim < 2:
                if parameter.abs().max() < 1e-3:
                    parameter.zero_()  # SigLIP's biases are drawn with a standard deviation of 1e-6
                parameter.add_(0.1 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise if id(parameter) in embeddings else noise / fan_in**0.5)
    return model


def of_parts(
    kind: str, attention: str, seed: int = 0, text: dict | None = None, vision: dict | None = None, **settings
):
    """Build a `<kind>ForConditionalGeneration` from the settings of its parts."""
    parts = {"text_config": text or TEXT} | ({"vision_config": vision} if vision is not None else {})
    # A tied random model repeats its last token for ever, whatever it attends to.
    config = getattr(transformers, f"{kind}Config")(**parts, **{"tie_word_embeddings": False} | settings)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")
    return rescale(model._from_config(config, attn_implementation=attention), seed)


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = TOWER | {"image_size": 16, "patch_size": 8}
CLIP_VISION = CLIP | {"model_type": "clip_vision_model", "projection_dim": 16}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
MIXED_WINDOWS = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": False,
}


def llava(attention="sdpa", seed=0, layers=3):
    text = TEXT | {"model_type": "llama", "num_hidden_layers": layers}
    settings = {"image_token_index": IMAGE, "image_seq_length": 4, "vision_feature_layer": -1}
    return of_parts("Llava", attention, seed, text, CLIP_VISION, **settings)


def qwen_vl(attention="sdpa", seed=0):
    vision = QWEN_VISION | {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [1], "window_size": 16}
    return of_parts("Qwen2_5_VL", attention, seed, TEXT | MROPE, vision, **QWEN_IDS)


def gemma3(attention="sdpa", seed=0):
    ids = {"image_token_id": IMAGE, "boi_token_id": VISION_START, "eoi_token_id": VISION_END}
    vision = CLIP | {"patch_size": 4}
    return of_parts("Gemma3", attention, seed, TEXT | MIXED_WINDOWS, vision, mm_tokens_per_image=4, **ids)


def llama(attention="sdpa", seed=0, layers=3):
    config = LlamaConfig(**{**TEXT, "num_hidden_layers": layers})
    return rescale(LlamaForCausalLM._from_config(config, attn_implementation=attention), seed)


def qwen3(attention="sdpa", seed=0):
    return rescale(Qwen3ForCausalLM._from_config(Qwen3Config(**TEXT), attn_implementation=attention), seed)


def mistral(attention="sdpa", seed=0):
    config = MistralConfig(**TEXT, sliding_window=WINDOW)
    return rescale(MistralForCausalLM._from_config(config, attn_implementation=attention), seed)


GEMMA4_TEXT = TEXT | {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "tie_word_embeddings": False,
}
"""The last two layers read the keys of those before them, and every layer has an embedding, as in E2B and E4B."""


def gemma4_text(attention="sdpa", seed=0):
    """A Gemma 4 that reads text alone."""
    config = transformers.Gemma4TextConfig(**GEMMA4_TEXT)
    return rescale(transformers.Gemma4ForCausalLM._from_config(config, attn_implementation=attention), seed)


def gemma4(attention="sdpa", seed=0, ears=None, **text):
    """A Gemma 4 that sees, and hears with `ears`. Tokens of a picture see each other, as in the larger ones; `text`
    changes the settings of its language model."""
    vision = TOWER | {"num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2}
    vision |= {"position_embedding_size": 16}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO, "audio_config": ears}
    attention = {"text_config": attention, "vision_config": attention, "audio_config": "eager"} if ears else attention
    text = GEMMA4_TEXT | {"use_bidirectional_attention": "vision"} | text
    model = of_parts("Gemma4", attention, seed, text, vision, **ids)
    model.get_output_embeddings().weight.data[AUDIO : VIDEO + 1] = 0
    return model


def gemma4_unified(attention="sdpa", seed=0):
    """A Gemma 4 without towers, as the 12B: patches of 4 x 4 pixels are tokens, and all layers have keys."""
    text = {name: value for name, value in GEMMA4_TEXT.items() if not name.endswith("per_layer_input")}
    text |= {"num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    vision = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 16, "mm_posemb_size": 16}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
    ids |= {"audio_config": {"audio_embed_dim": 8}}
    model = of_parts("Gemma4Unified", attention, seed, text, vision | {"output_proj_dims": 16}, **ids)
    model.get_output_embeddings().weight.data[AUDIO : VIDEO + 1] = 0
    return model


def blurred(model: torch.nn.Module, amount: float = 0.25, seed: int = 7) -> torch.nn.Module:
    """A copy whose language model is a little off: as a drafter it is right some of the time."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.get_decoder().layers.parameters():
            if parameter.ndim > 1:
                parameter += amount * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return copied


def short_sighted(model: torch.nn.Module, amount: float = 0.05, seed: int = 8) -> torch.nn.Module:
    """The same model, whose encoders are a little off, if it has any; so it has to look for itself."""
    generator, spared = torch.Generator().manual_seed(seed), {id(p) for p in model.get_decoder().parameters()}
    spared |= {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in spared and parameter.ndim > 1:
                parameter += amount * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def of_class(config: str, model: str, attention: str = "eager", **settings) -> torch.nn.Module:
    """Build a language model by the names of its classes in transformers."""
    config = getattr(transformers, config)(**{**TEXT, "sliding_window": WINDOW, **settings})
    return rescale(getattr(transformers, model)._from_config(config, attn_implementation=attention), 0)


MODELS = {"llava": llava, "qwen_vl": qwen_vl, "gemma3": gemma3, "llama": llama, "qwen3": qwen3, "mistral": mistral}
ALONE = {"gemma4_text": gemma4_text}
"""Models for a drafter that fits no other."""
VISUAL = ("llava", "qwen_vl", "gemma3")


def eager_twin(name: str, model: torch.nn.Module) -> torch.nn.Module:
    """Return the same model on the back end that returns attention weights."""
    twin = MODELS[name]("eager")
    twin.load_state_dict(model.state_dict())
    return twin


def _text(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(1, 50, (length,), generator=generator).tolist()


def inputs_for(name: str, images: list[int], lengths: list[int] | None = None, seed: int = 0) -> dict:
    """A processor's output for a batch, padded on the left as processors do for generation.

    Args:
        name: of the family.
        images: pictures in each row.
        lengths: text tokens in each row, besides the pictures.
        seed: of ids and pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or [9] * len(images)
    grids, rows = [], []
    for count, length in zip(images, lengths, strict=True):
        ids = _text(generator, 2)
        for index in range(count):
            visual = 4
            if name == "qwen_vl":
                grid = [1, 4 + 2 * (index % 2), 4]
                grids.append(grid)
                visual = grid[1] * grid[2] // 4
            ids += [VISION_START] + [IMAGE] * visual + [VISION_END] + _text(generator, 1)
        rows.append(ids + _text(generator, length - 2))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if name == "qwen_vl":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if sum(images):
        if name == "qwen_vl":
            patches = sum(grid[1] * grid[2] for grid in grids)
            inputs["pixel_values"] = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
            inputs["image_grid_thw"] = torch.tensor(grids)
        else:
            inputs["pixel_values"] = torch.randn(sum(images), 3, 16, 16, generator=generator)
    return inputs


def reference(model, inputs: dict, max_new_tokens: int, **options) -> list[list[int]]:
    """What `model.generate` writes, row by row without padding."""
    rows = []
    for row in range(inputs["input_ids"].shape[0]):
        single = one_row(inputs, row)
        if hasattr(model, "model") and hasattr(model.model, "rope_deltas"):
            model.model.rope_deltas = None
        out = model.generate(**single, max_new_tokens=max_new_tokens, do_sample=False, **options)
        rows.append(out[0, single["input_ids"].shape[1] :].tolist())
    return rows


def one_row(inputs: dict, row: int) -> dict:
    """A batch's row on its own, without padding."""
    keep = inputs["attention_mask"][row].bool()
    single = {
        name: value[row : row + 1, keep]
        for name, value in inputs.items()
        if value.shape == inputs["attention_mask"].shape
    }
    if "pixel_values" in inputs:
        runs = [_pictures(ids) for ids in inputs["input_ids"].tolist()]
        first, count = sum(runs[:row]), runs[row]
        if count and "image_grid_thw" in inputs:
            patches = inputs["image_grid_thw"].prod(-1).tolist()
            start = sum(patches[:first])
            single["pixel_values"] = inputs["pixel_values"][start : start + sum(patches[first : first + count])]
            single["image_grid_thw"] = inputs["image_grid_thw"][first : first + count]
        elif count:
            single["pixel_values"] = inputs["pixel_values"][first : first + count]
    return single


def _pictures(ids: list[int]) -> int:
    return sum(a == IMAGE and b != IMAGE for a, b in itertools.pairwise(ids))
