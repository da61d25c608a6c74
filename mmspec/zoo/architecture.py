"""The shape of the tiny model: a LLaVA whose language model is deep and narrow.

Sixteen layers, so that one step of the target costs many steps of a one-layer drafter, as it does at seven billion
parameters; 192 wide, so that two CPU cores can train it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from mmspec.zoo.drawing import GRID, PATCH, SIZE
from mmspec.zoo.vocabulary import token_id

LAYERS, WIDTH, HEADS, INNER = 16, 192, 6, 512
VISION_LAYERS, VISION_WIDTH = 4, 192
VISUAL_TOKENS = GRID**2


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Return the configuration of the model for a given tokenizer."""
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=VISION_WIDTH,
        hidden_act="gelu",
    )
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=token_id(tokenizer, "<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
        **special,
    )


@torch.no_grad()
def build_model(config: LlavaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """Make a freshly initialised model in fp32.

    Every residual branch starts at zero, so that at first each position carries nothing but its own token, patch and
    place, through all sixteen layers; with branches of ordinary size the small embeddings would drown in their sum.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight", "out_proj.weight", "fc2.weight")):
            nn.init.zeros_(parameter)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.2)  # on a par with a patch, so that places are easy to tell apart
        elif "patch_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model
