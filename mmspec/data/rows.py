"""Read the rows of a data file as dictionaries, each when it is asked for, so that a file of any size fits into
memory."""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MMSpecError

Row = dict[str, Any]

JSON, PARQUET = (".json", ".jsonl", ".ndjson"), (".parquet",)


def open_rows(path: str | Path) -> JsonRows | ParquetRows:
    """Open the rows of a file, whose format follows from its suffix.

    Raises:
        MMSpecError: if there is no such file, or none of a format known here.
    """
    path = Path(path)
    if not path.is_file():
        raise MMSpecError(f"data {str(path)!r} {'is a folder, not a file' if path.is_dir() else 'does not exist'}")
    if path.suffix.lower() in PARQUET:
        return ParquetRows(path)
    if path.suffix.lower() in JSON:
        return JsonRows(path)
    raise MMSpecError(f"data {str(path)!r} is none of {', '.join(JSON + PARQUET)}: convert or unpack it")


class JsonRows:
    """A file of JSON lines, or one with a JSON array.

    Only the places where each row begins and ends are kept in memory. That needs no copy in a cache, and lets every row
    have its own keys and types, as conversation files do: one row has a picture, the next has none, another a list of
    them. (Hugging Face `datasets`, which reads the Parquet files here, wants one schema for all rows of a JSON file.)

    Args:
        path: where the file is.
        whole_lines: whether to leave out a last line without a line break, which a killed writer left behind.

    Raises:
        MMSpecError: if the file cannot be read; later, for a row that is not a JSON object.
    """

    def __init__(self, path: str | Path, whole_lines: bool = False):
        self.path = Path(path)
        self.starts, self.ends = array("q"), array("q")
        with self._opened() as file:
            bom = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(bom)
            first = file.read(4096).lstrip()[:1]
            if first == b"[" and not whole_lines:
                self._find_elements(bom)
            else:
                file.seek(bom)
                self._find_lines(file, bom, whole_lines)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        # Opened anew every time, so that worker processes do not share a position in the file.
        try:
            with self.path.open("rb") as file:
                yield file
        except OSError as error:
            raise MMSpecError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _find_lines(self, file: BinaryIO, offset: int, whole_lines: bool) -> None:
        for line in file:
            if line.strip() and not (whole_lines and not line.endswith(b"\n")):
                self.starts.append(offset)
                self.ends.append(offset + len(line))
            offset += len(line)

    def _find_elements(self, offset: int) -> None:
        # In Latin-1 every byte is a character, so that positions in the text are positions in the file.
        text, decoder = self.path.read_bytes().decode("latin-1"), json.JSONDecoder()

        def skip_space(position: int) -> int:
            while text[position : position + 1].isspace():
                position += 1
            return position

        position = skip_space(skip_space(offset) + 1)
        while text[position : position + 1] != "]":
            try:
                _, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                raise MMSpecError(
                    f"{self.path}, row {len(self) + 1} is not JSON: {error.msg} at byte {error.pos}"
                ) from None
            self.starts.append(position)
            self.ends.append(end)
            position = skip_space(end)
            if text[position : position + 1] == ",":
                position = skip_space(position + 1)
            elif text[position : position + 1] != "]":
                raise MMSpecError(f"{self.path} is not JSON: after row {len(self)} there is neither a comma nor a ]")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Row:
        number = range(len(self))[index]
        with self._opened() as file:
            file.seek(self.starts[number])
            return self._parse(file.read(self.ends[number] - self.starts[number]), number)

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Yield all rows in order; `columns` is for files in which it saves work."""
        with self._opened() as file:
            for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
                file.seek(start)
                yield self._parse(file.read(end - start), number)

    def _parse(self, text: bytes, number: int) -> Row:
        try:
            row = json.loads(text)
        except ValueError as error:
            raise MMSpecError(f"{self.path}, row {number + 1} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise MMSpecError(f"{self.path}, row {number + 1} must be an object with keys, not {row!r:.60}")
        return row


class ParquetRows:
    """A Parquet file, memory-mapped by Hugging Face `datasets` (whose cache holds it in Arrow format).

    Pictures within the file come as they are stored, `{"bytes", "path"}`.

    Raises:
        MMSpecError: if the file is not Parquet.
    """

    def __init__(self, path: str | Path):
        import datasets

        self.path = Path(path)
        try:
            table = datasets.load_dataset("parquet", data_files=str(self.path), split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise MMSpecError(f"{self.path} cannot be read as Parquet: {reason}") from error
        self.table = table.with_format("arrow")  # plain values, pictures not decoded

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        return self.table[range(len(self))[index]].to_pylist()[0]

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield all rows in order, with those of `columns` that exist."""
        present = [name for name in columns if name in self.table.column_names]
        if not present:
            yield from ({} for _ in range(len(self)))
            return
        for batch in self.table.select_columns(present).iter(1000):
            yield from batch.to_pylist()
