"""The records in the files of a bundle and of a sweep, each described once: written, read and refused by these types.

The files may come from anywhere. Only regular files are read, a value of another type is refused in one line that
names its place, and the texts that tables show hold printable characters only. Keys beyond those named here are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Generic, NotRequired, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ..errors import MMSpecError, printable, shown
from ..files.storage import whole_lines

LARGEST = 2**53
"""Largest number that is taken: up to here a float holds every integer."""

Record = TypeVar("Record")


def _number(value: Any) -> Any:
    """Refuse what is no number that a float holds, nor null; an integer stays one."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST):
        return value
    raise PydanticCustomError("number", "Input should be a number or null")


Count = Annotated[int, Field(ge=0, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Number = Annotated[Any, AfterValidator(_number)]
Text = Annotated[str, AfterValidator(printable)]


class Failure(TypedDict):
    """Why a method has no figures."""

    reason: str
    traceback: NotRequired[str | None]
    final: NotRequired[bool]


class SideRecord(TypedDict):
    """A method in the manifest."""

    label: str
    engine: str
    baseline: NotRequired[bool]
    control: NotRequired[bool]
    settings: dict[str, Any]
    drafter: str | None
    tree: str | None
    drafter_structure: NotRequired[dict[str, Any] | None]
    budget: Count | None
    lossless: bool
    exact: NotRequired[bool]
    one_row: NotRequired[bool]
    versions: NotRequired[dict[str, Text] | None]
    failed: NotRequired[Failure | None]


class Code(TypedDict):
    """State of the checkout that measured."""

    revision: NotRequired[str | None]
    dirty: NotRequired[bool | None]


class Machine(TypedDict):
    """Machine that measured."""

    system: NotRequired[str]
    cpu: str
    cpus: Count | None
    threads: Count
    device: str


class TargetRecord(TypedDict):
    """Model that answered."""

    name: str
    fingerprint: str
    dtype: str


class Skip(TypedDict):
    """A question that could not be asked."""

    id: str
    reason: str


class Written(TypedDict):
    """Number of records that the files of a bundle hold."""

    blocks: Count
    requests: Count
    rounds: Count


class Manifest(TypedDict):
    """`manifest.json` of a bundle: what was run, on what, and how it ended."""

    written: NotRequired[Written]
    format: Count
    mmspec: str
    started: str
    git: Code
    versions: dict[str, str]
    machine: Machine
    target: TargetRecord
    sampling: dict[str, Number]
    max_new_tokens: Count
    overrides: NotRequired[list[str] | None]
    config_dir: NotRequired[str | None]
    requests: Count
    skipped: list[Skip]
    repeats: Count
    batch: Count | Annotated[list[Count], Field(min_length=1)]
    seed: Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
    sides: list[SideRecord]
    status: str
    error: str | None


class Place(TypedDict):
    """Answer that a record belongs to."""

    request: Count
    turn: Count
    repeat: Count
    side: Text


class Difference(TypedDict):
    """First place where an answer differs from plain decoding, see `mmspec.exactness.divergences`."""

    row: Count
    position: Count
    margin: Number
    tie: bool
    cause: NotRequired[str | None]
    attribution: NotRequired[Text | None]


class Points(TypedDict):
    """Points of an answer, and the most that it could get."""

    points: Amount
    of: Amount


class AnswerRecord(Place):
    """A line of `requests.jsonl`: what a method made of one request in one repeat. Lists have an entry per prompt."""

    ids: list[Text]
    task: Text
    batch: NotRequired[Count]
    order: NotRequired[Count]
    wall: Amount
    seconds: dict[str, Amount]
    cache_bytes: NotRequired[dict[str, Count]]
    overlap_seconds: NotRequired[Amount]
    prompt_tokens: list[Count]
    new_tokens: list[Count]
    first_tokens: list[Count]
    passes: Count
    finish: NotRequired[list[str | None]]
    token_ids: NotRequired[list[list[Count]]]
    text: NotRequired[list[str | None]]
    retokenized: NotRequired[list[Count | None]]
    metric: NotRequired[Text | None]
    accuracy: NotRequired[list[Points | None] | None]
    similarity: NotRequired[list[Amount] | None]
    repeatable: NotRequired[bool]
    same_rounds: NotRequired[bool]
    same: bool | None
    divergence: list[Difference] | None


class RoundRecord(Place):
    """A line of `rounds.jsonl`: a `mmspec.decoding.stats.Round` and where it belongs."""

    round: NotRequired[Count]
    drafted: list[Count]
    accepted: list[Count]
    emitted: list[Count]
    depth: Count
    seconds: dict[str, Amount]


class SweepPlan(TypedDict):
    """`sweep.json` of a sweep: the overrides of each job, and how they are launched."""

    jobs: list[list[str]]
    config_dir: str | None
    hydra: list[str]
    names: list[str] | None


class Reader(Generic[Record]):
    """Reads records of one type from files.

    Args:
        kind: type of the records.
    """

    def __init__(self, kind: type[Record]):
        self._adapter: TypeAdapter[Record] = TypeAdapter(kind)

    def file(self, path: Path) -> Record:
        """Return the record that a file holds.

        Raises:
            MMSpecError: if it holds another one, is empty, is no regular file, or cannot be read.
        """
        with _reading(path):
            data = path.read_bytes()
        if not data:
            raise MMSpecError(f"{path} is empty: the run that wrote it was killed, or its disk was full")
        return self.parse(data, str(path))

    def lines(self, path: Path) -> Iterator[Record]:
        """Yield the records of a file that has one per line, without a last line that was torn; none if there is no
        file.

        Raises:
            MMSpecError: for a line that holds another one, or a file that is no regular one or cannot be read.
        """
        with _reading(path):
            lines = whole_lines(path)
        for number, line in enumerate(lines, start=1):
            yield self.parse(line, f"{path}, line {number}")

    def parse(self, data: bytes, where: str) -> Record:
        """Return the record in a JSON text.

        Args:
            data: the text.
            where: place of the text, for the error.

        Raises:
            MMSpecError: with the place and the value, if it is another one.
        """
        try:
            return self._adapter.validate_json(data, strict=True, extra="allow")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            raise MMSpecError(f"{where} is not JSON: the file was changed, cut, or the disk failed ({reason[:200]})")
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")[:80]
        wrong = f"is {shown(first['input'], 60)} and {first['msg'].replace('Input should', 'must')}"
        wrong = "is missing" if first["type"] == "missing" else wrong
        raise MMSpecError(f"{where}: {path or 'it'} {wrong}; the file was changed, or another program wrote it")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        MMSpecError: if it is no regular file, is not in UTF-8, or cannot be read.
    """
    with _reading(path):
        return path.read_text(encoding="utf-8")


def clean(value: Any, but: Collection[str] = ()) -> Any:
    """Return a JSON value of which a terminal can show every text: control characters are written out.

    Args:
        value: any JSON value.
        but: keys of a mapping whose values stay as they are.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): one if key in but else clean(one) for key, one in value.items()}
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse what is no regular file (a pipe or a device would never end), and say in one line what else fails
    within."""
    if path.exists() and not path.is_file():
        raise MMSpecError(f"{path} is no regular file, and is not read")
    try:
        yield
    except OSError as error:
        raise MMSpecError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise MMSpecError(f"{path} cannot be read: it is not in UTF-8") from None
