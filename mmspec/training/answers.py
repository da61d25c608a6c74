"""The folder of answers that `mmspec distill` writes and training reads.

A data set is written by one process or by several at once, one per shard. Shard 0 of 4 owns

- `answers-00000-of-00004.jsonl`: a record per answer, as `mmspec.data.to_record` makes it, with the `index` of the
  example in its source and the `finish_reason` besides;
- `skipped-00000-of-00004.jsonl`, if any: `index`, `id` and `reason` of each example that could not be asked;
- `distill-00000-of-00004.json`: the settings, which must be the same in all shards, and counts.

References to pictures in the records are those of the source: absolute paths and embedded pictures as they are, other
paths relative to a folder that the JSON file names, itself relative to the folder of answers, so that the two can be
moved together. Pictures that were not files, `saved:NAME`, are in the folder `pictures` of the answers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..data.conversations import ConversationFile
from ..data.examples import DRAWN, MEDIA, Example, Source, from_record
from ..data.rows import JsonLines
from ..errors import MMSpecError

SHARD = re.compile(r"answers-(\d+)-of-(\d+)\.jsonl")
PICTURES, SAVED = "pictures", "saved:"


def shard_files(folder: Path, shard: int, shards: int) -> tuple[Path, Path, Path]:
    """Return the paths of a shard's files: answers, skipped examples, settings and counts."""
    name = f"{shard:05d}-of-{shards:05d}"
    return folder / f"answers-{name}.jsonl", folder / f"skipped-{name}.jsonl", folder / f"distill-{name}.json"


class Answers(Source):
    """The answers in a folder, from all shards, in the order of the source that was asked, with absolute paths.

    Args:
        folder: a folder that `mmspec distill` wrote.
        images: the folder of the pictures, if it has moved.
        partial: whether to accept a folder in which shards are missing or incomplete.

    Raises:
        MMSpecError: if there is no answer, something is missing, shards do not belong together, or an id occurs twice.
    """

    def __init__(self, folder: str | Path, images: str | Path | None = None, partial: bool = False):
        self.answers_folder = Path(folder).resolve()
        files = {
            path: (int(match[1]), int(match[2]))
            for path in sorted(self.answers_folder.glob("answers-*.jsonl"))
            if (match := SHARD.fullmatch(path.name))
        }
        if not files:
            missing = "" if self.answers_folder.is_dir() else ", which does not exist"
            raise MMSpecError(f"no answers in {str(folder)!r}{missing}: run `mmspec distill --output {folder}` first")
        self.infos = [read_info(shard_files(self.answers_folder, *place)[2]) for place in files.values()]
        self._check_shards(files, partial)
        self._pictures = Path(images) if images is not None else self.answers_folder / self.infos[0]["images"]
        self._files = [JsonLines(path, whole_lines=True) for path in files]
        self._places: list[tuple[int, int]] = []
        self._index()

    def _check_shards(self, files: dict[Path, tuple[int, int]], partial: bool) -> None:
        counts = sorted({shards for _, shards in files.values()})
        if len(counts) > 1 or any(info["settings"] != self.infos[0]["settings"] for info in self.infos):
            raise MMSpecError(
                f"{self.answers_folder} holds answers that were given under several settings (shards: {counts}), which "
                "are not one data set: keep those of one kind"
            )
        if partial:
            return
        there = {shard for shard, _ in files.values()}
        if missing := [shard for shard in range(counts[0]) if shard not in there]:
            what = f"shards {missing} of {counts[0]} are missing"
        elif unfinished := [
            shard for info, (shard, _) in zip(self.infos, files.values(), strict=True) if not info["complete"]
        ]:
            what = f"shards {unfinished} of {counts[0]} are not complete"
        else:
            return
        raise MMSpecError(
            f"{self.answers_folder}: {what}; run `mmspec distill` for them with the same settings, or take what there "
            "is with partial=True"
        )

    def _index(self) -> None:
        order: list[tuple[int, int, int]] = []
        seen: dict[str, Path] = {}
        for number, rows in enumerate(self._files):
            for row, record in enumerate(rows.scan()):
                example = from_record(record, f"{rows.path}, row {row + 1}")
                if example.id in seen:
                    raise MMSpecError(f"id {example.id!r} occurs in {seen[example.id]} and again in {rows.path}")
                seen[example.id] = rows.path
                if type(index := record.get("index")) is not int:
                    raise MMSpecError(f"{rows.path}, row {row + 1} has no index: delete the row, to answer it again")
                order.append((index, number, row))
        if not order:
            raise MMSpecError(f"no answers in {self.answers_folder}: `mmspec distill` has not given the first one yet")
        self._places = [(number, row) for _, number, row in sorted(order)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        number, row = self._places[index]
        rows = self._files[number]
        record = rows[row]
        for name in MEDIA:
            record[name] = [self._resolved(reference) for reference in record.get(name) or []]
        return from_record(record, f"{rows.path}, row {row + 1}")

    def _resolved(self, reference: Any) -> Any:
        if isinstance(reference, list):  # the frames of a video
            return [self._resolved(frame) for frame in reference]
        if reference.startswith(DRAWN) or "://" in reference:
            return reference
        if reference.startswith(SAVED):
            return str(self.answers_folder / PICTURES / reference.removeprefix(SAVED))
        return os.path.abspath(self._pictures / reference)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings under which the answers were given: `target`, `temperature`, `max_new_tokens`, ..."""
        return self.infos[0]["settings"]

    def describe(self) -> dict[str, Any]:
        """Return the settings of the answers as the identity of this source."""
        return {"source": "answers", **self.settings}


def read_info(file: Path) -> dict[str, Any]:
    """Read the settings and counts of a shard."""
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(info, dict) and {"settings", "images", "complete"} <= info.keys():
            return info
    except FileNotFoundError:
        raise MMSpecError(f"{file} is missing: it belongs to the answers beside it, so copy it too") from None
    except (OSError, ValueError):
        pass
    raise MMSpecError(f"{file} is damaged: it must hold what `mmspec distill` wrote; answer again into another folder")


def open_source(path: str | Path, images: str | Path | None = None, partial: bool = False) -> Source:
    """Open a folder of answers that `mmspec distill` wrote, or a file of conversations.

    Args:
        path: a folder or a file.
        images: the folder of the pictures, if they have moved.
        partial: whether to accept a folder of answers that is incomplete.

    Raises:
        MMSpecError: if it is neither.
    """
    path = Path(path)
    return ConversationFile(path, images) if path.is_file() else Answers(path, images, partial)
