"""Drafters on disk: `config.json` with everything needed to rebuild one, and `model.safetensors`."""

from __future__ import annotations

import importlib
import json
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import MMSpecError

if TYPE_CHECKING:
    from .drafters import Drafter
    from .target import Target

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_drafter(drafter: Drafter, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write a drafter.

    Args:
        drafter: anything with `config()`.
        folder: made if missing.
        metadata: further plain values for `config.json`: how it was trained, what it reached.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cls = type(drafter)
    config = {
        "mmspec_drafter": f"{cls.__module__}.{cls.__qualname__}",
        "target": {
            "model_type": drafter.target.model.config.model_type,
            "vocab_size": drafter.target.vocab_size,
            "hidden_size": drafter.target.hidden_size,
            "weights": drafter.target.fingerprint,
        },
        **_features(drafter),
        **drafter.config(),
        **({"metadata": metadata} if metadata else {}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.detach().contiguous() for name, tensor in _own_weights(drafter).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def push_drafter(drafter: Drafter, repository: str, private: bool = False, **metadata: Any) -> str:
    """Upload a drafter to the Hugging Face hub, whence `mmspec.load_drafter(repository, target)` loads it.

    Args:
        drafter: anything with `config()`.
        repository: `owner/name`, made if it does not exist.
        private: whether to make it so that others cannot see it.
        metadata: see `save_drafter`.

    Returns:
        the address of the upload.

    Raises:
        MMSpecError: if the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_drafter(drafter, folder, metadata)
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repository, folder_path=folder))
        except Exception as error:  # the hub's client raises errors of several libraries
            reason = textwrap.shorten(str(error), 200)
            raise MMSpecError(f"the hub did not take {repository!r}: {reason}; log in with `hf auth login`") from error


def fetch_drafter(repository: str) -> Path | None:
    """The local copy of a drafter on the hub; None if the repository is none of mmspec's, or cannot be read."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[CONFIG]))
        if "mmspec_drafter" not in read_config(folder):
            return None
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception:  # of several libraries; loading it as a model says what is wrong
        return None


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        MMSpecError: if it is missing or is no JSON object.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise MMSpecError(f"folder {str(folder)!r} has no {CONFIG}, so it holds no drafter or model") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MMSpecError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise MMSpecError(f"{str(path)!r} holds a {type(config).__name__} where a JSON object is expected")
    return config


def load_saved_drafter(folder: str | Path, target: Target) -> Drafter:
    """Rebuild a drafter that `save_drafter` wrote.

    Raises:
        MMSpecError: for a class that cannot be imported, a drafter of another target, a corrupt or mismatched
            weights file (the keys are listed).
    """
    folder = Path(folder)
    config = read_config(folder)
    cls = _drafter_class(config["mmspec_drafter"], folder)
    try:
        made_for = config.get("target", {}).get("vocab_size", target.vocab_size)
    except AttributeError:
        raise MMSpecError(
            f"{str(folder / CONFIG)!r}: `target` does not say for which model the {cls.__name__} is; it should be an "
            "object with vocab_size"
        ) from None
    if made_for != target.vocab_size:
        raise MMSpecError(
            f"drafter {str(folder)!r} was made for a vocabulary of {made_for} tokens but the target's has "
            f"{target.vocab_size}: they must share a tokenizer; load a drafter trained for this target"
        )
    try:
        drafter = cls.from_config(config, target)
    except MMSpecError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise MMSpecError(f"{str(folder / CONFIG)!r} does not describe a {cls.__name__} ({reason})") from error
    weights = read_weights(folder / WEIGHTS)
    expected = _own_weights(drafter)
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise MMSpecError(
            f"{str(folder / WEIGHTS)!r} does not fit {cls.__name__}: missing keys {missing or 'none'}, unexpected keys "
            f"{unexpected or 'none'}"
        )
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise MMSpecError(
                f"{str(folder / WEIGHTS)!r}: {name} has shape {list(weights[name].shape)}, {cls.__name__} needs "
                f"{list(tensor.shape)}"
            )
    drafter.load_state_dict(weights, strict=False)
    return drafter.eval()


def read_weights(path: Path) -> dict:
    """The tensors of a safetensors file.

    Raises:
        MMSpecError: if it is missing or corrupt.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise MMSpecError(f"weights file {str(path)!r} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise MMSpecError(f"{str(path)!r} is not a valid safetensors file ({error}); fetch or train it again") from None


def _own_weights(drafter: Drafter) -> dict:
    """The state of a drafter, tied tensors once."""
    seen, weights = set(), {}
    for name, tensor in drafter.state_dict(keep_vars=True).items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            weights[name] = tensor
    return weights


def _features(drafter: Drafter) -> dict[str, Any]:
    """Which states of the target a drafter was made to read, and how they are counted."""
    if not drafter.feature_layers:
        return {}
    convention = "the state that enters the layer of this number, counted from 0; -1 is the state after the final norm"
    return {"features": {"layers": list(drafter.feature_layers), "convention": convention}}


def _drafter_class(path: str, folder: Path) -> type[Drafter]:
    from .drafters import Drafter

    module, _, name = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MMSpecError(
            f"{str(folder / CONFIG)!r} names the drafter class {path!r}, not importable: {error}"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Drafter)):
        raise MMSpecError(f"{str(folder / CONFIG)!r} names {path!r}, which is no Drafter")
    return cls
