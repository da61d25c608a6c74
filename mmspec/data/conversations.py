"""Questions from files of conversations about pictures, videos and sounds, in the layout of LLaVA's training data or
in our own."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..media import KINDS
from .accuracy import MetricSetting, metrics_of
from .examples import Example, Source, from_record
from .messages import ASKING, first, medium, question, questions_of, role_of, turns_of
from .rows import Row, open_rows

CONVERSATIONS, PROMPTS = ("conversations", "messages"), ("prompt", "question")
NAMED = {"image": ("images", "image"), "video": ("videos", "video"), "audio": ("audio", "audios", "sound", "sounds")}
"""Kind of medium to the entries of a row that may name such media."""
ANSWERS = "answers"


class ConversationFile(Source):
    """The questions in a file of JSON, JSON lines or Parquet, one example each.

    A row is either a conversation,

        {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                        {"from": "gpt", "value": "A cat."}]}

    (also `messages` with `role` and `content`), or a single question as `mmspec distill` writes it:

        {"id": "7", "prompt": "What is this?", "images": ["a.jpg"]}

    `video` or `videos` and `audio` name videos and sounds in the same way. A video may be a list of the paths of its
    frames in `videos`. The media of a conversation may also stand among its texts, see `mmspec.data.messages`.
    `<image>`, `<video>` or `<audio>` in a text is the place of one; a single one is put before the text, as LLaVA does.

    Every human turn becomes an example of its own about the media shown so far, asked without the turns before it:
    those hold answers that somebody else wrote, and a drafter has to learn what the target says after its own answers.
    The first turn has the id of its row, the others `ID#2`, `ID#3` and so on. A row without an id gets `row-N`, counted
    from 1, and one whose id an earlier row has too gets `ID@N`. System messages are left out.

    Args:
        path: where the file is.
        images: folder of its pictures, videos and sounds; by default the one that the file is in. A Parquet file may
            also hold them itself.
        count: number of questions to use, from the first; None uses all.
        metric: metric for the answers, see `mmspec.data.accuracy`. A single question is judged by the `answers` of its
            row, a list of texts that are all right, or by its `answer`; a conversation by the answers in it. None
            computes no accuracy.

    Raises:
        MMSpecError: if the file cannot be read or has no question; later, when a row is asked for, if it is malformed,
            has a place for a medium but no such medium.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        count: int | None = None,
        metric: MetricSetting = None,
    ):
        self.path, self.rows = Path(path), open_rows(path)
        self.folder = self.path.parent if images is None else Path(images)
        if not self.folder.is_dir():
            raise MMSpecError(f"the folder of pictures {str(self.folder)!r} does not exist")
        if count is not None and count < 1:
            raise MMSpecError(f"count={count} must be a positive number of questions, or null for all of them")
        self.metric = metrics_of(metric)
        self._row, self._turn, self._repeated = array("q"), array("q"), set()
        seen: set[str] = set()
        for number, row in enumerate(self.rows.scan(("id", *CONVERSATIONS, *PROMPTS))):
            if (name := _row_id(row, number)) in seen:
                self._repeated.add(number)
            seen.add(name)
            for turn in range(_questions(row)):
                self._row.append(number)
                self._turn.append(turn)
            if count is not None and len(self._row) >= count:
                del self._row[count:], self._turn[count:]
                break
        if not self._row:
            wanted = ", ".join(map(repr, CONVERSATIONS + PROMPTS))
            raise MMSpecError(f"{self.path} has no question in its {len(self.rows)} rows: it needs one of {wanted}")

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int) -> Example:
        number, turn = self._row[index], self._turn[index]
        row, where = self.rows[number], f"{self.path}, row {number + 1}"
        name = _row_id(row, number) + (f"@{number + 1}" if number in self._repeated else "")
        named = {
            kind: [medium(value, kind, where) for value in _listed(first(row, names))] for kind, names in NAMED.items()
        }
        row = {key: value for key, value in row.items() if not any(key in names for names in NAMED.values())}
        messages = first(row, CONVERSATIONS)
        if messages is None:
            asked = from_record({**row, "id": name, "prompt": first(row, PROMPTS)}, where)
            ((prompt, shown, _),) = questions_of([question(asked.prompt, where)], named, where)
            return self._example(replace(asked, prompt=prompt), shown, row, where)
        prompt, shown, answer = questions_of(turns_of(messages, where), named, where)[turn]
        name += f"#{turn + 1}" if turn else ""
        example = from_record({**row, "id": name, "prompt": prompt, "answer": answer}, where)
        return self._example(example, shown, row, where)

    def _example(self, example: Example, media: dict[str, tuple], row: Row, where: str) -> Example:
        images, videos, audio = (media[kind] for kind in KINDS)
        references = self._references(row, example, where)
        return replace(example, images=images, videos=videos, audio=audio, references=references)

    def _references(self, row: Row, example: Example, where: str) -> tuple[str, ...]:
        """Return the right answers. Other people's files use many names for them, so they are read only if a metric
        asks for them."""
        if self.metric_of(example.task) is None:
            return example.references
        found = example.references or row.get(ANSWERS) or [example.answer]
        found = [one.get("answer") if isinstance(one, dict) else one for one in _listed(found)]
        if not all(isinstance(one, str) or one is None for one in found):
            raise MMSpecError(f"{where}: {ANSWERS} must be a list of texts, not {found!r:.60}")
        return tuple(one for one in found if one)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        return {"source": "conversations", "file": self.path.name, "bytes": self.path.stat().st_size}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _row_id(row: Row, number: int) -> str:
    return f"row-{number + 1}" if row.get("id") is None else str(row["id"])


def _questions(row: Row) -> int:
    """Count the examples that a row makes. A malformed row counts as one, so that the error is raised when it is asked
    for."""
    messages = first(row, CONVERSATIONS)
    if messages is None:
        return int(first(row, PROMPTS) is not None)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return 1
    return sum(role_of(message) in ASKING for message in messages)
