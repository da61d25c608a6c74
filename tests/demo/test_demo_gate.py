"""The door of the page: what is too large, too deep or of a wrong kind goes no further. Needs no Gradio."""

from __future__ import annotations

import asyncio
import json

import pytest

from mmspec.demo.gate import DEEPEST, MOST, PICTURE, STATE, VALUE, RequestGate

pytestmark = pytest.mark.product

LIMIT = 20_000


class Door:
    """A gate, and an application behind it that notes what it was handed."""

    def __init__(self, folder):
        self.read: list[bytes] = []
        self.gate = RequestGate(self._app, {3: [PICTURE, VALUE, STATE], 4: []}, str(folder), LIMIT, 10 * LIMIT)

    async def _app(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.read.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def post(self, body: bytes, path="/gradio_api/queue/join", method="POST", headers=None, whole=True):
        """The status and the words of an answer."""
        parts = [body[start : start + 7000] for start in range(0, len(body), 7000)] or [b""]
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages[-1]["more_body"] = not whole
        sent = []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"content-length", b"%d" % len(body))] if headers is None else headers
        self.unread = messages
        asyncio.run(self.gate({"type": "http", "method": method, "path": path, "headers": headers}, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"]).get("detail")

    def call(self, *data, **fields):
        return self.post(json.dumps({"fn_index": 3, "data": data, "session_hash": "a"} | fields).encode())


@pytest.fixture
def door(tmp_path):
    (tmp_path / "uploads").mkdir()
    return Door(tmp_path / "uploads")


def test_what_the_page_sends_arrives_as_it_was(door, tmp_path):
    bodies = [
        {"fn_index": 3, "data": [{"path": str(tmp_path / "uploads" / "a" / "x.png"), "url": "http://x/"}, "hi", None]},
        {"fn_index": 3, "data": [None, 0.5, None], "event_data": {"index": [0]}},
        {"fn_index": 3, "data": [None, "y" * 19_000, None]},  # comes in parts
        {"fn_index": 4, "data": []},
        {"session_hash": "a", "event_id": "b"},
    ]
    for body in bodies:
        assert door.post(json.dumps(body).encode()) == (200, None)
    assert [json.loads(read) for read in door.read] == bodies
    assert door.post(b"", headers=[]) == (200, None)
    assert door.post(b"x" * 9 * LIMIT, path="/gradio_api/upload") == (200, None)
    assert door.post(b"\x00", method="GET") == (200, None)


@pytest.mark.parametrize("value", [["hi"] * 100, [], {}, {"path": "/etc/passwd"}])
def test_a_list_or_an_object_is_no_value(door, value):
    assert door.call(None, value, None) == (400, "data[1] must be a text or a number, and nothing within it")
    assert not door.read


@pytest.mark.parametrize(
    "picture",
    [
        "http://127.0.0.1/",
        {"path": "http://127.0.0.1/x.png"},
        {"path": "/etc/passwd"},
        {"path": "uploads/x.png"},
        {"path": "{uploads}/../x.png"},
        {"path": "{uploads}"},
        {"path": "{uploads}x/x.png"},
        {"path": "{uploads}/link/x.png"},
        {"path": "{uploads}/x\0.png"},
        {"path": 3},
        {"url": "http://127.0.0.1/x.png"},
        [{"path": "{uploads}/x.png"}],
        1,
        True,
    ],
)
def test_a_picture_that_was_not_uploaded(door, picture, tmp_path):
    (tmp_path / "uploads" / "link").symlink_to(tmp_path)
    if isinstance(picture, dict) and isinstance(picture.get("path"), str):
        picture["path"] = picture["path"].replace("{uploads}", str(tmp_path / "uploads"))
    assert door.call(picture, "hi", None) == (400, "data[0] must be a picture that was uploaded here before")
    assert not door.read


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"[" * 15_000, 400, "requests in JSON"),
        (b"{", 400, "requests in JSON"),
        (b"\xff", 400, "requests in JSON"),
        (b'{"data": ' + b"9" * 5000 + b"}", 400, "requests in JSON"),
        (b"[1]", 400, "must be an object"),
        (b'{"x": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", 400, f"at most {DEEPEST} levels"),
        (b'{"x": [' + b"1," * MOST + b"1]}", 400, f"at most {MOST} values"),
        (b"x" * (LIMIT + 1), 413, f"requests of {LIMIT} bytes at most"),
        (b'{"data": []}', 400, "must name in fn_index"),
        (b'{"data": [], "fn_index": 9}', 400, "must name in fn_index"),
        (b'{"data": [], "fn_index": true}', 400, "must name in fn_index"),
        (b'{"data": [], "fn_index": [3]}', 400, "must name in fn_index"),
        (b'{"data": [], "fn_index": 3}', 400, "a list of 3 values"),
        (b'{"data": {"a": 1}, "fn_index": 3}', 400, "a list of 3 values"),
        (b'{"data": [null, "hi", []], "fn_index": 3}', 400, "data[2] must be null"),
    ],
)
def test_what_is_no_request_of_the_page(door, body, status, words):
    got, said = door.post(body)
    assert got == status and words in said and not door.read


def test_a_length_that_is_unknown_or_none(door):
    assert door.post(b"{}", headers=[(b"transfer-encoding", b"chunked")])[0] == 411
    for length in (b"-1", b"1e3", b"9" * 5000):
        assert door.post(b"{}", headers=[(b"content-length", length)])[0] == 413
    status, said = door.post(b"x" * (10 * LIMIT + 1), path="/gradio_api/upload")
    assert (status, said) == (413, f"this page takes uploads of {10 * LIMIT} bytes at most") and not door.read
    assert not door.unread  # one who is cut off would not hear why


def test_one_who_leaves_while_asking(door):
    assert door.post(b'{"data": []', whole=False) == (400, "the request broke off") and not door.read
