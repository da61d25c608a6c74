"""A tiny random Janus, which reads and writes text and pictures, with a processor."""

from __future__ import annotations

from models import IMAGE, PAD, TEXT, VISION_END, VISION_START, VOCAB, redraw
from toys import byte_tokenizer
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

CODES, TOKENS, START = 40, 16, 1
"""Codes of the quantiser, tokens of a picture, and the token with which prompts begin."""


def janus(attention: str = "sdpa", seed: int = 0, codes: int = CODES) -> JanusForConditionalGeneration:
    vision = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        mlp_ratio=1.0,
        projection_dim=32,
        num_image_tokens=TOKENS,
        depth=1,
    )
    quantiser = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=codes,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = JanusConfig(
        text_config=LlamaConfig(**TEXT), vision_config=vision, vq_config=quantiser, image_token_id=IMAGE
    )
    config._attn_implementation = attention
    model = redraw(JanusForConditionalGeneration._from_config(config), seed).eval()
    model.get_output_embeddings().weight.data[IMAGE:VOCAB] = 0
    settings = model.generation_config
    settings.bos_token_id, settings.pad_token_id, settings.eos_token_id = START, PAD, None
    settings.generation_kwargs = {"boi_token_id": VISION_START}
    return model


def processor() -> JanusProcessor:
    tokens = {"image_token": IMAGE, "boi_token": VISION_START, "eoi_token": VISION_END}
    tokenizer = byte_tokenizer()
    names = {name: tokenizer.convert_ids_to_tokens(token) for name, token in tokens.items()}
    tokenizer = byte_tokenizer(extra_special_tokens=names, padding_side="left")
    return JanusProcessor(JanusImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, num_image_tokens=TOKENS)
