"""The folder that a run of `mmspec bench` writes: what was measured, on what, and every single record of it.

`manifest.json` says what was run and how it ended, `config.yaml` is the whole configuration, `requests.jsonl` has a
line per answer and `rounds.jsonl` one per round. Records are written in blocks: what all sides made of one request in
one repeat. A block is complete or it is dropped when the run goes on, so an interrupted run loses one block at most.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import MMSpecError

try:
    import fcntl
except ImportError:  # Windows: nobody stops a second process from writing to the same folder
    fcntl = None

FORMAT = 1
MANIFEST, CONFIG, REQUESTS, ROUNDS, LOCK = "manifest.json", "config.yaml", "requests.jsonl", "rounds.jsonl", ".lock"
ERROR = "error.txt"  # why a job of a sweep ended before it had a manifest
COMPLETE, RUNNING, INTERRUPTED, FAILED = "complete", "running", "interrupted", "failed"

Record = dict[str, Any]
Block = tuple[int, int, int]
"""Number of the request, turn of the conversation, repeat."""


class Bundle:
    """What a run has left, for reading.

    Args:
        folder: of the bundle.
        manifest: the contents of its `manifest.json`.
    """

    def __init__(self, folder: Path, manifest: Record):
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """The bundle in a folder.

        Raises:
            MMSpecError: if there is none, it cannot be read, or another version of mmspec wrote it in another format.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            what = "holds no bundle" if folder.is_dir() else "does not exist"
            raise MMSpecError(
                f"{str(folder)!r} {what}: there is no {MANIFEST}; mmspec bench --output FOLDER writes one"
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MMSpecError(f"{path} cannot be read: {error}") from None
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise MMSpecError(
                f"the bundle {str(folder)!r} has format {found!r} (written by mmspec "
                f"{manifest.get('mmspec', 'unknown') if isinstance(manifest, dict) else 'unknown'}), but this version "
                f"reads format {FORMAT}: measure again, or report it with the version that wrote it"
            )
        return cls(folder, manifest)

    @property
    def complete(self) -> bool:
        return self.manifest["status"] == COMPLETE

    @cached_property
    def requests(self) -> list[Record]:
        """The records of `requests.jsonl`, in complete blocks only."""
        blocks = self.blocks()
        return [record for record in _lines(self.folder / REQUESTS) if _block(record) in blocks]

    @cached_property
    def rounds(self) -> list[Record]:
        """The records of `rounds.jsonl`, of complete blocks only."""
        blocks = self.blocks()
        return [record for record in _lines(self.folder / ROUNDS) if _block(record) in blocks]

    def blocks(self) -> set[Block]:
        """The blocks in which every side has answered."""
        answered: dict[Block, set[str]] = {}
        for record in _lines(self.folder / REQUESTS):
            answered.setdefault(_block(record), set()).add(record["side"])
        sides = {side["label"] for side in self.manifest["sides"]}
        return {block for block, found in answered.items() if found == sides}


class BundleWriter:
    """Writes a bundle, or goes on with one; a context manager that holds the folder's lock.

    Args:
        folder: of the bundle; made if it does not exist.
        config: the resolved configuration, as YAML.
    """

    def __init__(self, folder: str | Path, config: str):
        self.folder, self.config = Path(folder), config
        self.manifest: Record = {}

    def __enter__(self) -> BundleWriter:
        with self._writing("the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("a")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise MMSpecError(
                    f"{self.folder} is being written by another process: wait for it, or choose another --output"
                ) from None
            except OSError:
                pass  # a file system without locks
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    def begin(self, manifest: Record) -> set[Block]:
        """Begin the bundle, or go on with what is there; return the blocks that are done.

        Raises:
            MMSpecError: if the folder holds something else, a complete bundle, or one of other settings.
        """
        done: set[Block] = set()
        if (self.folder / MANIFEST).exists():
            done = self._go_on(Bundle.open(self.folder), manifest)
        elif strangers := sorted(path.name for path in self.folder.iterdir() if path.name not in (LOCK, ERROR)):
            raise MMSpecError(f"{self.folder} holds {strangers[0]!r} and no bundle: choose an empty --output")
        self.manifest = manifest
        with self._writing(CONFIG):
            (self.folder / CONFIG).write_text(self.config, encoding="utf-8")
        self.update(status=RUNNING, error=None)
        return done

    def _go_on(self, bundle: Bundle, manifest: Record) -> set[Block]:
        if bundle.complete:
            raise MMSpecError(
                f"the bundle {self.folder} is complete: show it with mmspec report {self.folder}, or choose another "
                "--output"
            )
        for what, theirs, ours in (
            ("configuration", (self.folder / CONFIG).read_text(encoding="utf-8"), self.config),
            ("target's weights", bundle.manifest["target"]["fingerprint"], manifest["target"]["fingerprint"]),
            ("methods", [side["label"] for side in bundle.manifest["sides"]], [s["label"] for s in manifest["sides"]]),
        ):
            if theirs != ours:
                raise MMSpecError(
                    f"the bundle {self.folder} was begun with another {what}{_difference(theirs, ours)}: go on with "
                    f"mmspec bench --resume {self.folder}, or choose another --output"
                )
        manifest["started"] = bundle.manifest["started"]
        manifest["skipped"] = bundle.manifest["skipped"]
        for name, records in ((ROUNDS, bundle.rounds), (REQUESTS, bundle.requests)):
            with self._writing(name):
                unfinished = self.folder / f"{name}.unfinished"
                unfinished.write_bytes(_encoded(records))
                unfinished.replace(self.folder / name)
        return bundle.blocks()

    def add(self, requests: Iterable[Record], rounds: Iterable[Record]) -> None:
        """Write a block. The requests come last, because it is they that make a block complete."""
        for name, records in ((ROUNDS, rounds), (REQUESTS, requests)):
            with self._writing(name), (self.folder / name).open("ab", buffering=0) as file:
                data = memoryview(_encoded(records))
                while data:  # a disk may take a part only
                    data = data[file.write(data) :]

    def update(self, **changes: Any) -> None:
        """Change entries of the manifest."""
        self.manifest |= changes
        with self._writing(MANIFEST):
            unfinished = self.folder / f"{MANIFEST}.unfinished"
            unfinished.write_text(json.dumps(self.manifest, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(self.folder / MANIFEST)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MMSpecError(
                f"{self.folder}: {name} cannot be written: {error.strerror or error}; all that was measured before is "
                f"kept, so put it right (free some space?) and go on with mmspec bench --resume {self.folder}"
            ) from error


def _block(record: Record) -> Block:
    return record["request"], record["turn"], record["repeat"]


def _encoded(records: Iterable[Record]) -> bytes:
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()


def _lines(path: Path) -> list[Record]:
    """The records of a file of JSON lines, without a last line that was torn."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if line.endswith(b"\n"):
                raise MMSpecError(
                    f"{path}, line {number} is not JSON: the file was changed or the disk failed"
                ) from None
    return records


def _difference(theirs: Any, ours: Any) -> str:
    """The first line in which two texts differ, or the two values."""
    if isinstance(theirs, str) and "\n" in theirs:
        pairs = zip(theirs.splitlines(), ours.splitlines(), strict=False)
        theirs, ours = next((pair for pair in pairs if pair[0] != pair[1]), ("shorter", "longer"))
    return f" ({str(theirs).strip()} then, {str(ours).strip()} now)"
