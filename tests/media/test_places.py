"""Files on a network are fetched within limits, and what cannot be fetched is refused in words."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from mmspec.errors import MMSpecError
from mmspec.media import load_image, places


@pytest.fixture
def address():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(buffer, "PNG")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/to-a-file":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
            else:
                self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(buffer.getvalue() if self.path == "/a.png" else b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_on_a_network_is_fetched(address):
    assert np.asarray(load_image(f"{address}/a.png")).tolist() == [[[9, 8, 7]] * 3] * 2


def test_what_cannot_be_fetched_is_refused_in_one_line(address, monkeypatch):
    ended = "download it, and give the path of the file"
    with pytest.raises(MMSpecError, match=rf"gone.png' cannot be fetched \(.*404.*\): {ended}"):
        load_image(f"{address}/gone.png")
    with pytest.raises(MMSpecError, match=rf"cannot be fetched \(.*\): {ended}"):
        load_image(f"{address}/to-a-file")
    with pytest.raises(MMSpecError, match=rf"cannot be fetched \(.*refused.*\): {ended}"):
        load_image("http://127.0.0.1:9/a.png")
    refused(lambda: load_image("http://a b/\n"), "cannot be fetched")
    monkeypatch.setitem(places.MOST_BYTES, "image", 20)
    refused(lambda: load_image(f"{address}/a.png"), "cannot be fetched (it has more than 0 MiB)")
