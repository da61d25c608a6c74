"""Checks of network requests: they are limited in size and inspected before Gradio reads them.

This is an ASGI middleware. It knows only this of Gradio: uploads are multipart, and everything else that is posted is
JSON, in which `fn_index` is the number of the function to call and `data` holds its arguments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

PICTURE, VALUE, STATE = "picture", "value", "state"
"""Kinds of arguments. A picture is a file that was uploaded before, or null; a value is a text, a number or null; a
state is null, because it is kept on the server."""

DEEPEST, MOST = 16, 1000
"""Largest depth, and largest number of values, of a JSON request."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request that is refused, with an HTTP status and the reason in one line."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class RequestGate:
    """Refuses requests that are too large, too deeply nested, call no function of the page, or hold arguments of a
    wrong kind or files that were not uploaded.

    Args:
        app: application that receives the accepted requests.
        kinds: numbers of the functions that can be called, with the kinds of their arguments.
        folder: folder of the uploads.
        request, upload: largest size of a request and of an upload, in bytes.
    """

    def __init__(self, app: App, kinds: Mapping[int, Sequence[str]], folder: str, request: int, upload: int):
        self._app, self._kinds, self._folder = app, kinds, os.path.realpath(folder)
        self._request, self._upload = request, upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or answer with a refusal."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            try:
                receive = await self._admit(scope, receive)
            except Refusal as refusal:
                await _answer(send, refusal)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Message, receive: Receive) -> Receive:
        """Check a request, and return the function from which the application reads it."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if b"transfer-encoding" in headers:
            await _drop(receive)
            raise Refusal(411, "this page takes requests of a known length only")
        upload = scope["path"].rstrip("/").endswith("/upload")
        limit, length = self._upload if upload else self._request, headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            await _drop(receive)
            raise Refusal(413, f"this page takes {'uploads' if upload else 'requests'} of {limit} bytes at most")
        if upload:
            return receive
        body = await _read(receive)
        if body:
            self._look_through(body)
        return _replay(body, receive)

    def _look_through(self, body: bytes) -> None:
        """Refuse a body whose JSON does not call a function of the page with arguments of the right kinds."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):  # no text, no JSON, too many digits, too deep
            raise Refusal(400, "this page takes requests in JSON") from None
        _bounded(asked)
        if not isinstance(asked, dict):
            raise Refusal(400, "a request must be an object")
        if "data" not in asked:
            return
        number, data = asked.get("fn_index"), asked["data"]
        kinds = self._kinds.get(number) if type(number) is int else None
        if kinds is None:
            raise Refusal(400, "a request must name in fn_index what it calls; this page has no other interface")
        if not isinstance(data, list) or len(data) != len(kinds):
            raise Refusal(400, f"data must be a list of {len(kinds)} values")
        for place, (kind, value) in enumerate(zip(kinds, data, strict=True)):
            if value is None:
                continue
            if kind == STATE:
                raise Refusal(400, f"data[{place}] must be null: it is kept by the page itself")
            if kind == VALUE and not isinstance(value, str | int | float):
                raise Refusal(400, f"data[{place}] must be a text or a number, and nothing within it")
            if kind == PICTURE and not self._uploaded(value):
                raise Refusal(400, f"data[{place}] must be a picture that was uploaded here before")

    def _uploaded(self, value: Any) -> bool:
        """Return True if a value is a file in the folder of uploads. Gradio would fetch an address and read any
        path."""
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or "\0" in path or not os.path.isabs(path):
            return False
        return os.path.realpath(path).startswith(self._folder + os.sep)


def _bounded(asked: Any) -> None:
    """Refuse a value that is nested too deeply or holds too many values."""
    level, count = [asked], 0
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in level:
            below += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(level)
        if count > MOST:
            raise Refusal(400, f"a request has at most {MOST} values")
        if not below:
            return
        level = below
    raise Refusal(400, f"a request has at most {DEEPEST} levels")


async def _read(receive: Receive) -> bytes:
    """Read the whole body. The server delivers no more of it than its stated length."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the request broke off")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _drop(receive: Receive) -> None:
    """Read a body and discard it: a sender who is cut off would not receive the reason."""
    while (await receive()).get("more_body", False):
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that yields a body again that was read, and afterwards what `receive` yields."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _answer(send: Send, refusal: Refusal) -> None:
    """Answer a request with a refusal, as JSON."""
    body = json.dumps({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
