"""The folder that a run of `mmspec bench` writes: what was measured, on what, and every single record of it.

`manifest.json` says what was run and how it ended, `config.yaml` is the whole configuration, `requests.jsonl` has a
line per answer and `rounds.jsonl` one per round. Records are written in blocks: what all sides made of one request in
one repeat. A block is complete or it is dropped when the run goes on, so an interrupted run loses one block at most.
After every block the manifest says how many blocks, answers and rounds there are, so that a file that was cut is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.storage import LOCK, UNFINISHED, append, atomic_write_json, atomic_write_text, hold_folder, json_lines
from .reading import clean, read_lines, read_object, read_text
from .schema import MANIFEST as MANIFEST_SHAPE
from .schema import REQUEST, ROUND, require

FORMAT = 1
MANIFEST, CONFIG, REQUESTS, ROUNDS = "manifest.json", "config.yaml", "requests.jsonl", "rounds.jsonl"
ERROR = "error.txt"  # why a job of a sweep ended before it had a manifest
BEFORE = (LOCK, CONFIG, ERROR)  # what a run that was killed before it measured anything may have left
COMPLETE, RUNNING, INTERRUPTED, FAILED = "complete", "running", "interrupted", "failed"
CUT = "its files were cut or changed"

Record = dict[str, Any]
Block = tuple[int, int, int]
"""Number of the request, turn of the conversation, repeat."""


class Bundle:
    """A bundle for reading. It may come from anywhere: what is strange in it is refused in one line.

    Args:
        folder: the folder it is in.
        manifest: the contents of its `manifest.json`.
    """

    def __init__(self, folder: Path, manifest: Record):
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open the bundle in a folder.

        Raises:
            MMSpecError: if there is none, it cannot be read, or another version of mmspec wrote it in another format.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            if folder.is_dir() and begun(folder):
                raise MMSpecError(
                    f"the run in {str(folder)!r} ended before it had measured anything: give its command again, with "
                    f"--output {folder}"
                )
            what = "holds no bundle" if folder.is_dir() else "does not exist"
            raise MMSpecError(
                f"{str(folder)!r} {what}: there is no {MANIFEST}; mmspec bench --output FOLDER writes one"
            )
        manifest = read_object(path)
        found = manifest.get("format")
        if found != FORMAT:
            raise MMSpecError(
                f"the bundle {str(folder)!r} has format {str(found)[:20]!r} (written by mmspec "
                f"{str(manifest.get('mmspec', 'unknown'))[:20]}), but this version reads format {FORMAT}: measure "
                "again, or report it with the version that wrote it"
            )
        require(manifest, MANIFEST_SHAPE, str(path))
        labels = [side["label"] for side in manifest["sides"]]
        if not labels or len(set(labels)) < len(labels):
            raise MMSpecError(f"{path}: sides must be methods of different names, and they are {labels}")
        return cls(folder, clean(manifest, ("overrides", "config_dir")))

    @property
    def complete(self) -> bool:
        """True if everything was measured and all of it is still there."""
        return self.manifest["status"] == COMPLETE and self.lost is None

    @property
    def failures(self) -> dict[str, str]:
        """Why sides have no figures, by their labels."""
        return {side["label"]: side["failed"]["reason"] for side in self.manifest["sides"] if side.get("failed")}

    @property
    def requests(self) -> list[Record]:
        """The records of `requests.jsonl`, in complete blocks only."""
        return self._whole[1]

    @property
    def rounds(self) -> list[Record]:
        """The records of `rounds.jsonl`, of complete blocks only."""
        return self._whole[2]

    def blocks(self) -> set[Block]:
        """Return the blocks in which every side has answered that did not fail, with all of their rounds."""
        return self._whole[0]

    @cached_property
    def lost(self) -> str | None:
        """The records that the bundle held once and holds no more, in words; None if all is there.

        A run that was killed may hold one block more than its manifest says, and never less.
        """
        held = {"blocks": len(self.blocks()), "requests": len(self.requests), "rounds": len(self.rounds)}
        written = self.manifest.get("written")
        if written is None:
            return None if self.manifest["status"] != COMPLETE or self._seems_whole() else CUT
        short = [f"{held[name]} of {written[name]} {name}" for name in held if held[name] < written[name]]
        if short:
            return f"{CUT}: they hold {', '.join(short)}"
        if self.manifest["status"] == COMPLETE and held != written:
            return f"{CUT}: they hold more than was written"
        return None

    def _seems_whole(self) -> bool:
        """Return True if a bundle of an older mmspec, which did not count, has all requests in every repeat."""
        repeats: dict[int, set[tuple[int, int]]] = {number: set() for number in range(self.manifest["repeats"])}
        for request, turn, repeat in self.blocks():
            repeats.setdefault(repeat, set()).add((request, turn))
        first = repeats.get(0, set())
        asked = len({request for request, _ in first})
        everything = asked + len(self.manifest["skipped"]) >= self.manifest["requests"]
        return everything and all(one == first for one in repeats.values())

    @cached_property
    def _whole(self) -> tuple[set[Block], list[Record], list[Record]]:
        requests = self._records(REQUESTS, REQUEST)
        rounds = self._records(ROUNDS, ROUND)
        engines = {side["label"]: side["engine"] for side in self.manifest["sides"]}
        needed = set(engines) - set(self.failures)
        count = Counter((_block(record), record["side"]) for record in rounds)
        answered: dict[Block, set[str]] = {}
        whole = []
        for record in requests:
            key = _block(record), record["side"]
            # transformers reports no rounds; every pass of our own loop is one.
            if engines[record["side"]] == "transformers" or count[key] == record["passes"]:
                answered.setdefault(key[0], set()).add(key[1])
                whole.append(record)
        blocks = {block for block, found in answered.items() if found >= needed}
        return (
            blocks,
            [record for record in whole if _block(record) in blocks],
            [one for one in rounds if _block(one) in blocks and one["side"] in answered[_block(one)]],
        )

    def _records(self, name: str, shape: Record) -> list[Record]:
        """Return the records of a file, checked, without a last line that was torn."""
        path, labels = self.folder / name, {side["label"] for side in self.manifest["sides"]}
        records = []
        for number, record in enumerate(read_lines(path), start=1):
            require(record, shape, f"{path}, line {number}")
            record |= clean({key: record[key] for key in ("side", "task", "ids", "metric") if key in record})
            if record["side"] not in labels:
                raise MMSpecError(f"{path}, line {number}: {record['side']!r} is no method of this bundle")
            rows = [record[key] for key in ROWS[name]]
            if len({len(row) for row in rows}) > 1 or not rows[0]:
                raise MMSpecError(f"{path}, line {number}: {', '.join(ROWS[name])} must have an entry per prompt each")
            records.append(record)
        return records


ROWS = {REQUESTS: ("ids", "prompt_tokens", "new_tokens", "first_tokens"), ROUNDS: ("drafted", "accepted", "emitted")}


def begun(folder: Path) -> bool:
    """Return True if a run has left nothing but its beginnings in a folder: killed, or stopped by a full disk."""
    names = {path.name for path in folder.iterdir()}
    ours = {name for name in names if name in BEFORE or name.endswith(UNFINISHED)}
    if MANIFEST in names and not _empty(folder / MANIFEST):
        return False
    empty = {name for name in (MANIFEST, REQUESTS, ROUNDS) if name in names and _empty(folder / name)}
    return bool(names) and names == ours | empty


def _empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


class BundleWriter:
    """Writes a bundle, or goes on with one; a context manager that holds the folder's lock.

    Args:
        folder: where the bundle is written; made if it does not exist.
        config: the resolved configuration, as YAML.
    """

    def __init__(self, folder: str | Path, config: str):
        self.folder, self.config = Path(folder), config
        self.manifest: Record = {}

    def __enter__(self) -> BundleWriter:
        with self._writing("the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold_folder(self.folder, "wait for it, or choose another --output")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def begin(self, manifest: Record) -> set[Block]:
        """Begin the bundle, or go on with what is there; return the blocks that are done.

        A side that failed is tried again if it has answered in every block that is there, and rightly. Any other stays
        failed: in the blocks that it lacks it would be timed at another moment than what it is compared with.

        Raises:
            MMSpecError: if the folder holds something else, a complete bundle, or one of other settings.
        """
        done: set[Block] = set()
        if begun(self.folder):
            for name in (REQUESTS, ROUNDS):
                (self.folder / name).unlink(missing_ok=True)
        elif (self.folder / MANIFEST).exists():
            done = self._go_on(Bundle.open(self.folder), manifest)
        elif strangers := sorted(path.name for path in self.folder.iterdir() if path.name not in BEFORE):
            raise MMSpecError(f"{self.folder} holds {strangers[0]!r} and no bundle: choose an empty --output")
        self.manifest = {"written": {"blocks": 0, "requests": 0, "rounds": 0}} | manifest
        with self._writing(CONFIG):
            atomic_write_text(self.folder / CONFIG, self.config)
        self.update(status=RUNNING, error=None)  # the manifest comes last: where it is, all else is
        return done

    def _go_on(self, bundle: Bundle, manifest: Record) -> set[Block]:
        if bundle.complete:
            raise MMSpecError(
                f"the bundle {self.folder} is complete: show it with mmspec report {self.folder}, or choose another "
                "--output"
            )
        for what, theirs, ours in (
            ("configuration", read_text(self.folder / CONFIG), self.config),
            ("target's weights", bundle.manifest["target"]["fingerprint"], manifest["target"]["fingerprint"]),
            ("methods", [side["label"] for side in bundle.manifest["sides"]], [s["label"] for s in manifest["sides"]]),
        ):
            if theirs != ours:
                raise MMSpecError(
                    f"the bundle {self.folder} was begun with another {what}{_difference(theirs, ours)}: go on with "
                    f"mmspec bench --resume {self.folder}, or choose another --output"
                )
        blocks = bundle.blocks()
        manifest["started"] = bundle.manifest["started"]
        manifest["skipped"] = bundle.manifest["skipped"]
        answered = Counter(record["side"] for record in bundle.requests)
        for old, side in zip(bundle.manifest["sides"], manifest["sides"], strict=True):
            failed = old.get("failed")
            if failed and (failed.get("final") or answered[side["label"]] < len(blocks)):
                side["failed"] = failed
        records = ((ROUNDS, bundle.rounds), (REQUESTS, bundle.requests))
        counts = {"blocks": len(blocks), "requests": len(bundle.requests), "rounds": len(bundle.rounds)}
        manifest["written"] = counts
        for name, kept in records:
            with self._writing(name):
                atomic_write_text(self.folder / name, json_lines(kept).decode())
        return blocks

    def add(self, requests: Sequence[Record], rounds: Sequence[Record]) -> None:
        """Write a block. The requests come last, because it is they that make a block complete."""
        for name, records in ((ROUNDS, rounds), (REQUESTS, requests)):
            with self._writing(name), (self.folder / name).open("ab", buffering=0) as file:
                append(file, json_lines(records))
        written = self.manifest["written"]
        added = {"blocks": 1, "requests": len(requests), "rounds": len(rounds)}
        self.update(written={name: written[name] + added[name] for name in added})

    def fail(self, label: str, failed: Record) -> None:
        """Note that a side cannot go on, and why; this comes before the block in which it failed."""
        sides = [side | {"failed": failed} if side["label"] == label else side for side in self.manifest["sides"]]
        self.update(sides=sides)

    def update(self, **changes: Any) -> None:
        """Change entries of the manifest."""
        self.manifest |= changes
        with self._writing(MANIFEST):
            atomic_write_json(self.folder / MANIFEST, self.manifest, indent=1)

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


def _difference(theirs: Any, ours: Any) -> str:
    """Return the first line in which two texts differ, or the two values."""
    if isinstance(theirs, str) and "\n" in theirs:
        pairs = zip(theirs.splitlines(), ours.splitlines(), strict=False)
        theirs, ours = next((pair for pair in pairs if pair[0] != pair[1]), ("shorter", "longer"))
    return f" ({str(theirs).strip()} then, {str(ours).strip()} now)"
