"""Draw docs/methods/clips/video_pruning.png, what each pruner keeps of a clip frame by frame, and print the numbers.

    python scripts/draw_pruners.py

The clip is one of `mmspec.zoo.video.watch`. The model is built as the video target is, with random weights: what is new
in time and what stands out in space is that of the clip, what the text attends to is chance.
"""

from __future__ import annotations

from pathlib import Path

import torch

import mmspec
from mmspec.compressors import Frames, Holistic, Prune, SinkAware, TopPUniform, UVPrune
from mmspec.drafters import EagleDrafter
from mmspec.visualization import draw_kept_frames, kept_frames
from mmspec.zoo.video import watch
from mmspec.zoo.video.architecture import build_clip_config, build_clip_model
from mmspec.zoo.video.processing import build_clip_processor

OUTPUT = Path(__file__).parents[1] / "docs" / "methods" / "clips"
KEEP = 0.1


def random_target(seed: int = 0) -> mmspec.Target:
    """The video target with random weights, whose residual branches do not start at zero."""
    processor = build_clip_processor()
    model = build_clip_model(build_clip_config(processor.tokenizer), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return mmspec.Target(model, processor)


def main() -> None:
    frames, prompt, _ = watch("accounts", "test", 0)
    eagle = EagleDrafter(random_target()).eval()
    pruners = {
        "holistic": Holistic(KEEP),
        "uv": UVPrune(KEEP),
        "top_p": TopPUniform(KEEP),
        "sink_aware": SinkAware(KEEP),
        "evenly spaced": Prune(KEEP),
        "frames": Frames(KEEP),
    }
    drafters = {name: eagle.with_compressor(pruner) for name, pruner in pruners.items()}
    for name, drafter in drafters.items():
        kept = [step.entries for step in kept_frames(drafter, prompt, frames)]
        print(f"{name:28} {sum(kept):4}: {' '.join(map(str, kept))}")
    (OUTPUT / "video_pruning.png").write_bytes(draw_kept_frames(drafters, prompt, frames)._repr_png_())


if __name__ == "__main__":
    main()
