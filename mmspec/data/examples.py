"""One example of a data set: a prompt, its pictures, videos and sounds and, once there is one, the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from .accuracy import Metric

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWN_PICTURE, DRAWN_CLIP = "tiny:", "tiny-video:"
"""Prefixes of references to what the embedded generators draw: to a picture, `tiny:TASK/SPLIT/INDEX`, and to a clip or
a frame of one, `tiny-video:TASK/SPLIT/LENGTH/INDEX`."""
DRAWN = (DRAWN_PICTURE, DRAWN_CLIP)

DOCUMENTS = "documents"
"""Name of an example's documents among the extras of a request: per row a list of texts."""

MEDIA = ("images", "videos", "audio")
"""Fields of an example that hold media, in the order of `mmspec.media.KINDS`."""


@dataclass(frozen=True)
class Example:
    """A prompt with its media.

    Args:
        id: name of the example, unique within its data set.
        prompt: the question. It has a marker, `<image>`, `<video>` or `<audio>`, for every medium, or none: then they
            come before the text, pictures first, then videos, then sounds.
        images: pictures or references to them: a path, absolute or relative to the `folder` of the source, or what an
            embedded generator draws, such as `tiny:scenes/train/12`, see `DRAWN`.
        task: label by which reports group examples.
        answer: the text of the answer.
        answer_ids: token ids of the answer, the end token included where there was one.
        follow_ups: further questions of the same conversation, each asked after the answer to the one before. `answer`
            answers `prompt` alone.
        references: texts that are right answers to `prompt`, whoever answers; accuracy is measured with them.
        regions: texts of the parts of a page in the order in which they are read, as a layout parser has them, right or
            wrong; `ReferenceDrafter` drafts from them.
        documents: texts to read beside the question, right or wrong; `mmspec.selection.VideoSpeculateRAG` answers from
            them.
        videos: paths of videos, or of the frames of a video, a tuple of paths; or what is drawn, see `DRAWN`.
        audio: paths of sounds.
    """

    id: str
    prompt: str
    images: tuple[str | Image, ...] = ()
    task: str = ""
    answer: str | None = None
    answer_ids: tuple[int, ...] | None = None
    follow_ups: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    videos: tuple[Any, ...] = ()
    audio: tuple[Any, ...] = ()
    regions: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()


class Source(ABC):
    """A sequence of examples. The parts of an example are read when it is asked for.

    A subclass writes `__len__`, `__getitem__` and `describe`.
    """

    folder: Path | None = None
    """Folder that relative references to media start from; None is the current folder."""

    metric: Metric | Mapping[str, Metric | None] | None = None
    """Metric that compares answers with the references of an example, or one for each task; None if accuracy is not
    measured."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Read an example.

        Raises:
            IndexError: if there is none with that index.
        """

    def __iter__(self) -> Iterator[Example]:
        """Yield all examples in order."""
        return (self[index] for index in range(len(self)))

    def metric_of(self, task: str) -> Metric | None:
        """Return the metric for the answers of a task; None if there is none."""
        return self.metric.get(task) if isinstance(self.metric, Mapping) else self.metric

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places.

        They name no folders, so that the data can be moved, and no number of examples, so that more can be added at the
        end.
        """
        raise NotImplementedError


def to_record(example: Example) -> dict[str, Any]:
    """Return the example as plain JSON values.

    Raises:
        MMSpecError: if a medium is in memory, so that there is nothing to refer to.
    """
    for name, what in zip(MEDIA, ("a picture", "a video", "a sound"), strict=True):
        if not all(_is_text(one) or _are_texts(one) for one in getattr(example, name)):
            raise MMSpecError(f"example {example.id!r} has {what} in memory: save it to a file and refer to that")
    return {
        "id": example.id,
        "prompt": example.prompt,
        "images": list(example.images),
        "task": example.task,
        "answer": example.answer,
        "answer_ids": None if example.answer_ids is None else list(example.answer_ids),
        "follow_ups": list(example.follow_ups),
        "references": list(example.references),
        # Only where there are any: most data has pictures alone.
        **({"videos": [list(v) if isinstance(v, tuple) else v for v in example.videos]} if example.videos else {}),
        **({"audio": list(example.audio)} if example.audio else {}),
        **({"regions": list(example.regions)} if example.regions else {}),
        **({"documents": list(example.documents)} if example.documents else {}),
    }


def from_record(record: Mapping[str, Any], where: str = "a record") -> Example:
    """Make the example in a record that `to_record` made. Unknown keys are ignored.

    Args:
        record: a mapping with at least `id` and `prompt`.
        where: name of the record in errors, such as `answers.jsonl, row 3`.

    Raises:
        MMSpecError: if an entry is missing or has a wrong type; it names the entry.
    """
    values: dict[str, Any] = {
        "images": [],
        "task": "",
        "answer": None,
        "answer_ids": None,
        "follow_ups": [],
        "references": [],
        "videos": [],
        "audio": [],
        "regions": [],
        "documents": [],
    }
    # A table has an entry in every row, where a file of objects may leave one out: null is as good as missing.
    values |= {key: value for key, value in record.items() if value is not None}
    for key in ("id", "prompt"):
        if key not in values:
            raise MMSpecError(f"{where} has no {key!r}, only {', '.join(map(repr, record)) or 'nothing'}")
    for key, wanted, fits in (
        ("id", "text", _is_text),
        ("prompt", "text", _is_text),
        ("images", "a list of paths", _are_texts),
        ("task", "text", _is_text),
        ("answer", "text or null", lambda value: value is None or _is_text(value)),
        ("answer_ids", "a list of token ids or null", lambda value: value is None or _are_ids(value)),
        ("follow_ups", "a list of texts", _are_texts),
        ("references", "a list of texts", _are_texts),
        ("videos", "a list of paths, or of lists of paths", _are_videos),
        ("audio", "a list of paths", _are_texts),
        ("regions", "a list of texts", _are_texts),
        ("documents", "a list of texts", _are_texts),
    ):
        if not fits(values[key]):
            raise MMSpecError(f"{where}: {key} must be {wanted}, not {_short(values[key])}")
    ids = values["answer_ids"]
    return Example(
        values["id"],
        values["prompt"],
        tuple(values["images"]),
        values["task"],
        values["answer"],
        None if ids is None else tuple(ids),
        tuple(values["follow_ups"]),
        tuple(values["references"]),
        tuple(video if _is_text(video) else tuple(video) for video in values["videos"]),
        tuple(values["audio"]),
        tuple(values["regions"]),
        tuple(values["documents"]),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _are_videos(value: Any) -> bool:
    return _is_list(value) and all(_is_text(video) or (_are_texts(video) and len(video) > 0) for video in value)


def _are_ids(value: Any) -> bool:
    return _is_list(value) and all(type(token) is int and token >= 0 for token in value)


def _short(value: Any, limit: int = 60) -> str:
    """Return a value as one line of an error message can show it."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}..."
