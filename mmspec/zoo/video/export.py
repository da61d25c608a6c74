"""Turn a checkpoint of the video target into a folder: `python -m mmspec.zoo.video.export CHECKPOINT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from mmspec import zoo
from mmspec.zoo.export import put_weights, save_model
from mmspec.zoo.video.architecture import build_clip_config, build_clip_model
from mmspec.zoo.video.processing import build_clip_processor
from mmspec.zoo.video.vocabulary import build_clip_tokenizer
from mmspec.zoo.vocabulary import kept_tokenizer

DESTINATION = Path(zoo.__file__).parent / "weights" / "tiny-video" / "target"


def read_clip_model(checkpoint: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, dict]:
    """Return the model of a training checkpoint in fp32, and the step and seconds of its training."""
    tokenizer = kept_tokenizer(checkpoint.parent / "tokenizer", build_clip_tokenizer)
    model = build_clip_model(build_clip_config(tokenizer))
    return model, put_weights(model, checkpoint)


def export_clips(checkpoint: Path, destination: Path) -> Path:
    """Write configuration, bf16 weights, tokenizer, processor and chat template."""
    model, state = read_clip_model(checkpoint)
    tokenizer = kept_tokenizer(checkpoint.parent / "tokenizer", build_clip_tokenizer)
    save_model(model, tokenizer, destination)
    build_clip_processor(tokenizer).save_pretrained(destination)
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training -> {destination}")
    return destination


def load_clips(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    """Load an exported model. Its processor is `build_clip_processor(kept_tokenizer(folder))`, which does without
    torchvision."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint.safetensors of a training run")
    parser.add_argument("--output", type=Path, default=DESTINATION, help="default: the weights folder of the package")
    arguments = parser.parse_args()
    export_clips(arguments.checkpoint, arguments.output)


if __name__ == "__main__":
    main()
