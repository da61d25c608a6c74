"""Prompts with media from the embedded generator and from folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import zoo
from ..errors import MMSpecError, did_you_mean
from ..files.identity import content_hash
from ..settings.arguments import number
from .accuracy import MetricSetting, metrics_of
from .examples import DRAWN_PICTURE, Example, Source


def check_drawn(tasks: Sequence[str], known: Sequence[str], split: str, count: int, start: int) -> None:
    """Refuse what no embedded generator draws."""
    for task in tasks:
        if task not in known:
            raise MMSpecError(f"task {task!r} is unknown.{did_you_mean(task, known)}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise MMSpecError(f"tasks={list(tasks)} must name at least one task, and none twice")
    if split not in zoo.SPLITS:
        raise MMSpecError(f"split {split!r} is unknown.{did_you_mean(split, zoo.SPLITS)}")
    if count < 1 or start < 0:
        raise MMSpecError(f"count={count} must be at least 1 and start={start} at least 0")


class EmbeddedSource(Source):
    """The examples of the embedded generator, with alternating tasks: scene 0, chart 0, ..., scene 1, chart 1, ...

    Args:
        tasks: names from `mmspec.zoo.TASKS`.
        split: `train`, `validation` or `test`.
        count: number of examples of each task.
        start: index of the first example.
        metric: metric that compares answers with the generator's own, see `mmspec.data.accuracy`; None computes no
            accuracy.
        misread: share of the letters and digits of a document that are wrong in its `regions`, its blocks as a parser
            would have them: 0 is the true text, and 1 nothing of it. None brings no regions, so that a drafter with a
            layout parser reads the picture.
    """

    def __init__(
        self,
        tasks: Sequence[str] = zoo.TASKS,
        split: str = "train",
        count: int = 64,
        start: int = 0,
        metric: MetricSetting = None,
        misread: float | None = 0.0,
    ):
        check_drawn(tasks, zoo.TASKS, split, count, start)
        self.tasks, self.split, self.count, self.start = list(tasks), split, count, start
        self.metric = metrics_of(metric)
        self.misread = None if misread is None else number(self, misread=misread, lowest=0, highest=1)

    def __len__(self) -> int:
        return len(self.tasks) * self.count

    def __getitem__(self, index: int) -> Example:
        number, which = divmod(range(len(self))[index], len(self.tasks))
        task = self.tasks[which]
        place = f"{task}/{self.split}/{self.start + number}"
        _, prompt, reference = zoo.sample(task, self.split, self.start + number)
        regions = []
        if task == "documents" and self.misread is not None:
            blocks = enumerate(zoo.page_regions(self.split, self.start + number))
            regions = [zoo.misread(text, self.misread, seed=f"{place}/{block}") for block, (text, _) in blocks]
        return Example(
            place, prompt, (f"{DRAWN_PICTURE}{place}",), task, references=(reference,), regions=tuple(regions)
        )

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        noise = {} if self.misread == 0 else {"misread": self.misread}
        return {"source": "tiny", "tasks": self.tasks, "split": self.split, "start": self.start, **noise}


class MediaFolder(Source):
    """Every picture, video and sound in a folder and the folders below it, in the order of their paths, with every
    prompt in turn.

    Args:
        folder: where the media are: all files of a kind by their suffix, but no hidden ones, see `media_in`.
        prompts: questions about each.

    Raises:
        MMSpecError: if there is no such folder, no medium in it, or no prompt.
    """

    def __init__(self, folder: str | Path, prompts: Sequence[str] = (zoo.DEMO_PROMPT,)):
        self.folder, self.prompts = Path(folder), list(prompts)
        if not self.prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts):
            raise MMSpecError(f"prompts={self.prompts} must be a list of texts, at least one")
        self.media = media_in(self.folder)

    def __len__(self) -> int:
        return len(self.media) * len(self.prompts)

    def __getitem__(self, index: int) -> Example:
        number, which = divmod(range(len(self))[index], len(self.prompts))
        medium = list(self.media)[number]
        name = medium + (f"#{which + 1}" if which else "")
        media: dict[str, Any] = {self.media[medium]: (medium,)}
        return Example(name, self.prompts[which], **media)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        names = content_hash("\n".join(self.media).encode("utf-8", "surrogateescape"))
        return {
            "source": "images",
            "pictures": len(self.media),
            "names": names,
            "prompts": self.prompts,
        }


VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}
SOUNDS = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"}


def media_in(folder: Path) -> dict[str, str]:
    """List the pictures, videos and sounds in a folder and the folders below it, but no hidden ones.

    A picture is what Pillow opens by its suffix; videos and sounds have one of a few usual suffixes.

    Returns:
        Relative paths in the order of the names, to the field of `Example` for their kind.

    Raises:
        MMSpecError: if there is no such folder or no medium in it.
    """
    from PIL import Image

    if not folder.is_dir():
        raise MMSpecError(f"the folder of pictures {str(folder)!r} does not exist")
    fields = {suffix: "images" for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    fields |= dict.fromkeys(VIDEOS, "videos") | dict.fromkeys(SOUNDS, "audio")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in fields and path.is_file())
    names = (path.relative_to(folder) for path in files)
    media = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    if not media:
        raise MMSpecError(
            f"{str(folder)!r} holds no picture, video or sound whose suffix is known: {', '.join(sorted(fields))}"
        )
    return {name: fields[Path(name).suffix.lower()] for name in media}
