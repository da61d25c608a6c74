"""The shape of the video target: a Qwen2.5-VL whose language model is deep and narrow.

A patch has 8 x 8 pixels in two frames, and 2 x 2 patches are merged into one visual token. Every layer of the tower
attends within a whole frame, as the last ones of Qwen2.5-VL's do. The base of the rotary positions is small: with
Qwen's own million, the axes of rows and columns would hardly turn on floors of a few cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmspec.zoo.video.frames import FRAMES_PER_STEP
from mmspec.zoo.video.vocabulary import IMAGE, VIDEO, VISION_END, VISION_START
from mmspec.zoo.vocabulary import token_id

LAYERS, WIDTH, HEADS, INNER = 12, 128, 4, 344
SECTIONS = (6, 5, 5)  # of the sixteen frequencies of a head: time, row, column
ROPE_BASE = 1000.0
VISION_LAYERS, VISION_WIDTH, VISION_HEADS, VISION_INNER = 3, 96, 3, 256
PATCH, MERGE = 8, 2


def build_clip_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Return the configuration of the model for a given tokenizer."""
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE, "mrope_section": list(SECTIONS)},
        "tie_word_embeddings": True,
        **special,
    }
    vision: dict[str, Any] = {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_WIDTH,
        "intermediate_size": VISION_INNER,
        "num_heads": VISION_HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES_PER_STEP,
        "tokens_per_second": 1,  # a step is a second, and so the next place on the axis of time
        "window_size": 8 * PATCH * MERGE,
        "fullatt_block_indexes": list(range(VISION_LAYERS)),
        "out_hidden_size": WIDTH,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(tokenizer, IMAGE),
        video_token_id=token_id(tokenizer, VIDEO),
        vision_start_token_id=token_id(tokenizer, VISION_START),
        vision_end_token_id=token_id(tokenizer, VISION_END),
        tie_word_embeddings=True,
    )


@torch.no_grad()
def build_clip_model(config: Qwen2_5_VLConfig, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Make a freshly initialised model in fp32. Its residual branches start at zero (see `mmspec.zoo.architecture`)."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model
