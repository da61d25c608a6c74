"""Parts: an experiment that is several runs, such as one greedy and one that samples, each with a bundle of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import configuration
from ..errors import MMSpecError
from .bench import EXPERIMENT, Settings, complete


def parts_of(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, list[str]]:
    """The runs that a command stands for, by name; none for a command that is one run.

    What was typed holds for all parts: one whose own settings say otherwise is left out, so that `dtype=bfloat16` runs
    those of `experiment=full` that are in bfloat16, and those that do not say.

    Args:
        overrides: as on the command line of `mmspec bench`.
        config_dir: a folder of the user's own configurations.

    Raises:
        MMSpecError: if nothing is left, or a part is no list of overrides.
    """
    overrides = complete(overrides)
    config = configuration.compose("bench", overrides, config_dir)
    parts = configuration.typed(config, Settings).parts
    if not parts:
        return {}
    typed = dict(map(_split, overrides))
    chosen = typed.pop("experiment", None)
    runs = {}
    for name, line in parts.items():
        own = dict(map(_split, _words(name, line)))
        experiment = own.pop("experiment", chosen)
        if all(typed.get(key, value) == value for key, value in own.items()):
            settings = {**own, **typed, "parts": "null"}
            runs[name] = [f"{EXPERIMENT}{experiment}"] if experiment is not None else []
            runs[name] += [f"{key}={value}" for key, value in settings.items()]
    if not runs:
        own = "; ".join(f"{name}: {line}" for name, line in parts.items())
        raise MMSpecError(f"no part goes with {' '.join(overrides)}. The parts are {own}")
    return runs


def _words(name: str, line: Any) -> list[str]:
    words = line.split() if isinstance(line, str) else []
    if not words or not all("=" in word for word in words):
        raise MMSpecError(f"part {name!r} is {line!r}: it must be overrides, such as 'sampling=sampled dtype=bfloat16'")
    return words


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value
