"""Checks of a folder or repository before anything is built from it: weights, and adapters of other models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available

from .. import extras
from ..errors import MMSpecError, first_line, listed, shown
from ..models.weights import count_weights

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

OF_ADAPTERS = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")
"""Arguments that say where an adapter comes from."""

FEWEST = 1 / 16
"""Smallest share of a model's numbers that its files may hold: numbers of quantised weights are packed."""


def check_weights(what: str, source: str, loader: Any, config: PreTrainedConfig, hub: Mapping[str, Any]) -> None:
    """Refuse a folder that lacks the weights of the model in its configuration, before the model is built.

    transformers would first fill missing weights with random numbers, in memory, and report it afterwards.

    Args:
        what: description of what is loaded.
        source: folder or hub id.
        loader: the class whose `from_config` builds the model.
        config: configuration of the model.
        hub: arguments that say where the files come from.

    Raises:
        MMSpecError: if there are no safetensors, or far fewer numbers than the model needs.
    """
    files = _safetensors(source, hub)
    if files is None:
        return  # under a name of another kind; from_pretrained says what it thinks of that
    folder = Path(source, hub.get("subfolder") or "")
    if not files:
        pickles = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
        if pickles:
            raise MMSpecError(
                f"{what} has its weights only as a pickle ({listed(pickles)}), which may run code when it is opened; "
                "mmspec reads safetensors only: save it as such, or pass use_safetensors=False if you trust it"
            )
        raise MMSpecError(f"{what} cannot be loaded: it has no weights: {WEIGHTS} is missing; fetch it again")
    shapes = [shape for file in files for shape in _shapes(what, file)]
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None) or 0
    if layers > len(shapes):
        raise MMSpecError(
            f"{what} does not have the weights that its configuration describes: {len(shapes)} tensors cannot be "
            f"{layers} layers; fetch it again"
        )
    try:
        with torch.device("meta"):
            model = loader.from_config(config, trust_remote_code=bool(hub.get("trust_remote_code")))
    except Exception:  # whatever is wrong with the configuration, from_pretrained stumbles over it as well and says so
        return
    needed = count_weights(model)
    there = sum(torch.Size(shape).numel() for shape in shapes)
    if there < needed * (FEWEST if getattr(config, "quantization_config", None) else 0.5):
        raise MMSpecError(
            f"{what} does not have the weights that its configuration describes: {type(model).__name__} has {needed:,} "
            f"numbers, and the files hold {there:,}; fetch it again"
        )


def _safetensors(source: str, hub: Mapping[str, Any]) -> list[Path] | None:
    """Return the weights of a folder, or those of a repository that were fetched; None where they cannot be known."""
    folder = Path(source, hub.get("subfolder") or "")
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    where = {name: value for name, value in hub.items() if name not in ("trust_remote_code", "code_revision")}
    single = cached_file(source, WEIGHTS, **where, _raise_exceptions_for_missing_entries=False)
    return None if single is None else [Path(single)]


def _shapes(what: str, path: Path) -> list[list[int]]:
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]
    except Exception as error:  # of a library written in another language
        raise MMSpecError(
            f"{what} cannot be loaded: {path.name} is damaged ({first_line(error)}); fetch it again"
        ) from None


def base_of_adapter(what: str, source: str, hub: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the base model of an adapter with the base model's own revision; None for a folder or repository of a
    model.

    Raises:
        MMSpecError: for an adapter that cannot be read here.
    """
    where = {name: hub[name] for name in OF_ADAPTERS if hub.get(name) is not None}
    path = find_adapter_config_file(source, **where)
    if path is None:
        return None
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
        kind = settings["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MMSpecError(f"{what}: its {ADAPTER} cannot be read ({first_line(error)}); fetch it again") from None
    if not (isinstance(base, str) and base):
        raise MMSpecError(f"{what} is an adapter of a model without a name: base_model_name_or_path={shown(base)}")
    if not is_peft_available():
        raise MMSpecError(extras.missing(f"{what} is an adapter ({kind}) of {base!r}, which", "peft"))
    if Path(source, hub.get("subfolder") or "", "config.json").is_file():
        return None  # a whole model with its adapter beside it, which transformers puts together
    revision = settings.get("revision")
    return base, {"revision": revision if isinstance(revision, str) else None, "subfolder": ""}


def put_on(what: str, model: nn.Module, source: str, hub: Mapping[str, Any]) -> nn.Module:
    """Put an adapter on its base model and return peft's model.

    Raises:
        MMSpecError: if its weights are not there as safetensors, or do not match the adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict

    where = {name: hub[name] for name in OF_ADAPTERS if hub.get(name) is not None}
    path = cached_file(source, ADAPTER_WEIGHTS, **where, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise MMSpecError(f"{what} is an adapter without weights: {ADAPTER_WEIGHTS} is missing; fetch or save it again")
    with warnings.catch_warnings():  # what is missing is said below
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, source, **where)
    with safe_open(path, framework="pt") as file:
        there = {key for key in file.keys() if ".base_layer." not in key}  # peft may add embeddings as they were
    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if needed != there:
        raise MMSpecError(
            f"{what} is an adapter that does not fit its base model: missing keys {listed(needed - there)}, unexpected "
            f"keys {listed(there - needed)}"
        )
    return adapted


def own_processor(source: str, hub: Mapping[str, Any]) -> Any:
    """Return the processor that was saved beside an adapter; None if there is none."""
    for loader, name in ((AutoProcessor, "preprocessor_config.json"), (AutoTokenizer, "tokenizer_config.json")):
        where = {key: value for key, value in hub.items() if key not in ("trust_remote_code", "code_revision")}
        if cached_file(source, name, **where, _raise_exceptions_for_missing_entries=False) is not None:
            return loader.from_pretrained(source, **hub)
    return None
