"""Prompts of Qwen-VL with pictures and videos of given sizes, as its processor writes them."""

from __future__ import annotations

import torch
from models import IMAGE, PAD, VIDEO, VISION_END, VISION_START


def video(steps: int, height: int = 4, width: int = 4) -> tuple[str, int, int, int]:
    return "video", steps, height, width


def inputs_of(name: str, rows: list[tuple[list, int]], seed: int = 0) -> dict:
    """A batch as a processor writes it, padded on the left. A row does not depend on those beside it."""
    ids, grids, pixels = [], {"image": [], "video": []}, {"image": [], "video": []}
    for number, (shown, behind) in enumerate(rows):
        generator = torch.Generator().manual_seed(seed + number)
        row = torch.randint(1, 50, (3,), generator=generator).tolist()
        for kind, steps, height, width in shown:
            frame = [IMAGE if kind == "image" else VIDEO] * (height * width // 4)
            between = [VISION_END, 7, VISION_START] if name == "qwen3_vl" else []  # Qwen3-VL says when a frame was
            row += [VISION_START, *frame, *[token for _ in range(steps - 1) for token in [*between, *frame]]]
            row += [VISION_END] if (kind, steps, height, width) != shown[-1] or behind else []
            grids[kind].append([steps, height, width])
            pixels[kind].append(torch.randn(steps * height * width, 96, generator=generator))
        ids.append(row + torch.randint(1, 50, (behind,), generator=generator).tolist())
    width = max(map(len, ids))
    tokens = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    inputs["mm_token_type_ids"] = (tokens == IMAGE).int() + 2 * (tokens == VIDEO).int()
    for kind, names in {"image": "pixel_values image_grid_thw", "video": "pixel_values_videos video_grid_thw"}.items():
        if grids[kind]:
            inputs |= dict(zip(names.split(), (torch.cat(pixels[kind]), torch.tensor(grids[kind])), strict=True))
    return inputs
