"""Media of a prompt: which values stand for one and which for several, how they are loaded and given to processors."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata

from ..chat import Conversation, Medium, Message, media_of, with_media
from ..errors import MMSpecError
from ..media import KINDS, Chooser, Video, evenly, load_image, load_sound, load_video
from .reader import Reader

ARGUMENTS = {"image": "images", "video": "videos", "audio": "audio"}
"""Kind to the argument that gives media of the kind, of `generate` and of processors alike."""
PLURALS = {"image": "images", "video": "videos", "audio": "sounds"}
"""Kind to the word for several of it in errors."""


def loaded(reader: Reader, conversation: Conversation) -> Conversation:
    """Return the same conversation with its media loaded: pictures as PIL images, videos as `Video`, sounds as
    `(samples, rate)`.

    Args:
        reader: whose processor says at which rate sounds are read.
        conversation: whose media are anything that the loaders in `mmspec.media` take; loaded ones stay as they are.

    Raises:
        MMSpecError: if one cannot be read.
    """

    def value(medium: Medium) -> Any:
        if medium.kind == "image":
            return load_image(medium.value)
        if medium.kind == "video":
            in_file = isinstance(medium.value, (str, bytes, bytearray, memoryview, os.PathLike))
            return load_video(medium.value, choose=_chooser(reader) if in_file else None)
        rate = _rate(reader)
        return load_sound(medium.value, rate), rate

    return with_media(conversation, value)


def is_one(kind: str, value: Any) -> bool:
    """Return whether a value is a single medium and not a list of several.

    A list of pictures in memory is one video, and `(samples, rate)` is one sound.
    """
    if kind == "audio" and isinstance(value, tuple) and len(value) == 2:
        return not isinstance(value[1], (str, bytes, os.PathLike, Mapping, tuple))
    if not isinstance(value, (list, tuple)):
        return True
    return kind == "video" and bool(value) and all(_is_frame(one) for one in value)


def rows_of(kind: str, given: Any, rows: int, single: bool) -> list[list[Any]]:
    """Return the media of each row.

    Args:
        kind: the kind of the media.
        given: for a single prompt one medium or a list of them; for a list of prompts one such entry per row.
        rows: how many the batch has.
        single: whether the prompt was a single one, and no list.

    Raises:
        MMSpecError: if there is not one entry per row.
    """
    if given is None:
        return [[] for _ in range(rows)]
    if single:
        return [[given] if is_one(kind, given) else list(given)]
    entries = [given] if is_one(kind, given) else list(given)
    if len(entries) != rows:
        name = ARGUMENTS[kind]
        raise MMSpecError(f"{rows} prompts but {name} for {len(entries)}; give one entry of {name} per prompt")
    return [[] if entry is None else [entry] if is_one(kind, entry) else list(entry) for entry in entries]


def unasked(audio: Any) -> list[Conversation]:
    """Conversations of a sound each, without a text: of one sound or a list of sounds."""
    sounds = [audio] if is_one("audio", audio) else list(audio)
    if not sounds:
        raise MMSpecError("audio is an empty list; give at least one sound")
    return [[Message("user", (Medium("audio", sound),))] for sound in sounds]


def arguments_of(conversations: Iterable[Conversation]) -> dict[str, Any]:
    """Return what a processor is called with besides the texts.

    Args:
        conversations: whose media are loaded.

    Returns:
        Pictures and videos as one list per row, sounds as a single list, which is how processors take them, each only
        if there are any; with videos what is known of them, with sounds their rate.
    """
    rows = {kind: [media_of(conversation, kind) for conversation in conversations] for kind in KINDS}
    arguments: dict[str, Any] = {}
    if any(rows["image"]):
        arguments["images"] = rows["image"]
    if any(rows["video"]):
        arguments["videos"] = [[video.frames for video in row] for row in rows["video"]]
        arguments["video_metadata"] = [[video.metadata() for video in row] for row in rows["video"]]
        arguments["do_sample_frames"] = False  # they were chosen when they were read
    if any(rows["audio"]):
        sounds = [sound for row in rows["audio"] for sound in row]
        arguments["audio"] = [samples for samples, _ in sounds]
        arguments["sampling_rate"] = sounds[0][1]
    return arguments


def _is_frame(value: Any) -> bool:
    """Return whether a value is a picture in memory, and no place of a file."""
    if isinstance(value, (str, bytes, bytearray, os.PathLike, list, tuple, Mapping, Video)):
        return False
    return np.ndim(value) < 4 if hasattr(value, "shape") else True


FRAMES = 32
"""Frames, evenly spaced, that are read of a video file where the processor does not say how many it wants [OUR]."""


def _chooser(reader: Reader) -> Chooser:
    """Return the rule by which frames of a video file are read: those that the model's own processor would choose."""
    own: Any = getattr(reader.processor, "video_processor", None)

    def choose(facts: dict[str, Any]) -> list[int]:
        total = facts["total_num_frames"]
        wanted, rate = getattr(own, "num_frames", None), getattr(own, "fps", None)
        if wanted is None and (rate is None or facts["fps"] is None):
            return evenly(total, FRAMES)
        if rate is None and total <= wanted:
            return list(range(total))
        settings = {name: getattr(own, name, None) for name in inspect.signature(own.sample_frames).parameters}
        settings = {name: value for name, value in settings.items() if value is not None}
        return own.sample_frames(metadata=VideoMetadata(**facts), **settings)

    return choose


def _rate(reader: Reader) -> int:
    """Return the samples a second that the processor reads."""
    extractor = getattr(reader.processor, "feature_extractor", None)
    rate = getattr(extractor, "sampling_rate", None)
    if rate is None:
        raise MMSpecError(f"audio was given but {type(reader.processor).__name__} reads no sounds: leave audio= out")
    return rate
