"""Optional packages: the packages of each extra in `pyproject.toml`, and how a message names them."""

from __future__ import annotations

import re

EXTRAS = {
    "audio": ("soundfile",),
    "cluster": ("submitit", "hydra_submitit_launcher", "hydra-submitit-launcher"),
    "deepspeed": ("deepspeed",),
    "demo": ("gradio",),
    "ocr": ("rapidocr", "onnxruntime"),
    "server": ("httpx2",),
    "quantised": ("torchao", "bitsandbytes"),
    "trackers": ("tensorboard", "wandb"),
    "video": ("av",),
    "vision": ("torchvision",),
}
"""Extras with the packages that they install and that mmspec, or transformers for it, may need."""


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra. mmspec is installed from its checkout, not from a package index."""
    return f"pip install -e '.[{extra}]' in the checkout of mmspec"


def missing(what: str, package: str) -> str:
    """Return the line that says what needs a package that is not installed, and how to install it.

    Args:
        what: the part that needs the package, such as `"mmspec demo"`.
        package: name by which the package is imported or installed, such as `"gradio"`.
    """
    extra = extra_of(package)
    way = f"pip install {package}" if extra is None else how_to_install(extra)
    return f"{what} needs {package}, which is not installed: {way}"


def extra_of(package: str) -> str | None:
    """Return the extra that installs a package; None if there is none."""
    name = package.partition(".")[0].lower()
    return next((extra for extra, packages in EXTRAS.items() if name in packages), None)


def wanted_by(error: BaseException) -> str | None:
    """Return the package whose absence caused an error: that of an `ImportError`, or the package of an extra that its
    text calls missing; None for any other error."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    said = str(error).lower()
    if not isinstance(error, ImportError) and not re.search(r"not (installed|found|available)|requires|install", said):
        return None
    named = (package for packages in EXTRAS.values() for package in packages)
    return next((package for package in named if re.search(rf"\b{re.escape(package)}\b", said)), None)
