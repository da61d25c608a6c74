"""Drafters on disk: `config.json` with everything needed to build one again, and `model.safetensors`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MMSpecError, cut, first_line, listed, shown
from ..settings.trust import named_class
from .folders import CONFIG, WEIGHTS, Header, read_config, stored

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target

INDEX, SHARDS = "model.safetensors.index.json", "model-*-of-*.safetensors"
"""Names of the index and of the files into which other libraries split large weights."""
HEADS = "medusa_lm_head.safetensors"
"""Name of the file that Medusa's own training writes."""
MTP = "mtp.safetensors"
"""Name of the file in which some publish a model's multi-token layer alone."""
PICKLES = (".bin", ".pt", ".pth")
"""Endings of files that can run code when they are opened; they are never opened here."""

logger = logging.getLogger(__name__)


FETCHED = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
"""Arguments that say where on the hub a drafter is."""


def fetch_drafter(repository: str, subfolder: str = "", **where: Any) -> Path | None:
    """Return the local copy of a repository on the hub, its `config.json` and its safetensors; None if it cannot be
    read.

    Args:
        repository: `owner/name`.
        subfolder: folder in the repository that holds the files.
        where: other arguments of `FETCHED`, for `huggingface_hub`.

    Raises:
        MMSpecError: if the repository has its weights only as a pickle.
    """
    from huggingface_hub import HfApi, snapshot_download

    def fetched(*names: str) -> Path:
        patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
        return Path(snapshot_download(repository, allow_patterns=patterns, **where), subfolder)

    try:
        folder = fetched(CONFIG)
        weights = [WEIGHTS] if "mmspec_drafter" in read_config(folder) else [WEIGHTS, INDEX, SHARDS, HEADS, MTP]
        folder = fetched(CONFIG, *weights)
        if any(folder.glob("*.safetensors")):
            return folder
        about = {name: where[name] for name in ("revision", "token") if name in where}
        pickles = [name for name in HfApi().list_repo_files(repository, **about) if Path(name).suffix in PICKLES]
    except Exception:  # of several libraries; loading it as a model says what is wrong
        return None
    if not pickles:
        return None
    name = repository.rpartition("/")[2]
    raise MMSpecError(
        f"{repository!r} has its weights only as a pickle ({', '.join(pickles)}), and mmspec reads safetensors only; "
        f"convert it once with: hf download {repository} --local-dir {name} && python -m mmspec.formats.convert {name}"
    )


def load_saved_drafter(
    folder: str | Path, target: Target, classes: Iterable[type] = (), trusted: str | Collection[str] = ()
) -> Drafter:
    """Build a drafter again that `Drafter.save_pretrained` wrote.

    Args:
        folder: folder of the drafter.
        target: the model to draft for.
        classes, trusted: code that the folder may name, see `mmspec.settings.trust.named_class`.

    Raises:
        MMSpecError: for a class that may not be named or cannot be imported, a drafter of another target, or a weights
            file that is corrupt or does not match (the error lists the keys).
    """
    from ..compressors import VisualCompressor
    from ..drafters import Drafter

    folder, classes = Path(folder), tuple(classes)
    config = read_config(folder)
    named = partial(named_class, source=repr(str(folder / CONFIG)), classes=classes, trusted=trusted, folder=folder)
    cls = named(config["mmspec_drafter"], Drafter)
    if isinstance(compressor := config.get("compressor"), dict):
        config["compressor"] = compressor | {"class": named(compressor.get("class"), VisualCompressor)}
    made_for = config.get("target", {})
    if not isinstance(made_for, dict):
        raise MMSpecError(
            f"{str(folder / CONFIG)!r}: `target` does not say for which model the {cls.__name__} is; it should be an "
            "object with vocab_size"
        )
    vocabulary = made_for.get("vocab_size", target.vocab_size)
    if vocabulary != target.vocab_size:
        raise MMSpecError(
            f"drafter {str(folder)!r} was made for a vocabulary of {shown(vocabulary)} tokens but the target's has "
            f"{target.vocab_size}: they must share a tokenizer; load a drafter trained for this target"
        )
    there = Header(repr(str(folder / WEIGHTS)), folder / WEIGHTS)
    try:
        drafter = cls.empty(config, target, there)
    except MMSpecError:
        raise
    except Exception as error:  # of the class and of the libraries behind it, about values of any kind
        reason = cut(f"{type(error).__name__}: {first_line(error)}", 200)
        raise MMSpecError(f"{str(folder / CONFIG)!r} does not describe a {cls.__name__} ({reason})") from error
    expected = stored(drafter)
    there.check_fits(expected, cls.__name__)
    fill(drafter, {name: partial(there.read, name) for name in expected}, there.source)
    return drafter.eval()


def fill(drafter: Drafter, tensors: Mapping[str, Callable[[], Tensor]], source: str) -> None:
    """Load the weights of a drafter one after the other, so that memory never holds two copies of all of them.

    Numbers that are not finite cause a warning: a drafter with such weights guesses nothing, or nothing good. This
    costs time and changes no text.

    Args:
        drafter: drafter from `Drafter.empty`. Tensors on the meta device go to the target's device; numbers are cast to
            the dtype that they have there.
        tensors: names with functions that return the tensor, in memory of its own. Tensors that are left out must not
            be on the meta device.
        source: name of the place that the weights come from, for messages.

    Raises:
        MMSpecError: see `Drafter.check_weights`.
    """
    broken = []
    for name, tensor in drafter.state_dict().items():
        if name in tensors:
            value = tensors[name]().to(drafter.target.device, tensor.dtype)
            drafter.load_state_dict({name: value}, strict=False, assign=tensor.is_meta)
            if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
                broken.append(name)
    if broken:
        logger.warning(
            "%s: %d of %d tensors have numbers that are NaN or infinite in %s (%s), so it will guess badly; the text "
            "stays right, but train or fetch it again",
            source,
            len(broken),
            len(tensors),
            str(drafter.target.dtype).removeprefix("torch."),
            listed(broken, 3),
        )
    drafter.check_weights(source)
