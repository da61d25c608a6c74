"""Names and folders of the models that ship with mmspec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EMBEDDED = Path(__file__).parent / "zoo" / "weights"
"""Folder of what ships: a folder for each target, with the target's own files in `target`, and its drafters."""
EMBEDDED_TARGET = "tiny"
EMBEDDED_VIDEO_TARGET = "tiny-video"
EMBEDDED_TARGETS = (EMBEDDED_TARGET, EMBEDDED_VIDEO_TARGET)


def drafter_for(target: str | None, drafter: str) -> str:
    """Return the name of an embedded drafter for a target by name; for targets that do not ship, that of `tiny`."""
    return f"{target if target in EMBEDDED_TARGETS else EMBEDDED_TARGET}/{drafter}"


def with_own_questions(overrides: Sequence[str], group: str) -> list[str]:
    """Return overrides with the clips that ship as questions where the target that watches clips is chosen, and no
    questions are.

    Args:
        overrides: as on a command line.
        group: the group that chooses questions: `task` or `source`.
    """
    chosen = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    if chosen.get("target") != EMBEDDED_VIDEO_TARGET or group in chosen or "experiment" in chosen:
        return list(overrides)
    return [f"{group}={EMBEDDED_VIDEO_TARGET}", *overrides]
