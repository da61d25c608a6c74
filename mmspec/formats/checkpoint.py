"""`Checkpoint`: a folder of safetensors files whose tensors are inspected before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import MMSpecError, listed, shown
from ..files.checkpoints import HEADS, INDEX, MTP, PICKLES
from ..files.folders import WEIGHTS, Header, named_file, read_config, read_json
from ..settings.fields import fits, in_words

PREFIX = "model."
"""Prefix of all keys where a trainer saved the drafter as a part of a model."""

NESTED = ("text_config", "transformer_layer_config")
"""Entries in which configurations of vision-language models and of speculators keep those of their language model and
layer."""


class Checkpoint:
    """A published drafter on disk. Only the headers of its files are read until a tensor is asked for.

    Args:
        folder: folder with `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.

    Attributes:
        config: content of `config.json`. Nested entries (`NESTED`) are on top as well; where both are given, the top
            counts.
        header: description of each tensor in the files, by key. A prefix `model.` is removed from the keys.
        shapes: shape of each tensor, by key.

    Raises:
        MMSpecError: if a file is missing or damaged, weights come only as a pickle, or two tensors have one name.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        own = read_config(self.folder)
        self.config: dict[str, Any] = {}
        for part in (*(own.get(name) for name in NESTED), own):
            self.config |= part if isinstance(part, dict) else {}
        self.header = Header(str(self), *weight_files(self.folder), prefix=PREFIX)
        self.shapes: dict[str, tuple[int, ...]] = {name: entry.shape for name, entry in self.header.items()}

    def __str__(self) -> str:
        return f"checkpoint {str(self.folder)!r}"

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own, in the dtype in which it was saved."""
        return self.header.read(name)

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Read rows `start` to `end` of a matrix."""
        return self.header.read(name, start, end)

    def sizes(self, name: str, *axes: str) -> tuple[int, ...]:
        """Return the sizes of a tensor that must have one axis per name in `axes`, none of them empty.

        Raises:
            MMSpecError: if the tensor is missing, or has another number of axes or an empty one.
        """
        self.require(name)
        shape = self.shapes[name]
        if len(shape) != len(axes) or not all(shape):
            raise MMSpecError(f"{self}: {name} has shape {list(shape)}, not [{', '.join(axes)}]")
        return shape

    def said(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return a setting of `config.json`, or the default where it is missing or null.

        Args:
            name: key of the setting.
            kind: type of the value, such as `bool` or `list[int]`, see `mmspec.settings.fields.fits`.
            default: value if the setting is missing or null.

        Raises:
            MMSpecError: if the value has another type.
        """
        value = self.config.get(name)
        if value is None:
            return default
        if not fits(value, kind):
            raise MMSpecError(f"{self}: config.json says {name}={shown(value)}, which should be {in_words(kind)}")
        return value

    def require(self, *names: str) -> None:
        """Refuse a checkpoint without some keys.

        Raises:
            MMSpecError: if keys are missing; it names them.
        """
        if missing := [name for name in names if name not in self.shapes]:
            raise MMSpecError(f"{self} is incomplete: missing keys {listed(missing)}")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder.

    Raises:
        MMSpecError: if there are none, or some shards are missing; says how to convert a pickle.
    """
    index = folder / INDEX
    if single := next((path for name in (WEIGHTS, HEADS, MTP) if (path := folder / name).exists()), None):
        return [single]
    if index.exists():
        paths = [named_file(folder, name, repr(str(index))) for name in shards_of(index)]
        if missing := [path.name for path in paths if not path.exists()]:
            raise MMSpecError(f"folder {str(folder)!r} lacks the shards {listed(missing)}; fetch it again")
        return paths
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise MMSpecError(
            f"folder {str(folder)!r} has its weights only as a pickle ({listed(pickles)}), and mmspec reads "
            f"safetensors only; convert it once with: python -m mmspec.formats.convert {folder}"
        )
    raise MMSpecError(f"folder {str(folder)!r} has neither {WEIGHTS} nor {INDEX}; fetch it again")


def shards_of(index: Path) -> list[str]:
    """Return the names of the files that an index of shards lists, whatever they are.

    Raises:
        MMSpecError: if the index does not list any.
    """
    names = read_json(index).get("weight_map")
    if not (isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())):
        raise MMSpecError(
            f"{str(index)!r} does not list the shards of a checkpoint: its weight_map should name a file for every "
            "tensor; fetch it again"
        )
    return sorted(set(names.values()))
