"""Read the rows of a data file as dictionaries. JSON lines and Parquet are read row by row, so that a file of any size
fits into memory."""

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


def open_rows(path: str | Path) -> JsonLines | JsonArray | ParquetRows:
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
        return JsonArray(path) if _is_array(path) else JsonLines(path)
    raise MMSpecError(f"data {str(path)!r} is none of {', '.join(JSON + PARQUET)}: convert or unpack it")


class JsonLines:
    """A file of JSON lines, of which only the places where the rows begin are kept in memory.

    That needs no copy in a cache, and lets every row have its own keys and types, as conversation files do: one row has
    a picture, the next has none, another a list of them. (Hugging Face `datasets`, which reads the Parquet files here,
    wants one schema for all rows of a JSON file.)

    Args:
        path: where the file is.
        whole_lines: whether to leave out a last line without a line break, which a killed writer left behind.

    Raises:
        MMSpecError: if the file cannot be read; later, for a row that is not a JSON object.
    """

    def __init__(self, path: str | Path, whole_lines: bool = False):
        self.path = Path(path)
        self.starts, self.ends = array("q"), array("q")
        with _opened(self.path) as file:
            offset = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(offset)
            for line in file:
                if line.strip() and not (whole_lines and not line.endswith(b"\n")):
                    self.starts.append(offset)
                    self.ends.append(offset + len(line))
                offset += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Row:
        number = range(len(self))[index]
        with _opened(self.path) as file:
            file.seek(self.starts[number])
            return self._parse(file.read(self.ends[number] - self.starts[number]), number)

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Yield all rows in order; `columns` is for files in which it saves work."""
        with _opened(self.path) as file:
            for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
                file.seek(start)
                yield self._parse(file.read(end - start), number)

    def _parse(self, text: bytes, number: int) -> Row:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MMSpecError(f"{self.path}, row {number + 1} is not JSON: {error}") from None
        return _object(row, self.path, number)


class JsonArray:
    """A file with one JSON array, which is kept in memory; JSON lines suit a file that is too large for that.

    Raises:
        MMSpecError: if the file cannot be read or is not JSON; later, for a row that is not a JSON object.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with _opened(self.path) as file:
            try:
                self.rows = json.load(file)
            except (ValueError, RecursionError) as error:
                raise MMSpecError(f"{self.path} is not JSON: {error}") from None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        number = range(len(self))[index]
        return _object(self.rows[number], self.path, number)

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Yield all rows in order; `columns` is for files in which it saves work."""
        return (self[number] for number in range(len(self)))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    # Opened anew every time, so that worker processes do not share a position in the file.
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise MMSpecError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _object(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise MMSpecError(f"{path}, row {number + 1} must be an object with keys, not {row!r:.60}")
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
