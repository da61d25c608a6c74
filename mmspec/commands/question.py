"""Flags of `mmspec generate` that say what is asked, and the arguments that follow from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, first_line

MEDIA = {"image": "images", "video": "videos", "audio": "audio"}
"""Names of the flags, mapped to the arguments of `mmspec.generate`."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    for kind, what in (("image", "picture"), ("video", "video"), ("audio", "sound")):
        text = f"a {what}, a path or a URL; may be given repeatedly"
        parser.add_argument(f"--{kind}", metavar="PATH", action="append", default=[], help=text)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the question, in any words; alone it is asked without a picture"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the question")
    parser.add_argument(
        "--messages",
        metavar="FILE",
        help="a JSON file instead, with a list of messages as chats have them; its paths begin at its folder",
    )


def asked(arguments: argparse.Namespace, watches: bool = False) -> dict[str, Any]:
    """Return the arguments of `mmspec.generate`: the question of the flags, or the one that ships with mmspec.

    Args:
        arguments: the flags.
        watches: whether the target is the embedded one that watches clips: what ships is a clip then.

    Raises:
        MMSpecError: for flags that exclude one another, a video without a question, and for a picture or a file that
            cannot be read.
    """
    media = {kind: getattr(arguments, kind) for kind in MEDIA}
    if arguments.messages is not None:
        for name, given in {"prompt": arguments.prompt, "system": arguments.system, **media}.items():
            if given:
                raise MMSpecError(f"--messages and --{name} exclude one another: the file holds the whole conversation")
        return {"messages": _messages(Path(arguments.messages))}

    from ..inputs import load_image

    question: dict[str, Any] = {"prompt": arguments.prompt, "system": arguments.system}
    question |= {MEDIA[kind]: given or None for kind, given in media.items()}
    if arguments.image:  # before the model is loaded, which takes its time
        question["images"] = [load_image(path) for path in arguments.image]
    if arguments.prompt is None and watches and not arguments.audio:
        from ..zoo import DEMO_CLIP_PROMPT, DEMO_FRAME_PROMPT, demo_clip

        question["prompt"] = DEMO_FRAME_PROMPT if arguments.image and not arguments.video else DEMO_CLIP_PROMPT
        if not (arguments.image or arguments.video):
            question["videos"] = [demo_clip()]
    elif arguments.prompt is None and arguments.video:
        raise MMSpecError(
            "--video was given without a question: add --prompt TEXT; only target=tiny-video is asked one of its own"
        )
    elif arguments.prompt is None and not arguments.audio:
        from ..zoo import DEMO_PROMPT, demo_image

        question["prompt"] = DEMO_PROMPT
        if not arguments.image:
            question["images"] = [demo_image()]
    return {name: value for name, value in question.items() if value is not None}


def _messages(path: Path) -> list[Any]:
    """Return the conversation in a file, whose relative paths begin at its folder."""
    from ..chat import read_messages, with_media

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MMSpecError(f"--messages {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise MMSpecError(f"--messages {path} is not JSON: {first_line(error)}") from None
    if isinstance(content, dict) and "messages" in content:
        content = content["messages"]
    rows = read_messages(content)
    if len(rows) > 1:
        raise MMSpecError(f"--messages {path} has {len(rows)} conversations: give a file with one")
    return with_media(rows[0], lambda medium: _located(medium.value, path.parent))


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, list):  # the frames of a video
        return [_located(one, folder) for one in value]
    if not isinstance(value, str) or "://" in value or value[:5].lower() == "data:":
        return value
    return folder / value
