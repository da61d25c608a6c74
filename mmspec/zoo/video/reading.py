"""Clips as the language model of the video target reads them, computed for all frames of a batch at once.

The stock tower takes the frames one after the other. All frames of a batch have one size here and every layer attends
within a frame, so they can be rows of one pass through the same modules; a test holds both to the same loss.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from mmspec.zoo.losses import Embedded
from mmspec.zoo.video.architecture import MERGE
from mmspec.zoo.video.batches import CLIP_START, ClipBatch


def watch_frames(visual: Any, pixels: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Run the vision tower over pairs of frames of one size, `[pairs, patches, 384]`.

    Returns:
        `[pairs, tokens, width]`, one token for 2 x 2 patches.
    """
    _, rows, columns = grid
    pairs, patches, _ = pixels.shape
    states = visual.patch_embed(pixels.flatten(0, 1)).view(pairs, patches, -1)
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    places = rearrange(places, "(row a) (column b) along -> (row column a b) along", a=MERGE, b=MERGE)
    angles = (places[..., None] * visual.rotary_pos_emb.inv_freq.float()).flatten(1).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    for block in visual.blocks:
        mixed = block.attn.qkv(block.norm1(states))
        parts = "pair patch (kind head width) -> kind pair patch head width"
        query, key, value = rearrange(mixed, parts, kind=3, head=block.attn.num_heads)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (
            rearrange(t, "pair patch head width -> pair head patch width") for t in (query, key, value)
        )
        scores = torch.matmul(query * block.attn.scaling, key.transpose(2, 3))
        attended = torch.matmul(functional.softmax(scores, -1), value)
        states = states + block.attn.proj(rearrange(attended, "pair head patch width -> pair patch (head width)"))
        states = states + block.mlp(block.norm2(states))
    return visual.merger(states.flatten(0, 1)).view(pairs, patches // MERGE**2, -1)


def positions(batch: ClipBatch) -> torch.Tensor:
    """Return the rotary positions `[3, rows, length]` of time, row and column: those of M-RoPE for a step a second."""
    rows, length = batch.input_ids.shape
    steps, height, width = batch.grid[0], batch.grid[1] // MERGE, batch.grid[2] // MERGE
    axes = torch.meshgrid(torch.arange(steps), torch.arange(height), torch.arange(width), indexing="ij")
    seen = torch.stack([axis.flatten() for axis in axes]) + CLIP_START
    rest = length - CLIP_START - seen.shape[1]
    after = torch.arange(rest).expand(3, -1) + CLIP_START + max(height, width)
    before = torch.arange(CLIP_START).expand(3, -1)
    return torch.cat([before, seen, after], dim=1)[:, None].expand(3, rows, length)


def read_clips(model: Qwen2_5_VLForConditionalGeneration, batch: ClipBatch) -> Embedded:
    """Put the features of each clip in the place of its placeholders."""
    inner = model.model
    rows = len(batch.input_ids)
    pixels = batch.pixel_values.flatten(0, 1).to(model.dtype)
    visual = watch_frames(inner.visual, pixels, batch.grid)
    visual = rearrange(visual, "(row step) token width -> row (step token) width", row=rows)
    embeddings = inner.get_input_embeddings()(batch.input_ids)
    start, end = CLIP_START, CLIP_START + visual.shape[1]
    return Embedded(visual, torch.cat([embeddings[:, :start], visual, embeddings[:, end:]], 1), positions(batch))
