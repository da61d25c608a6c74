"""Where a file of a medium is: a path, a `file:` or `data:` URL, bytes, an address on a network."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname, urlopen

from ..errors import MMSpecError, first_line, shown

SECONDS = 20
"""After so many seconds without an answer from a network a file counts as out of reach."""
MOST_BYTES = {"image": 64 * 2**20, "video": 2**30, "sound": 2**28}
"""A larger file is not fetched from a network."""
CHUNK = 2**20


def located(kind: str, source: Any, name: str | None) -> tuple[Path | io.BytesIO, str] | None:
    """Return what to open and what to call it in errors; None for what is neither the place nor the bytes of a file.

    Args:
        kind: word for the medium in errors, such as `"image"`.
        source: anything.
        name: name of the file in errors; by default its place.

    Raises:
        MMSpecError: for a folder, a pipe, a damaged data: URL, an address from which nothing can be fetched.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), name or "in bytes"
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = os.fsdecode(os.fspath(source))
    if data_url(text):
        name = name or "in a data: URL"
        return io.BytesIO(decoded(text, name, kind)), name
    name = name or text
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme in ("http", "https"):
        return io.BytesIO(_fetched(kind, text, name)), name
    if scheme and scheme != "file":
        raise MMSpecError(f"{kind} {quoted(name)} is on a network: download it, and give the path of the file")
    path = Path(url2pathname(unquote(urlsplit(text).path)) if scheme else text)
    with reading(kind, name):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError("it is a folder")
        if not stat.S_ISREG(mode):  # to open a pipe is to wait for whoever writes to it
            raise OSError("it is no ordinary file")
    return path, name


def _fetched(kind: str, address: str, name: str) -> bytes:
    """Fetch the bytes of a file on a network, at most `MOST_BYTES` of them."""
    most, chunks, size = MOST_BYTES[kind], [], 0
    try:
        with urlopen(address, timeout=SECONDS) as answer:
            while chunk := answer.read(CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > most:
                    raise OSError(f"it has more than {most // 2**20} MiB")
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None)
        said = first_line(reason if isinstance(reason, Exception) else error)
        raise MMSpecError(
            f"{kind} {quoted(name)} cannot be fetched ({said}): download it, and give the path of the file"
        ) from None
    return b"".join(chunks)


def data_url(text: str) -> bool:
    """Return True if a text holds a file itself, as a `data:` URL."""
    return text[:5].lower() == "data:"


def decoded(text: str, name: str, kind: str = "image") -> bytes:
    """Return the bytes of a file in base64, by itself or in a `data:` URL.

    Raises:
        MMSpecError: if it is not base64.
    """
    head, comma, body = text.partition(",") if data_url(text) else ("base64", ",", text)
    if not comma or not head.lower().endswith("base64"):
        raise MMSpecError(f"{kind} {name} is a data: URL of another form than data:image/png;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MMSpecError(f"{kind} {name} is not base64: {error}") from None


@contextmanager
def reading(kind: str, name: str) -> Iterator[None]:
    """Say in words what a library makes of a file: a damaged one ends in errors of many types.

    Raises:
        MMSpecError: in place of every other error.
    """
    try:
        yield
    except MMSpecError:
        raise
    except FileNotFoundError:
        raise MMSpecError(f"{kind} {quoted(name)} does not exist") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)  # the former does not repeat the name
        raise MMSpecError(f"{kind} {quoted(name)} cannot be read: {reason}") from None


def quoted(name: str) -> str:
    """Return a name as errors show it."""
    return name if name.startswith("in ") else shown(name)  # such as "in memory", which is no name
