"""The page as Gradio serves it, without a browser; needs the extra `demo`."""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.error
import urllib.request
from itertools import count

import pytest

pytest.importorskip("gradio")

from mmspec.demo.page import Page
from mmspec.errors import MMSpecError

pytestmark = pytest.mark.product

START = {"temperature": 0.0, "max_new_tokens": 16, "seed": 0}


@pytest.fixture(scope="module")
def served(desk):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = Page(desk, START)
    yield page, page.launch("127.0.0.1", port), port
    page.close()


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


def test_nothing_is_reported_and_nothing_comes_from_elsewhere(served):
    page, address, _ = served
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and not page.blocks.analytics_enabled
    assert page.blocks.share is False and page.blocks.share_url is None
    html, style = get(address), get(f"{address}theme.css")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)
    assert "@import" not in style and "//fonts" not in style


def test_it_listens_where_it_is_told(served):
    assert served[0].blocks.server_name == "127.0.0.1" and served[1] == f"http://127.0.0.1:{served[2]}/"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])  # a port that is taken, an address of nobody's
def test_a_place_that_cannot_be_served_at(host, served, desk):
    with pytest.raises(MMSpecError, match=f"host={host} port={served[2]}: the page cannot be served there"):
        Page(desk, START).launch(host, served[2])


class Raw:
    """Requests as anybody may send them, without the page."""

    def __init__(self, page, address: str):
        self.page, self.address, self.sessions = page, address, count()

    def number(self, name: str) -> int:
        """The number of a function of the page."""
        (found,) = [fn._id for fn in self.page.blocks.fns.values() if fn.name == name]
        return found

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
        """The status and the answer."""
        request = urllib.request.Request(f"{self.address}gradio_api/{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def call(self, name: str, data: list, session: str, path: str = "queue/join") -> tuple[int, str]:
        body = {"data": data, "fn_index": self.number(name), "session_hash": session}
        return self.post(path, json.dumps(body).encode())

    def ask(self, picture=None, prompt="What is it?", numbers=(0, 8, 0), **chosen) -> str:
        """What becomes of a question: everything that the page is told, or why it was not taken."""
        groups = self.page.desk.choices.groups
        options = [chosen.get(name, group.start) for name, group in groups.items()]
        session = f"question-{next(self.sessions)}"
        status, said = self.call("_answer", [picture, prompt, *options, *numbers], session)
        return said if status != 200 else get(f"{self.address}gradio_api/queue/data?session_hash={session}")


@pytest.fixture(scope="module")
def raw(served):
    return Raw(*served[:2])


def test_a_file_of_the_machines_own_cannot_be_asked_about(raw, desk, picture_path, capfd):
    assert "mm-done" in raw.ask()  # what is refused below is the file, not the request
    steps = desk.steps
    address = "http://127.0.0.1:9/x.png"
    for number, path in enumerate([str(picture_path), "/etc/passwd", "../../etc/passwd", address]):
        picture = {"path": path, "url": address, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
        assert "must be a picture that was uploaded here before" in raw.ask(picture)
        status, said = raw.call("_look_at", [picture], f"c{number}")
        assert status == 400 and "uploaded here before" in said
    assert desk.steps == steps
    for path in ("/etc/passwd", __file__, str(picture_path), os.path.abspath("pyproject.toml")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(f"{raw.address}gradio_api/file={path}")
        assert caught.value.code in (403, 404)
    assert "Traceback" not in capfd.readouterr().err


def test_an_upload_can_be_asked_about_and_its_name_may_be_anything(raw, picture_path):
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="y.png"\r\n\r\n'
    body = head.encode() + picture_path.read_bytes() + b"\r\n--x--\r\n"
    status, said = raw.post("upload", body, "multipart/form-data; boundary=x")
    (path,) = json.loads(said)
    assert status == 200 and "mm-done" in raw.ask({"path": path, "meta": {"_type": "gradio.FileData"}})


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"prompt": ["hi"] * 900}, "data[1] must be a text or a number"),
        ({"prompt": {"path": "http://127.0.0.1:9/", "meta": {"_type": "gradio.FileData"}}}, "data[1] must be a text"),
        ({"prompt": "x" * 100_000}, "this page takes requests of 64384 bytes at most"),
        ({"prompt": "x" * 10_000}, "the question has 10000 characters"),
        ({"prompt": 7}, "the question must be text, not 7"),
        ({"picture": "x"}, "data[0] must be a picture that was uploaded"),
        ({"drafter": ["eagle3"]}, "data[3] must be a text or a number"),
        ({"drafter": 3}, "drafter 3 is not offered here"),
        ({"numbers": (float("nan"), 8, 0)}, "temperature=nan is no number"),
        ({"numbers": (0, 10**30, 0)}, "is more than this page answers"),
        ({"numbers": (0, "8", 0)}, "max_new_tokens=&#x27;8&#x27; is no number"),
        ({"numbers": (0, [8], 0)}, "data[8] must be a text or a number"),
        ({"numbers": (0, 8)}, "data must be a list of 10 values"),
    ],
)
def test_values_of_any_kind_are_refused_in_a_line(raw, desk, question, words, capfd):
    steps = desk.steps
    assert words in raw.ask(**question)
    assert desk.steps == steps and "Traceback" not in capfd.readouterr().err


def test_other_doors_are_closed_too(raw, desk, capfd):
    steps, data = desk.steps, json.dumps({"data": [["hi"] * 900]}).encode()
    for path in ("call/_answer", "call/v2/_answer", "run/_answer", "api/_answer", "run/predict"):
        status, said = raw.post(path, data)
        assert status == 400 and "this page has no other interface" in said
    state = [[{"number": 1}], 1]  # the trees of an answer are not taken from outside
    assert raw.call("tree", state, "f", "run/predict")[0] == 400
    status, said = raw.call("tree", [None, 1], "f", "run/predict")
    assert status == 200 and "once it has answered" in said
    for number in (99, -1, 1.5, "1", None):
        assert raw.call("_example", [number], "g")[0] == 200
        assert '"success":true' in get(f"{raw.address}gradio_api/queue/data?session_hash=g")
    assert desk.steps == steps and "Traceback" not in capfd.readouterr().err
