"""The page as Gradio serves it, without a browser; needs the extra `demo`."""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.request

import pytest

pytest.importorskip("gradio")

from mmspec.demo.page import Page
from mmspec.errors import MMSpecError

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


def test_a_file_of_the_machines_own_cannot_be_asked_about(served, desk, picture_path):
    page, address, _ = served
    (asking,) = [fn for fn in page.blocks.fns.values() if fn.name == "_answer"]
    chosen = [group.start for group in desk.choices.groups.values()]

    def ask(picture, session: str) -> str:
        data = [picture, "What is it?", *chosen, 0, 8, 0]
        body = json.dumps({"data": data, "fn_index": asking._id, "session_hash": session}).encode()
        request = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
        return get(f"{address}gradio_api/queue/data?session_hash={session}")

    assert "mm-done" in ask(None, "a")  # what is refused below is the file, not the request
    steps = desk.steps
    said = ask({"path": str(picture_path), "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}, "b")
    assert '"success":false' in said and "mm-done" not in said and desk.steps == steps
