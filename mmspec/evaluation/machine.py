"""Describes what a measurement was made on: versions, machine, state of the code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..target import Target

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "hydra-core")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return system, processor, threads and device."""
    name = "cpu" if device.type == "cpu" else f"{device.type}: {_device_name(device)}"
    return {
        "system": platform.platform(terse=True),
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that speed and text depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_target(target: Target, name: str) -> dict[str, Any]:
    """Return which model answered."""
    return {
        "name": name,
        "class": type(target.model).__name__,
        "dtype": str(target.dtype).removeprefix("torch."),
        "fingerprint": target.fingerprint,
        "parameters": sum(parameter.numel() for parameter in target.model.parameters()),
        "attention": target.attention,
    }


def describe_code() -> dict[str, Any]:
    """Return the git revision of the checkout that mmspec runs from; None where it runs from an installed package."""
    folder = Path(__file__).resolve().parents[2]
    revision = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain")) if revision else None}


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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
