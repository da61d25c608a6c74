"""`python -m mmspec.formats.convert FOLDER` converts a checkpoint's pickled weights to `model.safetensors`, once.

This is the only place that opens a pickle, and only its tensors: `torch.load(weights_only=True)` refuses everything
else.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MMSpecError, first_line, shown
from ..files.checkpoints import INDEX, PICKLES
from ..files.folders import WEIGHTS, check_regular, named_file
from .checkpoint import shards_of

PICKLE_INDEX = "pytorch_model.bin.index.json"


def convert(folder: str | Path, force: bool = False) -> Path:
    """Write the weights of a folder beside them, as `model.safetensors`.

    Tensors that share their memory (tied weights) are written once, under the first name in alphabetical order.

    Args:
        folder: folder with one pickle, or shards and `pytorch_model.bin.index.json`.
        force: whether to replace safetensors that are already there.

    Returns:
        the path of the new file.

    Raises:
        MMSpecError: if there is nothing to convert, or more than one set of weights; if there are safetensors already;
            if a pickle holds anything but named tensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MMSpecError(f"{str(folder)!r} is no folder")
    there = [name for name in (WEIGHTS, INDEX) if (folder / name).exists()]
    if there and not force:
        raise MMSpecError(f"folder {str(folder)!r} has {there[0]} already; add --force to replace it")
    weights: dict[str, Tensor] = {}
    for path in pickles_of(folder):
        weights |= tensors_of(path)
    seen: set[tuple] = set()
    for name in sorted(weights):
        tensor = weights[name]
        view = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and view in seen:
            del weights[name]
        seen.add(view)
    # A view of another tensor is written on its own: safetensors knows no shared memory.
    weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    unfinished = folder / f"{WEIGHTS}.part"
    save_file(weights, unfinished, {"format": "pt"})
    unfinished.replace(folder / WEIGHTS)
    (folder / INDEX).unlink(missing_ok=True)
    return folder / WEIGHTS


def pickles_of(folder: Path) -> list[Path]:
    """Return the pickled files to read.

    Raises:
        MMSpecError: if there are none, or several that no index puts together.
    """
    if (folder / PICKLE_INDEX).is_file():
        index = folder / PICKLE_INDEX
        return [named_file(folder, name, repr(str(index))) for name in shards_of(index)]
    found = sorted(path for path in folder.iterdir() if path.suffix in PICKLES and path.name != "training_args.bin")
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise MMSpecError(
            f"folder {str(folder)!r} must have one pickle ({', '.join(f'*{end}' for end in PICKLES)}) or a "
            f"{PICKLE_INDEX}; it has {names}"
        )
    return found


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Return the named tensors in a pickle.

    Raises:
        MMSpecError: if the pickle holds, or asks for, anything else.
    """
    check_regular(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise MMSpecError(f"{str(path)!r} cannot be read as weights alone: {first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise MMSpecError(f"{str(path)!r} holds a {type(loaded).__name__}, not a dictionary of named tensors")
    for name, value in loaded.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise MMSpecError(
                f"{str(path)!r} is no flat dictionary of named tensors: {shown(name)} is a {type(value).__name__}; "
                "save the state dict of the drafter alone"
            )
    return loaded


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mmspec.formats.convert", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with pytorch_model.bin and config.json")
    parser.add_argument("--force", action="store_true", help="replace safetensors that are already there")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {convert(options.folder, options.force)}")
    except MMSpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
