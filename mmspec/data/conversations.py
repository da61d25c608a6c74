"""Questions from files of conversations about pictures, in the layout of LLaVA's training data or in our own."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from .examples import Example, Source, from_record
from .rows import Row, open_rows

if TYPE_CHECKING:
    from PIL.Image import Image

ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")
CONVERSATIONS, PROMPTS, IMAGES = ("conversations", "messages"), ("prompt", "question"), ("images", "image")
MARKER = re.compile(" ?<image>")


class ConversationFile(Source):
    """The questions in a file of JSON, JSON lines or Parquet, one example each.

    A row is either a conversation,

        {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                        {"from": "gpt", "value": "A cat."}]}

    (also `messages` with `role` and `content`), or a single question as `mmspec distill` writes it:

        {"id": "7", "prompt": "What is this?", "images": ["a.jpg"]}

    Every human turn becomes an example of its own about the same pictures, asked without the turns before it: those
    hold answers that somebody else wrote, and a drafter has to learn what the target says after what the target said.
    The first turn has the id of its row, the others `ID#2`, `ID#3` and so on. A row without an id gets `row-N`, counted
    from 1, and one whose id an earlier row has too gets `ID@N`. System messages are left out.

    Args:
        path: of the file.
        images: the folder of its pictures; by default the one that the file is in. A Parquet file may also hold the
            pictures themselves.
        count: use the first so many questions.

    Raises:
        MMSpecError: if the file cannot be read or has no question; later, for a malformed row when it is asked for.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None, count: int | None = None):
        self.path, self.rows = Path(path), open_rows(path)
        self.folder = self.path.parent if images is None else Path(images)
        if not self.folder.is_dir():
            raise MMSpecError(f"the folder of pictures {str(self.folder)!r} does not exist")
        if count is not None and count < 1:
            raise MMSpecError(f"count={count} must be a positive number of questions, or null for all of them")
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
        pictures = tuple(_picture(value, where) for value in _listed(_first(row, IMAGES)))
        messages = _first(row, CONVERSATIONS)
        if messages is None:
            prompt, answer = _first(row, PROMPTS), row.get("answer")
        else:
            prompt, answer = _turns(messages, where)[turn]
            name += f"#{turn + 1}" if turn else ""
        example = from_record({**row, "id": name, "prompt": prompt, "images": [], "answer": answer}, where)
        return replace(example, prompt=MARKER.sub("", example.prompt).strip(), images=pictures)

    def describe(self) -> dict[str, Any]:
        return {"source": "conversations", "file": self.path.name, "bytes": self.path.stat().st_size}


def _first(row: Row, keys: tuple[str, ...]) -> Any:
    """The first of some entries that is there."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _listed(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _row_id(row: Row, number: int) -> str:
    return f"row-{number + 1}" if row.get("id") is None else str(row["id"])


def _questions(row: Row) -> int:
    """How many examples a row makes; a malformed one counts, so that whoever asks for it hears what is wrong."""
    messages = _first(row, CONVERSATIONS)
    if messages is None:
        return int(_first(row, PROMPTS) is not None)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return 1
    return sum(_role(message) in ASKING for message in messages)


def _role(message: Mapping[str, Any]) -> Any:
    return _first(message, ("from", "role"))


def _turns(messages: Any, where: str) -> list[tuple[str, str | None]]:
    """The questions of a conversation, each with the answer that follows it."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise MMSpecError(f"{where}: the conversation must be a list of messages, not {messages!r:.60}")
    turns: list[tuple[str, str | None]] = []
    asked = False
    for message in messages:
        role = _role(message)
        if role in ASKING:
            turns.append((_text(_first(message, ("value", "content")), where), None))
        elif role in ANSWERING and asked:
            turns[-1] = (turns[-1][0], _text(_first(message, ("value", "content")), where))
        asked = role in ASKING
    return turns


def _text(content: Any, where: str) -> str:
    """The text of a message, which may come in parts such as `{"type": "text", "text": ...}` among pictures."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise MMSpecError(f"{where}: a message must hold text, not {content!r:.60}")
    return content


def _picture(value: Any, where: str) -> str | Image:
    """A reference, or the picture itself where a Parquet file holds its bytes."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            from PIL import Image, UnidentifiedImageError

            try:
                return Image.open(io.BytesIO(value["bytes"]))
            except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
                raise MMSpecError(f"{where}: a picture is not in a format that Pillow reads") from None
        value = value.get("path")
    if not isinstance(value, str):
        raise MMSpecError(f"{where}: a picture must be a path, not {value!r:.60}")
    return value
