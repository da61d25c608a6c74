"""Evaluate the embedded model (or any folder with the same tasks) greedily and print the metrics as JSON.

python scripts/evaluate_tiny.py --examples 200
python scripts/evaluate_tiny.py --model runs/export --split validation
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the script also runs without installing

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mmspec.zoo.data import SPLITS, TASKS
from mmspec.zoo.evaluation import evaluate
from mmspec.zoo.export import DESTINATION


def main() -> None:
    """Load, answer, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DESTINATION, help="a folder written by mmspec.zoo.export")
    parser.add_argument("--examples", type=int, default=200, help="examples per task")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--task", choices=TASKS, action="append", help="only this task (may be repeated)")
    parser.add_argument("--rows", type=int, default=32, help="rows per batch")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    processor = AutoProcessor.from_pretrained(options.model)
    model = LlavaForConditionalGeneration.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    report = evaluate(model, processor, options.split, options.examples, options.rows, tuple(options.task or TASKS))
    lengths = [entry["mean_answer_tokens"] for entry in report.values()]
    report["mean_answer_tokens"] = round(sum(lengths) / len(lengths), 1)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
