"""Evaluate the video target greedily and print the metrics as JSON.

python scripts/evaluate_tiny_video.py runs/video/checkpoint.safetensors --examples 50 --length short
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the script also runs without installing

import torch

from mmspec.zoo.data import SPLITS
from mmspec.zoo.video.data import CLIP_TASKS, LENGTHS
from mmspec.zoo.video.evaluation import evaluate_clips
from mmspec.zoo.video.export import load_clips, read_clip_model
from mmspec.zoo.video.vocabulary import build_clip_tokenizer
from mmspec.zoo.vocabulary import kept_tokenizer


def main() -> None:
    """Load, answer, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint of the training, or a folder that was exported from one")
    parser.add_argument("--examples", type=int, default=50, help="examples per task")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--task", choices=CLIP_TASKS, action="append", help="only this task (may be repeated)")
    parser.add_argument("--length", choices=tuple(LENGTHS), default="long")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.model.is_dir():
        model, folder = load_clips(options.model, dtype), options.model
    else:
        model, folder = read_clip_model(options.model)[0].to(dtype).eval(), options.model.parent / "tokenizer"
    tokenizer = kept_tokenizer(folder, build_clip_tokenizer)
    tasks = tuple(options.task or CLIP_TASKS)
    report = evaluate_clips(model, tokenizer, options.split, options.examples, options.rows, tasks, options.length)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
