"""Files that survive a kill and a full disk: replaced whole or not at all, read up to an incomplete end, held by one
writer.

A file that is written at once is written beside its place and then renamed. A file that grows by lines may end with an
incomplete line, which readers ignore and the next writer cuts off.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import MMSpecError

UNFINISHED = ".unfinished"
"""Ending of the name of a file that is being written; a file left behind belongs to a process that was killed."""

LOCK = ".lock"
"""Name of the file in a folder by which one process at a time holds the folder."""


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path to write to, whose file replaces `path` at the end; after an error the old file remains.

    Args:
        path: path of the file.
        shared: True if several processes or threads may write this file at the same moment.

    Raises:
        OSError: if it cannot be written.
    """
    mark = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    unfinished = path.with_name(f"{path.name}{mark}{UNFINISHED}")
    unfinished.unlink(missing_ok=True)  # in a folder from elsewhere it may be a link to anything
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # or a machine that loses its power may keep the name and lose what is in the file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a whole file in UTF-8, see `replacing`."""
    with replacing(path, shared) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def atomic_write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as the only JSON value of a file, see `replacing`."""
    atomic_write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None where the file does not hold a whole one (a writer was killed).

    Raises:
        OSError: if it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file with their line breaks, without an incomplete last line; an empty list if there is no
    file.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines[:-1]]  # what is behind the last line break is empty or torn


def drop_torn_line(path: Path) -> None:
    """Cut off an incomplete last line of a file, if there is one, so that lines can be appended.

    Raises:
        OSError: if it cannot be written.
    """
    if path.exists():
        end = sum(map(len, whole_lines(path)))
        if end < path.stat().st_size:
            os.truncate(path, end)


def append(file: BinaryIO, data: bytes) -> None:
    """Append to a file that was opened without a buffer; a full disk may accept only a part."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def json_lines(records: Iterable[Any]) -> bytes:
    """Return records as JSON, one per line, to write or to `append`."""
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder by what `write` puts into a path beside it; after an error the old folder remains.

    Between two renames there is no folder of this name; `restore_folder` helps if the process was killed there.

    Args:
        folder: folder, which need not exist.
        write: function that makes a folder at the path that it is given.

    Raises:
        OSError: if it cannot be written.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        write(fresh)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        restore_folder(folder)
        raise


def restore_folder(folder: Path) -> None:
    """Bring back the old folder if `replace_folder` was killed after it had moved that one away."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def hold_folder(folder: Path, way_out: str) -> FileLock:
    """Keep other processes from writing to a folder until the lock's `release()` or the end of the process.

    Args:
        folder: folder, which must exist.
        way_out: advice for a second process, in its error.

    Raises:
        MMSpecError: if another process (or another writer in this one) holds the folder.
        OSError: if the folder cannot be written.
    """
    return _hold(folder / LOCK, folder, way_out)


def hold_file(path: Path, way_out: str) -> FileLock:
    """Keep other processes from writing to a file, as `hold_folder` does for a folder; other files of its folder stay
    free."""
    return _hold(path.with_name(f".{path.name}{LOCK}"), path, way_out)


def _hold(lock_file: Path, what: Path, way_out: str) -> FileLock:
    if lock_file.is_symlink():
        raise MMSpecError(f"{lock_file} is a link, and is not opened: remove it")
    lock = FileLock(lock_file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise MMSpecError(f"{str(what)!r} is being written by another process: {way_out}") from None
    return lock
