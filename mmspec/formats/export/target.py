"""Target: the folder of a target in the layout that servers read, where its own is another.

transformers 5 saves the towers of CLIP and SigLIP without the level `vision_model` that published checkpoints have, and
servers look for. So a target that was trained, or saved again, has to be renamed before it is served; what the hub has
usually has not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ...errors import MMSpecError
from ...files.checkpoints import CONFIG
from ...files.folders import named_file, opened, read_config, read_json
from ...files.storage import replace_folder

TOWERS = ("vision_tower.", "model.vision_tower.")
"""Beginnings of the names of a vision tower's weights."""
LEVEL = "vision_model."
"""The level that servers expect below them."""
LEVELLED = ("clip_vision_model", "siglip_vision_model")
"""Kinds of towers whose weights servers look for below that level."""
ENDING, INDEX = ".safetensors", "model.safetensors.index.json"


def served_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the name by which a server looks for a weight.

    Args:
        name: the weight's name in its file.
        config: the model's `config.json`.
    """
    tower = config.get("vision_config")
    if not isinstance(tower, Mapping) or tower.get("model_type") not in LEVELLED:
        return name
    for prefix in TOWERS:
        rest = name.removeprefix(prefix)
        if rest != name and not rest.startswith(LEVEL):
            return prefix + LEVEL + rest
    return name


def needs_rewriting(folder: Path) -> bool:
    """Return True if a server would not find the weights of a target's folder by their names. What is not in
    safetensors was saved before the names changed.

    Raises:
        MMSpecError: if the folder cannot be read.
    """
    config = read_config(folder)
    return any(served_name(name, config) != name for file in weight_files(folder) for name in names_in(file))


def write_target(folder: Path, output: Path) -> Path:
    """Write a copy of a target's folder in which servers find every weight; all other files are copied as they are.

    One file of weights is held in memory at a time.

    Args:
        folder: the target's folder.
        output: folder to write to, replaced if it exists.

    Returns:
        `output`, as an absolute path.

    Raises:
        MMSpecError: if the folder has no weights in safetensors, or the copy cannot be written.
    """
    config, files = read_config(folder), weight_files(folder)
    if not files:
        raise MMSpecError(
            f"the target's folder {str(folder)!r} has no weights in {ENDING} beside its {CONFIG}: save it with "
            "model.save_pretrained"
        )
    if output.resolve() == folder.resolve():
        raise MMSpecError(f"{output} is the target's own folder: name another one for its copy")

    def write(fresh: Path) -> None:
        fresh.mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            if file.is_file() and file not in files and file.name != INDEX:
                shutil.copyfile(file, fresh / file.name)
        for file in files:
            with opened(file) as tensors:
                renamed = {served_name(name, config): tensors.get_tensor(name) for name in tensors.keys()}
            save_file(renamed, fresh / file.name, metadata={"format": "pt"})
        if (folder / INDEX).exists():
            index = read_json(folder / INDEX)
            index["weight_map"] = {served_name(name, config): file for name, file in index["weight_map"].items()}
            (fresh / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(output, write)
    except OSError as error:
        raise MMSpecError(f"{output} cannot be written: {error.strerror or error}") from None
    return output.resolve()


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a target's weights, as far as they are in safetensors."""
    if (folder / INDEX).exists():
        named = read_json(folder / INDEX).get("weight_map")
        names = set(named.values()) if isinstance(named, dict) else set()
        return sorted(named_file(folder, name, str(folder / INDEX)) for name in names)
    return sorted(folder.glob(f"*{ENDING}"))


def names_in(file: Path) -> list[str]:
    """Return the names of the weights in a file."""
    with opened(file) as tensors:
        return list(tensors.keys())
