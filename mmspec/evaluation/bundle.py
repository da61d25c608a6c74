"""The folder that a run of `mmspec bench` writes: what was measured, on what, and every single record of it.

`manifest.json` says what was run and how it ended, `config.yaml` is the whole configuration, `requests.jsonl` has a
line per answer and `rounds.jsonl` one per round (`mmspec.evaluation.records` describes them). Records are written in
blocks: what all sides made of one request in one repeat. A block is complete or it is dropped when the run goes on, so
an interrupted run loses one block at most. After every block the manifest says how many blocks, answers and rounds
there are, so that a file that was cut is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.storage import LOCK, UNFINISHED, append, atomic_write_json, atomic_write_text, hold_folder, json_lines
from .records import AnswerRecord, Manifest, Reader, RoundRecord, Written, clean, read_text

FORMAT = 1
MANIFEST, CONFIG, REQUESTS, ROUNDS = "manifest.json", "config.yaml", "requests.jsonl", "rounds.jsonl"
ERROR = "error.txt"  # why a job of a sweep ended before it had a manifest
BEFORE = (LOCK, CONFIG, ERROR)  # what a run that was killed before it measured anything may have left
COMPLETE, RUNNING, INTERRUPTED, FAILED = "complete", "running", "interrupted", "failed"
CUT = "its files were cut or changed"
ROWS = {REQUESTS: ("ids", "prompt_tokens", "new_tokens", "first_tokens"), ROUNDS: ("drafted", "accepted", "emitted")}

HEADER, MANIFESTS = Reader(dict[str, Any]), Reader(Manifest)
READERS: dict[str, Reader] = {REQUESTS: Reader(AnswerRecord), ROUNDS: Reader(RoundRecord)}

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
        path, shown = folder / MANIFEST, repr(str(folder))
        if not path.exists():
            if folder.is_dir() and begun(folder):
                raise MMSpecError(
                    f"the run in {shown} ended before it had measured anything: give its command again, with "
                    f"--output {folder}"
                )
            what = "holds no bundle" if folder.is_dir() else "does not exist"
            raise MMSpecError(f"{shown} {what}: there is no {MANIFEST}; mmspec bench --output FOLDER writes one")
        header = HEADER.file(path)
        if (found := header.get("format")) != FORMAT:
            raise MMSpecError(
                f"the bundle {shown} has format {str(found)[:20]!r} (written by mmspec "
                f"{str(header.get('mmspec', 'unknown'))[:20]}), but this version reads format {FORMAT}: measure "
                "again, or report it with the version that wrote it"
            )
        manifest = MANIFESTS.file(path)
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

    def batch_of(self, record: Mapping[str, Any]) -> int:
        """Return the batch size at which an answer was measured."""
        batch = self.manifest["batch"]
        return record.get("batch", batch[0]) if isinstance(batch, list) else batch

    def by_batch(self) -> list[Bundle]:
        """Return a bundle for every batch size, with its answers alone; of a bundle of one size, itself."""
        batch = self.manifest["batch"]
        return [PartOfBundle(self, size) for size in dict.fromkeys(batch)] if isinstance(batch, list) else [self]

    @property
    def whole(self) -> Bundle:
        """The bundle as it lies in its folder."""
        return self

    def blocks(self) -> set[Block]:
        """Return the blocks in which every side has answered that did not fail, with all of their rounds."""
        return self._whole[0]

    @property
    def held(self) -> Written:
        """Number of records that there are."""
        return {"blocks": len(self.blocks()), "requests": len(self.requests), "rounds": len(self.rounds)}

    @cached_property
    def lost(self) -> str | None:
        """The records that the bundle held once and holds no more, in words; None if all is there.

        A run that was killed may hold one block more than its manifest says, and never less.
        """
        held: Mapping[str, Any] = self.held
        written, complete = self.manifest.get("written"), self.manifest["status"] == COMPLETE
        if written is None:  # a bundle of an older mmspec, which did not count
            return CUT if complete and not self._seems_whole() else None
        short = [f"{held[name]} of {written[name]} {name}" for name in held if held[name] < written[name]]
        if short:
            return f"{CUT}: they hold {', '.join(short)}"
        return f"{CUT}: they hold more than was written" if complete and held != written else None

    def _seems_whole(self) -> bool:
        """Return True if all requests are there, in every repeat."""
        places = Counter((request, turn) for request, turn, _ in self.blocks())
        everything = len({request for request, _ in places}) + len(self.manifest["skipped"])
        repeats = self.manifest["repeats"]
        return everything >= self.manifest["requests"] and all(found == repeats for found in places.values())

    @cached_property
    def _whole(self) -> tuple[set[Block], list[Record], list[Record]]:
        requests, rounds = self._records(REQUESTS), self._records(ROUNDS)
        engines = {side["label"]: side["engine"] for side in self.manifest["sides"]}
        needed = set(engines) - set(self.failures)
        single = {side["label"] for side in self.manifest["sides"] if side.get("one_row")}
        alone = {record["request"] for record in requests if self.batch_of(record) == 1}
        passes = Counter((_block(record), record["side"]) for record in rounds)
        answered: dict[Block, set[str]] = {}
        for record in requests:
            block, side = _block(record), record["side"]
            # transformers reports no rounds; every pass of our own loop is one.
            if engines[side] == "transformers" or passes[block, side] == record["passes"]:
                answered.setdefault(block, set()).add(side)
        whole = {
            block: sides
            for block, sides in answered.items()
            if sides >= (needed if block[0] in alone else needed - single)
        }
        answers, passed = (
            [record for record in records if record["side"] in whole.get(_block(record), ())]
            for records in (requests, rounds)
        )
        return set(whole), answers, passed

    def _records(self, name: str) -> list[Record]:
        """Return the records of a file, checked, without a last line that was torn."""
        path, labels = self.folder / name, {side["label"] for side in self.manifest["sides"]}
        records = list(READERS[name].lines(path))
        for number, record in enumerate(records, start=1):
            if record["side"] not in labels:
                raise MMSpecError(f"{path}, line {number}: {record['side']!r} is no method of this bundle")
            if (sizes := self.manifest["batch"]) != (size := record.get("batch", sizes)) and size not in sizes:
                raise MMSpecError(f"{path}, line {number}: batch {size} is no batch size of this bundle")
            rows = {len(record[key]) for key in ROWS[name]}
            if len(rows) > 1 or rows == {0}:
                raise MMSpecError(f"{path}, line {number}: {', '.join(ROWS[name])} must have an entry per prompt each")
        return records


class PartOfBundle(Bundle):
    """The answers of a bundle at one of its batch sizes, as a bundle; as whole as the bundle itself.

    Args:
        bundle: the whole.
        batch: batch size.
    """

    def __init__(self, bundle: Bundle, batch: int):
        super().__init__(bundle.folder, bundle.manifest | {"batch": batch})
        self._bundle = bundle

    @property
    def whole(self) -> Bundle:
        """The bundle with all of its batch sizes."""
        return self._bundle

    @cached_property
    def lost(self) -> str | None:
        """The records that the whole bundle holds no more, see `Bundle.lost`."""
        return self._bundle.lost

    @cached_property
    def _whole(self) -> tuple[set[Block], list[Record], list[Record]]:
        requests = [one for one in self._bundle.requests if self._bundle.batch_of(one) == self.manifest["batch"]]
        blocks = {_block(record) for record in requests}
        return blocks, requests, [one for one in self._bundle.rounds if _block(one) in blocks]


def begun(folder: Path) -> bool:
    """Return True if a run has left nothing but its beginnings in a folder: killed, or stopped by a full disk."""
    files = list(folder.iterdir())
    return bool(files) and all(
        file.name in BEFORE
        or file.name.endswith(UNFINISHED)
        or (file.name in (MANIFEST, REQUESTS, ROUNDS) and file.is_file() and not file.stat().st_size)
        for file in files
    )


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
        self.manifest = {"written": {"blocks": 0, "requests": 0, "rounds": 0}} | manifest
        if begun(self.folder):
            for name in (REQUESTS, ROUNDS):
                (self.folder / name).unlink(missing_ok=True)
        elif (self.folder / MANIFEST).exists():
            done = self._go_on(Bundle.open(self.folder))
        elif strangers := sorted(path.name for path in self.folder.iterdir() if path.name not in BEFORE):
            raise MMSpecError(f"{self.folder} holds {strangers[0]!r} and no bundle: choose an empty --output")
        with self._writing(CONFIG):
            atomic_write_text(self.folder / CONFIG, self.config)
        self.update(status=RUNNING, error=None)  # the manifest comes last: where it is, all else is
        return done

    def _go_on(self, bundle: Bundle) -> set[Block]:
        """Take over what a bundle of the same run holds; what is torn in its files is cut off."""
        theirs, ours = bundle.manifest, self.manifest
        if bundle.complete:
            raise MMSpecError(
                f"the bundle {self.folder} is complete: show it with mmspec report {self.folder}, or choose another "
                "--output"
            )
        for what, before, now in (
            ("configuration", read_text(self.folder / CONFIG), self.config),
            ("target's weights", theirs["target"]["fingerprint"], ours["target"]["fingerprint"]),
            ("methods", *([side["label"] for side in manifest["sides"]] for manifest in (theirs, ours))),
        ):
            if before != now:
                raise MMSpecError(
                    f"the bundle {self.folder} was begun with another {what}{_difference(before, now)}: go on with "
                    f"mmspec bench --resume {self.folder}, or choose another --output"
                )
        answered = Counter(record["side"] for record in bundle.requests)
        alone = {_block(record) for record in bundle.requests if bundle.batch_of(record) == 1}
        for old, side in zip(theirs["sides"], ours["sides"], strict=True):
            failed, due = old.get("failed"), len(alone if old.get("one_row") else bundle.blocks())
            if failed and (failed.get("final") or answered[side["label"]] < due):
                side["failed"] = failed
        ours |= {"started": theirs["started"], "skipped": theirs["skipped"], "written": bundle.held}
        for name, kept in ((ROUNDS, bundle.rounds), (REQUESTS, bundle.requests)):
            with self._writing(name):
                atomic_write_text(self.folder / name, json_lines(kept).decode())
        return bundle.blocks()

    def add(self, requests: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> None:
        """Write a block. The requests come last, because it is they that make a block complete."""
        for name, records in ((ROUNDS, rounds), (REQUESTS, requests)):
            with self._writing(name), (self.folder / name).open("ab", buffering=0) as file:
                append(file, json_lines(records))
        added = {"blocks": 1, "requests": len(requests), "rounds": len(rounds)}
        self.update(written={name: count + added[name] for name, count in self.manifest["written"].items()})

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


def _block(record: Mapping[str, Any]) -> Block:
    return record["request"], record["turn"], record["repeat"]


def _difference(before: Any, now: Any) -> str:
    """Return the first line in which two texts differ, or the two values."""
    if isinstance(before, str) and "\n" in before:
        pairs = zip(before.splitlines(), now.splitlines(), strict=False)
        before, now = next((pair for pair in pairs if pair[0] != pair[1]), ("shorter", "longer"))
    return f" ({str(before).strip()} then, {str(now).strip()} now)"
