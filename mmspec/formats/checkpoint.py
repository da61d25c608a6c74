"""Checkpoint: a folder of safetensors files, whose tensors are looked at before they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import HEADS, INDEX, PICKLES, WEIGHTS, opened, read_config, read_tensor
from ..errors import MMSpecError

PREFIX = "model."
"""Some trainers save the drafter as a part of a model."""

NESTED = ("text_config", "transformer_layer_config")
"""Where configurations of vision-language models and of speculators keep those of their language model and layer."""


class Checkpoint:
    """A published drafter on disk. Only the headers of its files are read until a tensor is asked for.

    Args:
        folder: with `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.

    Attributes:
        config: of `config.json`. What is nested (`NESTED`) is on top as well; where both say something, the top counts.
        shapes: key to shape. A prefix `model.` is taken off.

    Raises:
        MMSpecError: if a file is missing or damaged, weights come only as a pickle, or two tensors have one name.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        own = read_config(self.folder)
        self.config: dict[str, Any] = {}
        for part in (*(own.get(name) for name in NESTED), own):
            self.config |= part if isinstance(part, dict) else {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        for path in weight_files(self.folder):
            with opened(path) as file:
                for key in file.keys():
                    name = key.removeprefix(PREFIX)
                    if name in self.shapes:
                        raise MMSpecError(f"{self} has two tensors for {name!r}, with {PREFIX!r} before it and without")
                    self.shapes[name] = tuple(file.get_slice(key).get_shape())
                    self._places[name] = path, key

    def __str__(self) -> str:
        return f"checkpoint {str(self.folder)!r}"

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own and as it was saved."""
        return read_tensor(*self._places[name])

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows `start` to `end` of a matrix."""
        return read_tensor(*self._places[name], start, end)

    def require(self, *names: str) -> None:
        """Refuse a checkpoint without some keys.

        Raises:
            MMSpecError: with the keys that are missing.
        """
        if missing := [name for name in names if name not in self.shapes]:
            raise MMSpecError(f"{self} is incomplete: missing keys {missing}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        MMSpecError: if there are none, or some shards are missing; says how to convert a pickle.
    """
    index = folder / INDEX
    if whole := next((path for name in (WEIGHTS, HEADS) if (path := folder / name).is_file()), None):
        return [whole]
    if index.is_file():
        paths = [folder / name for name in shards_of(index)]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise MMSpecError(f"folder {str(folder)!r} lacks the shards {', '.join(missing)}; fetch it again")
        return paths
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise MMSpecError(
            f"folder {str(folder)!r} has its weights only as a pickle ({', '.join(pickles)}), and mmspec reads "
            f"safetensors only; convert it once with: python -m mmspec.formats.convert {folder}"
        )
    raise MMSpecError(f"folder {str(folder)!r} has neither {WEIGHTS} nor {INDEX}; fetch it again")


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index of shards lists.

    Raises:
        MMSpecError: if it does not list any.
    """
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise MMSpecError(f"{str(index)!r} does not list the shards of a checkpoint: {error!r}") from None
