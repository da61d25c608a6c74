"""The written record of a training: `log.csv` with a line every few steps, `validation.jsonl` with every validation."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.storage import replacing, whole_lines

LOG, VALIDATIONS = "log.csv", "validation.jsonl"


class TrainingJournal:
    """Writes both log files of an output folder.

    Args:
        folder: where the files are.
        step: number of the step at which the training is; lines about later steps, from a run that was killed, are
            dropped.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        _forget_after(folder / LOG, lambda line: int(line.partition(b",")[0]), step, header=1)
        _forget_after(folder / VALIDATIONS, lambda line: json.loads(line)["step"], step)

    def log(self, row: dict[str, float]) -> None:
        """Add a line to `log.csv`, and the header before the first one."""
        path = self.folder / LOG
        fresh = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})

    def validation(self, report: dict[str, Any]) -> None:
        """Add a line to `validation.jsonl`."""
        with (self.folder / VALIDATIONS).open("a") as file:
            file.write(json.dumps(report) + "\n")


class Sums:
    """Computes means over several steps, weighted by their drafted tokens."""

    def __init__(self, names: list[str]):
        self.names = names
        self.total: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Add the sums of one step, as `Trainer.train_step` returns them."""
        self.total = values if self.total is None else self.total + values

    def means(self) -> dict[str, float]:
        """Return the means by name, among them `loss` and `gradient_norm`; empty before the first step."""
        if self.total is None:
            return {}
        loss, norm, tokens, *marks = self.total.tolist()
        return {"loss": loss / tokens, "gradient_norm": norm / tokens} | {
            name: value / tokens for name, value in zip(self.names, marks, strict=True)
        }


def _forget_after(path: Path, step_of: Callable[[bytes], int], step: int, header: int = 0) -> None:
    """Drop the lines of a log that a resumed training will write again, and those that were torn when it was killed."""
    if not path.exists():
        return
    lines = whole_lines(path)
    kept = lines[:header]
    for line in lines[header:]:
        try:
            if step_of(line) <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):  # two lines of which the first was torn, say
            continue
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"".join(kept))
