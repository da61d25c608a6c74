"""Write one shard of a folder of answers, safe against kills, full disks, other settings and other processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..data.rows import JsonLines
from ..errors import MMSpecError
from ..files.identity import content_hash, differences
from ..files.storage import append, atomic_write_json, drop_torn_line, hold_file, json_lines, replacing
from .answers import PICTURES, SAVED, read_info, shard_files

if TYPE_CHECKING:
    from PIL.Image import Image


class ShardWriter:
    """Adds answers to a shard. As a context manager it locks the shard against other processes.

    Entering it cuts off an incomplete last line that a killed process left, and reads the answers that are there
    already.

    Args:
        folder: where the data set is written; created if missing.
        shard, shards: number of this shard, and how many there are.
        settings: plain JSON values that all answers of the data set have in common.
        facts: plain JSON values to note beside them, which may differ from run to run.

    Raises:
        MMSpecError: if another process is writing the shard, if the folder holds answers given under other settings, or
            if a file cannot be written, in which case all that was written before is kept.
    """

    def __init__(self, folder: Path, shard: int, shards: int, settings: dict[str, Any], facts: dict[str, Any]):
        self.folder, self.facts = folder, facts
        self.settings = json.loads(json.dumps(settings))  # as it will be read again
        self.answers_file, self.skipped_file, self.info_file = shard_files(folder, shard, shards)
        self.answered: set[int] = set()
        self.skipped: set[int] = set()
        self.tokens = 0
        self._file: BinaryIO | None = None
        self.complete = False
        """True when no example of the shard is left, see `finish`."""

    def __enter__(self) -> ShardWriter:
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold_file(self.answers_file, "wait for it, or choose another shard or folder")
        try:
            with _writing(self.folder):
                self._file = self.answers_file.open("ab", buffering=0)
            self._check_settings()
            for row in _whole_rows(self.answers_file):
                self.answered.add(row["index"])
                self.tokens += len(row.get("answer_ids") or ())
            self.skipped = {row["index"] for row in _whole_rows(self.skipped_file)}
            self._write_info()
        except BaseException:
            self._close()
            raise
        return self

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error, most of all one of writing, that one is to be heard and not the next.
        try:
            with suppress(MMSpecError) if kind else nullcontext():
                self._write_info()
        finally:
            self._close()

    def _check_settings(self) -> None:
        empty = not any(file.exists() and file.stat().st_size for file in (self.answers_file, self.skipped_file))
        for file in sorted(self.folder.glob("distill-*.json")):
            if empty and file == self.info_file:
                continue
            if differing := differences(read_info(file)["settings"], self.settings):
                raise MMSpecError(
                    f"the answers in {self.folder} were given under other settings: {'; '.join(differing)}; go on with "
                    "the same settings, write to another folder, or delete this one"
                )
        if not empty and not self.info_file.exists():
            raise MMSpecError(
                f"{self.info_file} is missing, so the settings of the answers beside it are unknown: write to another "
                "folder, or delete this one"
            )

    def has(self, indices: Iterable[int]) -> bool:
        """Return True if all these examples are answered or skipped."""
        return all(index in self.answered or index in self.skipped for index in indices)

    def finish(self) -> None:
        """Mark the shard as complete, with its rows in the order of the source, in whatever order they came."""
        for file in (self.answers_file, self.skipped_file):
            with _writing(file):
                _put_in_order(file)
        self.complete = True

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Write the records of finished answers."""
        assert self._file is not None, "enter the writer first"
        records = list(records)
        with _writing(self.answers_file):
            append(self._file, json_lines(records))
        self.answered.update(record["index"] for record in records)
        self.tokens += sum(len(record["answer_ids"]) for record in records)

    def skip(self, index: int, name: str | None, reason: str) -> None:
        """Record an example that cannot be asked."""
        with _writing(self.skipped_file), self.skipped_file.open("ab", buffering=0) as file:
            append(file, json_lines([{"index": index, "id": name, "reason": reason}]))
        self.skipped.add(index)

    def save_picture(self, image: Image) -> str:
        """Save a PIL picture that is no file, and return the reference to it; the same picture is saved once."""
        name = content_hash(f"{image.size}".encode() + image.tobytes()) + ".png"
        return self._save(name, lambda path: image.save(path, format="PNG"))

    def save_file(self, content: bytes) -> str:
        """Save the bytes of a video or a sound that is no file, and return the reference to it."""
        return self._save(content_hash(content), lambda path: path.write_bytes(content))

    def _save(self, name: str, write: Callable[[Path], object]) -> str:
        path = self.folder / PICTURES / name
        if not path.exists():
            with _writing(path):
                path.parent.mkdir(exist_ok=True)
                with replacing(path, shared=True) as unfinished:
                    write(unfinished)
        return f"{SAVED}{name}"

    def _write_info(self) -> None:
        counts = {"answers": len(self.answered), "skipped": len(self.skipped), "tokens": self.tokens}
        info = {**self.facts, "settings": self.settings, **counts, "complete": self.complete}
        with _writing(self.info_file):
            atomic_write_json(self.info_file, info)


def _whole_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, after cutting off an incomplete last line."""
    if not file.exists():
        return
    with _writing(file):
        drop_torn_line(file)
    rows = JsonLines(file, whole_lines=True)
    for number, row in enumerate(rows.scan(), start=1):
        if type(row.get("index")) is not int:
            raise MMSpecError(f"{file}, row {number} has no index: delete the row, to answer it again")
        yield row


def _put_in_order(file: Path) -> None:
    """Replace a file of records by one in which they stand in the order of their examples."""
    if not file.exists():
        return
    rows = JsonLines(file)
    indices = [row["index"] for row in rows.scan()]
    if indices == sorted(indices):
        return
    with replacing(file) as unfinished, unfinished.open("wb") as ordered, file.open("rb") as old:
        for number in sorted(range(len(indices)), key=indices.__getitem__):
            old.seek(rows.starts[number])
            ordered.write(old.read(rows.ends[number] - rows.starts[number]))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MMSpecError(
            f"{path} cannot be written: {error.strerror or error}; all answers before are kept, so solve that (free "
            "some space?) and run the same command again"
        ) from error
