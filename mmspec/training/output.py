"""The output folder of a training: which training it holds, the state to resume from, and who may write to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import nn

from ..drafters import Drafter
from ..errors import MMSpecError
from ..files.identity import differences
from ..files.storage import atomic_write_json, hold_folder, read_json_object, restore_folder
from .sharding import is_sharded, read_shards, write_shards
from .state import STATE, read_state, save_folder, write_state

IDENTITY = "training.json"
BEST, LAST_DRAFTER = "best", "last"
SHARDED, PROGRESS = "state", "progress.json"
"""Folder of a state that every process writes a part of, and the file in it with the progress."""


class OutputFolder:
    """The output of one training. The process of rank 0 alone writes to it.

    Args:
        folder: where the output is written; created if missing.
        accelerator: Hugging Face accelerate's object, which knows about processes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder, self.accelerator = folder, accelerator
        self._lock: FileLock | None = None

    def hold(self) -> None:
        """Keep other processes from training into the folder.

        Raises:
            MMSpecError: if another process does already.
        """
        if self._lock is None and self.accelerator.is_main_process:
            with self.writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = hold_folder(self.folder, "wait for it, or choose another output folder")

    def release(self) -> None:
        """Let other processes train into the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the operating system into one that names the folder."""
        try:
            yield
        except OSError as error:
            raise MMSpecError(f"the output folder {str(self.folder)!r} cannot be written: {error}") from error

    def claim(self, identity: dict[str, Any]) -> None:
        """Hold the folder for a training.

        Args:
            identity: plain values that tell this training from others.

        Raises:
            MMSpecError: if the folder holds another training, or another process trains into it.
        """
        path, identity = self.folder / IDENTITY, json.loads(json.dumps(identity))
        self.hold()
        with self.writing():
            if self.accelerator.is_main_process:
                for name in (BEST, LAST_DRAFTER, SHARDED):
                    restore_folder(self.folder / name)
                # One that was killed, or found the disk full, before its first step may have left half a file.
                if not path.exists() or (read_json_object(path) is None and not self._has_state()):
                    atomic_write_json(path, identity)
            self.accelerator.wait_for_everyone()
            found = read_json_object(path)
        if found is None:
            raise MMSpecError(
                f"{str(path)!r} is damaged, so the settings of the training beside it are unknown: delete that "
                "file to go on with the settings that you give now, or choose another output folder"
            )
        if differing := differences(found, identity):
            raise MMSpecError(
                f"{str(self.folder)!r} holds another training: {'; '.join(differing)}. Resume it with its own "
                "settings, or choose another output folder"
            )

    def save(
        self, trainee: nn.Module, drafter: Drafter, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Write the state to resume from; an interruption leaves the last one complete.

        Where the weights are divided among the processes, each writes its part into a folder; else one writes a file.
        Either can be resumed from in both ways.

        Args:
            trainee: the module that accelerate prepared.
            drafter: the drafter in it.
            optimizer: the optimizer, as torch knows it.
            progress: plain values to be read again.
        """
        first = self.accelerator.is_main_process
        if is_sharded(self.accelerator):
            fresh = self.folder / f"{SHARDED}.unfinished"
            if first:
                shutil.rmtree(fresh, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            write_shards(fresh, trainee, optimizer)
            if first:
                atomic_write_json(fresh / PROGRESS, progress)
                save_folder(self.folder / SHARDED, fresh.rename)
                (self.folder / STATE).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
        elif first:
            write_state(self.folder / STATE, drafter, optimizer, progress)
            shutil.rmtree(self.folder / SHARDED, ignore_errors=True)

    def load(self, trainee: nn.Module, drafter: Drafter, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Read the saved state, and return the progress that was saved with it; None if there is none. The arguments
        are those of `save`."""
        if (self.folder / STATE).exists():
            divided = trainee if is_sharded(self.accelerator) else None
            return read_state(self.folder / STATE, drafter, optimizer, divided)
        if (self.folder / SHARDED / PROGRESS).exists():
            progress = read_json_object(self.folder / SHARDED / PROGRESS)
            if progress is None:
                raise MMSpecError(
                    f"the checkpoint {str(self.folder / SHARDED)!r} is damaged: its {PROGRESS} cannot be read; delete "
                    "it to begin again, or choose another output folder"
                )
            read_shards(self.folder / SHARDED, trainee, optimizer)
            return progress
        return None

    def _has_state(self) -> bool:
        return (self.folder / STATE).exists() or (self.folder / SHARDED / PROGRESS).exists()
