"""Loads targets and drafters by name: embedded ones, local folders, hub ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
)

from . import drafters, extras
from .drafters import Drafter, as_drafter
from .embedded import EMBEDDED, EMBEDDED_TARGET, EMBEDDED_TARGETS, EMBEDDED_VIDEO_TARGET
from .errors import MMSpecError, did_you_mean, first_line, listed
from .families import class_for
from .files.checkpoints import FETCHED, fetch_drafter, load_saved_drafter, read_config
from .files.sources import base_of_adapter, check_weights, own_processor, put_on
from .formats import FORMATS, load_published
from .settings.calls import named_arguments
from .target import Target, expect_target

OF_THE_HUB = (
    "revision",
    "token",
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "subfolder",
    "trust_remote_code",
    "code_revision",
)
"""Arguments that say where files come from, and so apply to all files of a model."""

Kind = TypeVar("Kind", bound=Drafter)


def load_target(
    name: str = EMBEDDED_TARGET,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    compile: bool = False,
    check: bool | None = None,
    writes: str = "text",
    **kwargs: Any,
) -> Target:
    """Load a target with its processor.

    Args:
        name: `"tiny"` (the embedded model), `"tiny-video"` (the embedded model that watches clips), a local folder, or
            a hub id; also that of an adapter written by peft, which is put on its base model.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype. Exactness is only promised in float32.
        device: device to load to; by default a GPU if there is one. Not with `device_map` or `tp_plan`.
        compile, check, writes: see `Target`.
        kwargs: arguments of `from_pretrained`, such as `attn_implementation`, `device_map`, `tp_plan`,
            `quantization_config`. Those of `OF_THE_HUB`, such as `revision`, apply to the configuration and the
            processor as well. Code of the repository is run with `trust_remote_code=True` only, and weights are read
            from safetensors unless `use_safetensors=False`, because a pickle may run code.

    Raises:
        MMSpecError: if there is no such model, its files are damaged, or it cannot be decoded speculatively.
    """
    if not isinstance(name, str | Path):
        way = "mmspec.Target(model, processor)"
        raise MMSpecError(f"load_target takes a name, and this is a {type(name).__name__}: for a model there is {way}")
    return Target(*_load(str(name), _resolve(name, "target"), "target", dtype, device, kwargs), compile, check, writes)


def _load(
    name: str,
    source: str,
    kind: str,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    kwargs: dict[str, Any],
    adapters: tuple[str, ...] = (),
) -> tuple[nn.Module, Any]:
    """Load a model with its processor.

    Args:
        name: name that the user gave.
        source: folder or hub id.
        kind: description of the expected model.
        dtype, device, kwargs: see `load_target`.
        adapters: folders and hub ids of the adapters to put on it.
    """
    placed = [key for key in ("device_map", "tp_plan") if kwargs.get(key) is not None]
    if placed and device is not None:
        raise MMSpecError(f"device={str(device)!r} and {placed[0]}= both say where the weights go; leave one out")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    number_format = _dtype(dtype)
    if not placed:
        _reach(device)
    hub = {"trust_remote_code": False} | {key: kwargs[key] for key in OF_THE_HUB if key in kwargs}
    what = f"{kind} {name!r}"
    try:
        if (adapted := base_of_adapter(what, source, hub)) is not None:
            base, own = adapted
            if adapters:
                raise MMSpecError(
                    f"{what} is an adapter of an adapter, {source!r}: merge the latter into its base model"
                )
            model, processor = _load(name, base, kind, dtype, device, {**kwargs, **own}, (source,))
            return put_on(what, model, source, hub), own_processor(source, hub) or processor
        config = AutoConfig.from_pretrained(source, **hub)
        if not placed and (kwargs.get("quantization_config") or getattr(config, "quantization_config", None)):
            kwargs = {**kwargs, "device_map": {"": device}}  # quantised weights cannot all be moved afterwards
            placed = ["device_map"]
        loader: Any = class_for(config)  # the auto classes of transformers share no public type
        kwargs = {"use_safetensors": True} | kwargs | hub
        if kwargs["use_safetensors"] and not kwargs.get("gguf_file"):
            check_weights(what, source, loader, config, hub)
        with _quiet(source):
            model, info = loader.from_pretrained(source, dtype=number_format, output_loading_info=True, **kwargs)
        lacking = {one for key in ("missing_keys", "mismatched_keys") for one in info.get(key) or ()}
        if lacking:  # transformers would go on with random numbers in their place
            raise MMSpecError(
                f"{what} lacks weights of {type(model).__name__}: missing keys {listed(lacking, 3)}, unexpected keys "
                f"{listed(info['unexpected_keys'], 3)}; fetch it again, or load the model yourself and pass it to "
                "mmspec.Target"
            )
        processor = _read_processor(what, source, loader is not AutoModelForCausalLM, hub)
    except MMSpecError:
        raise
    except Exception as error:  # of several libraries, and of whatever kind a file's contents make it
        if "trust_remote_code" in str(error):
            raise MMSpecError(
                f"{what} brings code of its own, which is not run unless you say so: read it, then pass "
                "trust_remote_code=True"
            ) from error
        if package := extras.wanted_by(error):
            raise MMSpecError(extras.missing(what, package)) from error
        raise MMSpecError(f"{what} cannot be loaded: {first_line(error)}") from error
    if not placed:
        try:
            model.to(device)
        except RuntimeError as error:  # an accelerator that is full
            raise MMSpecError(f"device {device!r} cannot take the model: {first_line(error)}") from error
    return model, processor


def _read_processor(what: str, source: str, multimodal: bool, hub: dict[str, Any]) -> Any:
    """Return the processor or the tokenizer of a model.

    Raises:
        MMSpecError: if it does not exist or cannot be read.
    """
    if source == str(EMBEDDED / EMBEDDED_VIDEO_TARGET / "target"):
        from .zoo.video.processing import load_clip_processor  # the stock one needs torchvision

        return load_clip_processor(source)
    try:
        return (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(source, **hub)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error) or extras.wanted_by(error):
            raise
        part = "processor" if multimodal else "tokenizer"
        raise MMSpecError(
            f"{what} has no {part} that can be read ({first_line(error)}): put the files of its {part} beside the "
            "weights, or load the model yourself and pass it to mmspec.Target, which works on inputs= without one"
        ) from error


@named_arguments("load_drafter", others=OF_THE_HUB)
def load_drafter(
    name: str,
    target: Target,
    format: str | None = None,
    classes: Iterable[type] = (),
    trusted: str | Collection[str] = (),
    **kwargs: Any,
) -> Drafter:
    """Load a drafter for a target.

    Args:
        name: an embedded drafter (`"tiny/eagle3"`); or a folder or hub id of a drafter that `save_pretrained` or
            `push_to_hub` wrote; or one that the authors of a method published, see docs/checkpoint_formats.md; or a
            small Hugging Face model of the target's family, which then drafts as it is: with its own vision tower if it
            has one, without pictures otherwise.
        target: the model to draft for.
        format: format of a published checkpoint, where its keys and configuration do not show it or show the wrong one.
        classes: your own drafters and compressors that the folder may name. Classes that are imported already need not
            be given.
        trusted: your own modules or packages whose drafters and compressors may be imported. Apart from mmspec's own,
            nothing else is imported because a folder names it.
        kwargs: arguments that say where the files come from, see `OF_THE_HUB`: `revision`, `token`, `cache_dir` and the
            like. Code of a repository is run with `trust_remote_code=True` only, which matters for small models that
            draft as they are.

    Raises:
        MMSpecError: if there is no such drafter, its class was not allowed, its files are damaged, or it does not fit
            the target.
    """
    expect_target(target, "mmspec.load_drafter(name, target)")
    if not isinstance(name, str | Path):
        raise MMSpecError(f"load_drafter takes a name first, and this is a {type(name).__name__}")
    source = _resolve(name, "drafter")
    if Path(source).is_dir():
        folder: Path | None = Path(source, kwargs.get("subfolder") or "")
    else:
        folder = fetch_drafter(source, **{key: value for key, value in kwargs.items() if key in FETCHED})
    if folder is not None and "mmspec_drafter" in read_config(folder):
        if format is not None:
            raise MMSpecError(f"drafter {name!r} was saved by mmspec and says what it is: leave format={format!r} out")
        return load_saved_drafter(folder, target, classes, trusted)
    if folder is not None and (published := load_published(folder, target, format)) is not None:
        return published
    try:
        options = {"attn_implementation": target.attention, **kwargs}
        model, processor = _load(str(name), source, "drafter", target.dtype, target.device, options)
    except MMSpecError as error:
        if folder is None:
            raise
        known = ", ".join(format.name for format in FORMATS)
        raise MMSpecError(f"{error}; nor has it the keys of a published drafter ({known})") from error
    return as_drafter(target, model, processor)


def load_drafter_as(kind: type[Kind], name: str, target: Target, otherwise: str, **kwargs: Any) -> Kind:
    """Load a drafter that has to be of one kind.

    Args:
        kind: its class, or one that it inherits from.
        name, target, kwargs: see `load_drafter`.
        otherwise: what drafters of another kind lack, and what to name instead; it stands in the error behind "is a
            ..., which".

    Raises:
        MMSpecError: see `load_drafter`; for a drafter of another kind.
    """
    drafter = load_drafter(name, target, **kwargs)
    if not isinstance(drafter, kind):
        raise MMSpecError(f"{name!r} is a {type(drafter).__name__}, which {otherwise}")
    return drafter


def _resolve(name: str, kind: str) -> str:
    """Return the folder or hub id for the name that the user typed."""
    if name in EMBEDDED_TARGETS and kind == "target":
        folder = EMBEDDED / name / "target"
        if not folder.is_dir():
            raise MMSpecError(f"the embedded model {name!r} is missing from {str(EMBEDDED)!r}: install mmspec again")
        return str(folder)
    if Path(name).is_dir():
        return str(name)
    prefix, _, embedded = str(name).partition("/")
    if prefix in EMBEDDED_TARGETS and kind == "drafter":
        if str(name) not in (options := _embedded_drafters(prefix)):
            raise MMSpecError(f"embedded drafter {name!r} is unknown.{did_you_mean(name, options)}")
        return str(EMBEDDED / prefix / embedded)
    if "/" not in str(name) or Path(name).is_absolute() or str(name).startswith("."):
        options = [*EMBEDDED_TARGETS] if kind == "target" else _embedded_drafters(*EMBEDDED_TARGETS)
        if kind == "drafter" and (call := made_without_weights(str(name))) is not None:
            raise MMSpecError(f"drafter {str(name)!r} is not loaded but made: {call}")
        raise MMSpecError(
            f"{kind} {str(name)!r} is neither an embedded name, nor an existing folder, nor a hub id "
            f"(owner/name).{did_you_mean(str(name), options)}"
        )
    return str(name)


def _embedded_drafters(*targets: str) -> list[str]:
    """Return the names of the drafters that ship for some embedded targets, such as `tiny/eagle3`."""
    folders = (path for target in targets for path in sorted((EMBEDDED / target).glob("*/")))
    return [f"{path.parent.name}/{path.name}" for path in folders if path.name != "target"]


def made_without_weights(name: str) -> str | None:
    """Return the call that makes what an option `drafter=NAME` does, such as `mmspec.drafters.NGramDrafter(target)`;
    None for a name of other things: of an option that loads its weights, of a folder."""
    from .settings.groups import option_files  # which nothing else here needs
    from .settings.options import class_paths

    path = class_paths(option_files("generate", "drafter")).get(name, "")
    if not path or path == f"{__package__}.{load_drafter.__name__}":
        return None
    return f"{path}(target)" if hasattr(drafters, path.rpartition(".")[2]) else f"{path}(target, ...)"


def _reach(device: str | torch.device) -> None:
    """Refuse a device that does not exist, before anything is loaded for it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or no such accelerator
        raise MMSpecError(f"device {str(device)!r} is not there: {first_line(error)}") from error


@contextmanager
def _quiet(source: str) -> Iterator[None]:
    """Turn off transformers' progress bar for models that ship with mmspec, which load in a moment."""
    logging = transformers.utils.logging
    if not (Path(source).is_relative_to(EMBEDDED) and logging.is_progress_bar_enabled()):
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise MMSpecError(f"dtype {dtype!r} is unknown.{did_you_mean(str(dtype), names)}")
    return names[dtype]
