"""What the tests of distillation share besides fixtures: prompts, options, and a look at what was written."""

from __future__ import annotations

import json
from pathlib import Path

from mmspec.data import EmbeddedSource

ANSWERS, SKIPPED, INFO = (
    f"{kind}-00000-of-00001.{suffix}"
    for kind, suffix in (("answers", "jsonl"), ("skipped", "jsonl"), ("distill", "json"))
)
SOURCE = EmbeddedSource(tasks=["scenes", "documents"], count=4)
OPTIONS = {"batch_size": 3, "max_new_tokens": 4}
SAMPLED = {**OPTIONS, "temperature": 1.5, "top_k": 50, "seed": 1}


def lines(folder: Path, name: str = ANSWERS) -> list[dict]:
    """The records of a file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
