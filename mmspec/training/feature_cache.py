"""Features on disk: the target's states, computed once and read again by every epoch and every drafter.

Training online stores nothing and runs the target anew at each step; where the same few answers are read many times, or
by several drafters, storing its states is cheaper. A shard is a safetensors file with the states of some examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MMSpecError
from ..families import Vision, visual_spans
from ..files.identity import differences
from ..files.storage import atomic_write_json, read_json_object, replacing
from ..inputs import append
from ..lesson import WIDTHS, Lesson
from ..models.states import LAST
from .data import Loader, TrainingPass
from .teacher import Teacher

INDEX = "features.json"
SHARD = 32
"""Number of examples per file."""


class CachedTeacher(Teacher):
    """A teacher that stores the target's states and reads them again.

    Args:
        teacher: says which states are wanted, of which target.
        loader: the examples; those that cannot be used are replaced as in training.
        folder: where the shards are; it may hold more layers than are wanted.

    Raises:
        MMSpecError: if the folder was made for another target or other answers, lacks a layer, or is damaged.
    """

    def __init__(self, teacher: Teacher, loader: Loader, folder: str | Path):
        super().__init__(teacher.target, teacher.feature_layers)
        self.loader, self.folder = loader, Path(folder)
        self._open = lru_cache(maxsize=None)(self._opened)

    def fill(
        self, process: int = 0, processes: int = 1, rows: int = 8, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write the missing shards, each process its share of them."""
        path, identity = self.folder / INDEX, self._identity()
        found = read_json_object(path) if path.exists() else None
        if found is not None:
            self._check(found, identity)
        elif path.exists() and any(self.folder.glob("features-*.safetensors")):
            raise MMSpecError(
                f"{str(path)!r} is damaged, so the origin of the features beside it is unknown: delete the folder, and "
                "it is made again"
            )
        count = len(self.loader.examples)
        shards = range(-(-count // SHARD))[process::processes]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if process == 0 and found is None:
                atomic_write_json(path, identity)
            for done, shard in enumerate(shards):
                if not self._path(shard).exists():
                    self._write(shard, [n for n in range(shard * SHARD, min((shard + 1) * SHARD, count))], rows)
                if progress is not None:
                    progress(done + 1, len(shards))
        except (OSError, SafetensorError) as error:
            raise MMSpecError(f"the feature cache {str(self.folder)!r} cannot be written: {error}") from error

    def lesson_of(self, batch: TrainingPass) -> Lesson:
        """Read the lesson of a pass from the files."""
        rows = [self._read(number) for number in batch.numbers]
        request = append(batch.prompt, batch.answers, WIDTHS)
        longest = request.inputs["input_ids"].shape[1]
        features = {layer: _stack([row[f"layer {layer}"] for row in rows], longest) for layer in self.feature_layers}
        device = self.target.device
        embeds = _stack([row["embeds"] for row in rows], longest).to(device)
        vision = self._vision(batch, rows, embeds)
        features = {layer: states.to(device) for layer, states in features.items()}
        return Lesson(self.target, batch.prompt, batch.answers, request, vision, embeds, features, batch.tasks)

    def _vision(self, batch: TrainingPass, rows: Sequence[dict[str, Tensor]], embeds: Tensor) -> Vision | None:
        """Return the media of a batch, of which the language model read what stands at their places in `embeds`."""
        family, seen, shown, deep, kinds = self.target.family, [], [], [], []
        for number, (row, ids) in enumerate(zip(rows, batch.prompt.token_ids(), strict=True)):
            if "tokens" not in row:
                continue
            sizes = row["tokens"].tolist()
            (spans,) = visual_spans([ids], family.placeholders, sizes)
            kinds += [family.placeholders[ids[start]] for start, _ in spans]
            places = family.is_visual(torch.tensor(ids, device=embeds.device))
            shown += embeds[number, : len(ids)][places].split(sizes)
            if "vision" in row:
                seen += row["vision"].to(embeds.device).split(sizes)
            if "deep" in row:
                deep += row["deep"].to(embeds.device).split(sizes, dim=1)
            elif family.joined_layers:  # a draft model with copies of the target's encoders would learn without it
                raise MMSpecError(
                    f"the feature cache {str(self.folder)!r} lacks what pictures add behind the first layers, of "
                    f"example {batch.numbers[number]}: delete the folder, and it is made again"
                )
        return Vision(shown, seen or None, kinds, deep or None) if shown else None

    def _write(self, shard: int, numbers: Sequence[int], rows: int) -> None:
        tensors: dict[str, Tensor] = {}
        for start in range(0, len(numbers), rows):
            wanted = numbers[start : start + rows]
            batch = self.loader.prepare(wanted)
            lesson = super().lesson_of(batch)
            vision = lesson.vision or Vision([], None)
            spans = visual_spans(batch.prompt.token_ids(), self.target.family.placeholders, vision.sizes)
            sizes_left, features_left, deep_left = (
                iter(vision.sizes),
                iter(vision.features or ()),
                iter(vision.deep or ()),
            )
            for row, (number, length) in enumerate(zip(batch.numbers, lesson.request.lengths, strict=True)):
                states = {f"layer {layer}": part[row, :length] for layer, part in lesson.features.items()}
                states["embeds"] = lesson.embeds[row, :length]
                if spans[row]:
                    states["tokens"] = torch.tensor([next(sizes_left) for _ in spans[row]])
                    if vision.features is not None:
                        states["vision"] = torch.cat([next(features_left) for _ in spans[row]])
                    if vision.deep is not None:
                        states["deep"] = torch.cat([next(deep_left) for _ in spans[row]], dim=1)
                # Where another example took the place of a spoilt one, it is that one's states that are kept.
                tensors |= {f"{number}/{name}": part.cpu().contiguous() for name, part in states.items()}
        with replacing(self._path(shard)) as unfinished:
            save_file(tensors, unfinished)

    def _read(self, number: int) -> dict[str, Tensor]:
        file, keys = self._open(number // SHARD)
        if number not in keys:
            raise MMSpecError(
                f"the feature cache {str(self.folder)!r} lacks example {number}: delete it, and it is made again"
            )
        wanted = {f"layer {layer}" for layer in self.feature_layers} | {"embeds", "vision", "deep", "tokens"}
        return {name: file.get_tensor(f"{number}/{name}") for name in keys[number] if name in wanted}

    def _opened(self, shard: int) -> tuple[Any, dict[int, list[str]]]:
        try:
            file = safe_open(self._path(shard), "pt")
        except (OSError, SafetensorError) as error:
            raise MMSpecError(
                f"{str(self._path(shard))!r} cannot be read ({error}): delete it, and it is made again"
            ) from None
        keys: dict[int, list[str]] = {}
        for key in file.keys():
            number, name = key.split("/", 1)
            keys.setdefault(int(number), []).append(name)
        return file, keys

    def _path(self, shard: int) -> Path:
        return self.folder / f"features-{shard:05d}.safetensors"

    def _identity(self) -> dict:
        return {
            "target weights": self.target.fingerprint,
            "dtype": str(self.target.dtype),
            "examples": len(self.loader.examples),
            "data": self.loader.examples.describe(),
            "layers": list(self.feature_layers),
        }

    def _check(self, found: dict, wanted: dict) -> None:
        layers, has = wanted.pop("layers"), found.get("layers")
        has = has if isinstance(has, list) else []
        differing = differences({key: found.get(key) for key in wanted}, wanted)
        if lacking := [layer for layer in sorted(set(layers)) if layer not in has]:
            differing.append(f"it holds layers {has} but {lacking} are wanted too ({LAST} is the last state)")
        if differing:
            raise MMSpecError(
                f"the feature cache {str(self.folder)!r} was made for something else: {'; '.join(differing)}; "
                "choose another"
            )


def _stack(rows: Iterable[Tensor], length: int) -> Tensor:
    """Stack `[length_i, hidden]` states to `[batch, length, hidden]`, padded with zeros."""
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
