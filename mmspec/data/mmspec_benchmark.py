"""The data of the MMSpec benchmark (arXiv 2603.14989), read from a copy of its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, did_you_mean
from ..files.identity import content_hash
from .examples import Example, Source, from_record
from .rows import JsonLines, Row

FILE, PICTURES = "mmspec.jsonl", "images"
INSIDE_REPOSITORY = "dataset/MMSpec"


class MMSpecBenchmark(Source):
    """The items of a split in the order of its file, `DATA/SPLIT/mmspec.jsonl`, with pictures in `DATA/SPLIT/images`.

        {"id": "mmspec_553", "image": "mmspec_553.jpg", "turns": ["What is this?", "Why?"],
         "category": "charts", "topic": "multi-turn conversation"}

    The first turn is an example's `prompt`, the others are its `follow_ups`. Its task is the `topic`, which is one of
    general vqa, text vqa, image captioning, chart understanding, complex reasoning pro, multi-turn conversation; where
    there is none, the `category`. A row may have one picture, several (a list), or none. They lie in `images`, beside
    the file, or in the data's folder. Texts are kept to the letter, `<image 1>` in them too.

    The benchmark's own scripts put a system message before each conversation and let Qwen2.5-VL see at most 1280 blocks
    of 28 x 28 pixels of a picture. Here a conversation is the turns alone, and the processor decides about the pixels.

    Args:
        folder: `dataset/MMSpec` of the benchmark's repository, the repository itself, or the folder of the split.
        split: `test` (600 items) or `testmini` (60), or another folder with such a file.
        subtasks: names of the subtasks to use, such as `[general vqa, text_vqa]`; an underscore stands for a space.
            None uses all.
        count: number of items of each subtask at most, from the first.

    Raises:
        MMSpecError: if there is no such split or subtask, a row is not JSON, or an id occurs twice; later, when a row
            is asked for, if it is malformed. A missing picture raises an error only when it is opened.
    """

    folder: Path

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        subtasks: Sequence[str] | None = None,
        count: int | None = None,
    ):
        if count is not None and count < 1:
            raise MMSpecError(f"count={count} must be a positive number of items, or null for all of them")
        self.split, self.count = split, count
        self.folder = _split_folder(Path(folder), split)
        self.rows = JsonLines(self.folder / FILE)
        self._tasks: list[str] = []
        self._scan()
        self.subtasks = self._known(subtasks)
        seen: Counter[str] = Counter()
        self._places = []
        for number, task in enumerate(self._tasks):
            if self.subtasks is None or task in self.subtasks:
                seen[task] += 1
                if count is None or seen[task] <= count:
                    self._places.append(number)
        if not self._places:
            raise MMSpecError(f"{self.rows.path} has no item: copy the benchmark's file again")

    def _scan(self) -> None:
        rows: dict[str, int] = {}
        for number, row in enumerate(self.rows.scan()):
            where, name = f"{self.rows.path}, row {number + 1}", _row_id(row, number)
            if name in rows:
                raise MMSpecError(f"{where}: id {name!r} occurs in row {rows[name] + 1} too; delete one of them")
            rows[name] = number
            self._tasks.append(_task(row, where))

    def _known(self, subtasks: Sequence[str] | None) -> list[str] | None:
        """Return the subtasks by the names that the rows use."""
        if subtasks is None:
            return None
        if isinstance(subtasks, str) or not subtasks:
            raise MMSpecError(f"subtasks={subtasks!r} must be a list of names, or null for all of them")
        names = {_plain(task): task for task in self._tasks}
        for name in subtasks:
            if _plain(name) not in names:
                raise MMSpecError(
                    f"subtask {name!r} is unknown in {self.rows.path}.{did_you_mean(_plain(name), set(self._tasks))}"
                )
        return sorted({names[_plain(name)] for name in subtasks})

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        number = self._places[index]
        row, where = self.rows[number], f"{self.rows.path}, row {number + 1}"
        turns = row.get("turns")
        turns = [turns] if isinstance(turns, str) else turns
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
            raise MMSpecError(f"{where}: turns must be a list of questions, not {turns!r:.60}")
        images = row.get("image") if row.get("image") is not None else row.get("images")
        images = [] if images is None else [images] if isinstance(images, str) else images
        record = {"id": _row_id(row, number), "prompt": turns[0], "follow_ups": turns[1:], "task": self._tasks[number]}
        example = from_record({**record, "images": images}, where)
        return replace(example, images=tuple(map(self._place, images)))

    def _place(self, name: str) -> str:
        """Return a picture's path relative to the split's folder; in `images` if the file is missing, so that an error
        names that place."""
        places = [Path(folder, name) for folder in (PICTURES, "", "..")]
        return next((place for place in places if (self.folder / place).is_file()), places[0]).as_posix()

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        content = content_hash(self.rows.path.read_bytes())
        return {
            "source": "mmspec benchmark",
            "split": self.split,
            "subtasks": self.subtasks,
            "count": self.count,
            "content": content,
        }


def _split_folder(folder: Path, split: str) -> Path:
    """Return the folder with the split's file."""
    if (folder / FILE).is_file() and folder.resolve().name == split:
        return folder
    roots = (folder, folder / INSIDE_REPOSITORY)
    for root in roots:
        if (root / split / FILE).is_file():
            return root / split
    if not folder.is_dir():
        raise MMSpecError(f"the folder of the MMSpec benchmark {str(folder)!r} does not exist")
    there = [path.parent.name for root in roots for path in root.glob(f"*/{FILE}")]
    there += [folder.resolve().name] if (folder / FILE).is_file() else []
    if there:
        raise MMSpecError(f"split {split!r} is unknown in {str(folder)!r}.{did_you_mean(split, there)}")
    raise MMSpecError(
        f"{str(folder)!r} holds no {split}/{FILE}: give the folder {INSIDE_REPOSITORY} of a copy of the benchmark's "
        "repository (github.com/killthefullmoon/MMSpec)"
    )


def _task(row: Row, where: str) -> str:
    task = next((row[key] for key in ("topic", "category") if row.get(key) is not None), "")
    if not isinstance(task, str):
        raise MMSpecError(f"{where}: topic must be text, not {task!r:.60}")
    return task


def _plain(name: Any) -> str:
    return str(name).replace("_", " ").strip().lower()


def _row_id(row: Row, number: int) -> str:
    return f"row-{number + 1}" if row.get("id") is None else str(row["id"])
