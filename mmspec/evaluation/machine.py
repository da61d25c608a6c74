"""Describes what a measurement was made on: versions, machine, state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..models.weights import count_weights
from ..target import Target

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "hydra-core")


def circumstances(target: Target, name: str) -> dict[str, dict[str, Any]]:
    """Return what a measurement was made on, as the manifest of a bundle has it.

    Args:
        target: who answers.
        name: name of the target in the configuration.

    Returns:
        `git`, the revision of the checkout that mmspec runs from (None where it runs from an installed package);
            `versions` of Python and the packages that speed and text depend on; `machine`; and `target`.
    """
    device, folder = target.device, Path(__file__).resolve().parents[2]
    revision = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "git": {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain")) if revision else None},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(terse=True),
            "cpu": _processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": "cpu" if device.type == "cpu" else f"{device.type}: {on}",
        },
        "target": {
            "name": name,
            "class": type(target.model).__name__,
            "dtype": str(target.dtype).removeprefix("torch."),
            "fingerprint": target.fingerprint,
            "parameters": count_weights(target.model),
            "attention": target.attention,
        },
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
