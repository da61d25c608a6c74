"""Write and read the state of an interrupted training, and save folders of drafters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..drafters import Drafter
from ..errors import MMSpecError
from ..files.storage import replace_folder, replacing
from .sharding import divide_state

STATE = "state.safetensors"


def write_state(path: Path, drafter: Drafter, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write weights, optimizer state and progress into one safetensors file.

    The file is written beside the old one and then renamed, so that an interruption leaves one of the two complete.

    Raises:
        MMSpecError: if it cannot be written; the old file is then still there.
    """
    saved = optimizer.state_dict()
    tensors = {f"weights/{name}": tensor.detach() for name, tensor in drafter.state_dict().items()}
    for number, state in saved["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{number}/{key}"] = torch.as_tensor(value)
    metadata = {"progress": json.dumps(progress), "groups": json.dumps(saved["param_groups"])}
    try:
        with replacing(path) as unfinished:
            # Cloned, because tied weights share memory, which the format does not allow.
            save_file({key: tensor.cpu().clone().contiguous() for key, tensor in tensors.items()}, unfinished, metadata)
    except (OSError, SafetensorError) as error:
        kept = "the last one is kept; " if path.exists() else ""
        raise MMSpecError(f"the checkpoint {str(path)!r} cannot be written ({error}): {kept}free some space") from error


def read_state(
    path: Path, drafter: Drafter, optimizer: torch.optim.Optimizer, trainee: nn.Module | None = None
) -> dict[str, Any]:
    """Load the file that `write_state` wrote, and return the progress.

    Args:
        path: the file.
        drafter: the drafter to get the weights.
        optimizer: its optimizer.
        trainee: the module around the drafter if its weights are divided among processes.

    Raises:
        MMSpecError: if the file is damaged or holds another drafter.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
    except (OSError, SafetensorError) as error:
        raise MMSpecError(f"the checkpoint {str(path)!r} cannot be read ({error}): delete it to begin again") from None
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/", 2)
            state.setdefault(int(number), {})[name] = value
    saved = {"state": state, "param_groups": json.loads(metadata["groups"])}
    try:
        if trainee is None:
            drafter.load_state_dict(weights)
            optimizer.load_state_dict(saved)
        else:
            divide_state(trainee, optimizer, weights, saved)
    except RuntimeError as error:
        raise MMSpecError(
            f"the checkpoint {str(path)!r} is of another drafter ({' '.join(str(error).split())[:200]}): resume with "
            "the recipe it was made with, or choose another output folder"
        ) from None
    return json.loads(metadata["progress"])


def save_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder by what `write` puts into an empty one, see `mmspec.files.storage.replace_folder`.

    Raises:
        MMSpecError: if it cannot be written; the old folder is then still there.
    """
    try:
        replace_folder(folder, write)
    except (OSError, SafetensorError) as error:
        kept = "the last one is kept; " if folder.exists() else ""
        raise MMSpecError(f"the folder {str(folder)!r} cannot be written ({error}): {kept}free some space") from error
