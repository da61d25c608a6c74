"""Drafters on disk: `config.json` with everything needed to rebuild one, and `model.safetensors`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import MMSpecError, cut, first_line, listed, shown
from .folders import CONFIG, WEIGHTS, Header, read_config, stored
from .trust import named_class

if TYPE_CHECKING:
    from .drafters import Drafter
    from .target import Target

INDEX, SHARDS = "model.safetensors.index.json", "model-*-of-*.safetensors"
"""Where large weights are split, as only others do."""
HEADS = "medusa_lm_head.safetensors"
"""As Medusa's training names what it writes."""
PICKLES = (".bin", ".pt", ".pth")
"""Files that run whatever code they contain when they are opened carelessly; here they are not opened at all."""

logger = logging.getLogger(__name__)


FETCHED = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
"""What may be said about where on the hub a drafter is."""


def fetch_drafter(repository: str, subfolder: str = "", **where: Any) -> Path | None:
    """The local copy of a repository on the hub: its `config.json` and its safetensors; None if it cannot be read.

    Args:
        repository: `owner/name`.
        subfolder: in which the files are.
        where: the others of `FETCHED`, for `huggingface_hub`.

    Raises:
        MMSpecError: if its weights are there as a pickle only.
    """
    from huggingface_hub import HfApi, snapshot_download

    def fetched(*names: str) -> Path:
        patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
        return Path(snapshot_download(repository, allow_patterns=patterns, **where), subfolder)

    try:
        folder = fetched(CONFIG)
        weights = [WEIGHTS] if "mmspec_drafter" in read_config(folder) else [WEIGHTS, INDEX, SHARDS, HEADS]
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
    """Rebuild a drafter that `Drafter.save_pretrained` wrote.

    Args:
        folder: where it is.
        target: the model to draft for.
        classes, trusted: whose code the folder may name, see `mmspec.trust.named_class`.

    Raises:
        MMSpecError: for a class that may not be named or cannot be imported, a drafter of another target, a corrupt or
            mismatched weights file (the keys are listed).
    """
    from .compressors import VisualCompressor
    from .drafters import Drafter

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
    """Give a drafter its weights, one after the other, so that no two copies of all of them are in memory at once.

    Numbers that are not finite are said in a warning: a drafter with them guesses nothing, or nothing good, which costs
    time and no text.

    Args:
        drafter: from `Drafter.empty`. What is on the meta device goes to the target's; numbers are cast to the dtype
            that it has there.
        tensors: name to a function that gives the tensor, memory of its own. Names left out must not be on the meta
            device.
        source: where they come from, as a message calls it.

    Raises:
        MMSpecError: if the tokens that can be drafted are none of the target's.
    """
    from .drafters.vocabulary import ReducedVocabulary

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
    if isinstance(drafter, ReducedVocabulary):
        drafter.check_vocabulary(source)
