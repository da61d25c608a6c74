"""A server that speaks OpenAI's protocol of chats, in a thread of this process: a target of ours answers behind it.

What goes wrong with servers can be switched on; every request is kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mmspec


@dataclass
class Behaviour:
    """How the server answers.

    Args:
        target: who answers.
        ids: whether it gives token ids, and its tokenizer.
        busy: requests that it refuses with 503 first; every one from then on is answered.
        lost: requests to which it closes the connection without a word.
        sees: whether it takes pictures.
        refuses: a text of a prompt that it does not take.
        names: its models.
        room: tokens that it says a prompt and its answer may have together; None does not say.
        cut: answers are cut after so many tokens, and said to have ended by their length.
        shifted: added to every token that its tokenizer gives.
        other: the text that it answers in place of the target's.
        miscounted: added to the number of tokens that it says it wrote.
        slow: seconds before every answer.
        held: a text of a prompt whose answer waits until `released` is set.
        page: a text that it answers to everything, in place of JSON.
        replies: status and answer to everything on a path, in place of its own; None has no end.
        drafts: whether it publishes counters of speculative decoding: one draft of 3 tokens, 2 of them accepted, each.
    """

    target: Any
    ids: bool = True
    busy: int = 0
    lost: int = 0
    sees: bool = True
    refuses: str | None = None
    names: tuple[str, ...] = ("served",)
    room: int | None = None
    cut: int | None = None
    shifted: int = 0
    other: str | None = None
    miscounted: int = 0
    slow: float = 0.0
    held: str | None = None
    released: threading.Event = field(default_factory=threading.Event)
    page: str | None = None
    replies: dict[str, tuple[int, Any]] = field(default_factory=dict)
    drafts: bool = False
    url: str = ""
    chats: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serving(target: Any, **behaviour: Any) -> Iterator[Behaviour]:
    """Serve a target within; `url` of what is yielded says where."""
    how, lock, busy = Behaviour(target, **behaviour), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            how.paths.append(self.path)
            if self.path in how.replies:
                return self.reply(*how.replies[self.path])
            if how.page is not None:
                return self.reply(200, how.page)
            if self.path == "/v1/models":
                room = {} if how.room is None else {"max_model_len": how.room}
                return self.reply(200, {"data": [{"id": name, **room} for name in how.names]})
            if self.path == "/metrics" and how.drafts:
                return self.reply(200, counters(len(how.chats)))
            return self.reply(404, {"error": {"message": "no such page"}})

        def do_POST(self) -> None:
            how.paths.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path in how.replies:
                return self.reply(*how.replies[self.path])
            if self.path == "/tokenize":
                if not how.ids:
                    return self.reply(404, {"detail": "Not Found"})
                found = how.target.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
                return self.reply(200, {"tokens": [token + how.shifted for token in found]})
            if how.busy:
                how.busy -= 1
                return self.reply(503, {"error": {"message": "queue is full"}}, {"retry-after": "0.01"})
            if how.lost:
                how.lost -= 1
                self.close_connection = True
                return None
            busy[0] += 1
            how.most_at_once = max(how.most_at_once, busy[0])
            try:
                time.sleep(how.slow)
                if how.held is not None and how.held in json.dumps(body["messages"]):
                    how.released.wait(60)
                with lock:
                    status, said = chat(how, body)
            finally:
                busy[0] -= 1
            return self.reply(status, said)

        def reply(self, status: int, said: Any, headers: dict[str, str] | None = None) -> None:
            if said is None:
                return self.drip(status)
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def drip(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "1000000")
            self.end_headers()
            with suppress(OSError):  # the client has left
                while not ended.wait(0.02):
                    self.wfile.write(b" ")

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    how.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield how
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def chat(how: Behaviour, body: dict[str, Any]) -> tuple[int, Any]:
    """Return the status and the answer to a chat."""
    parts = [part for one in body["messages"] if isinstance(one["content"], list) for part in one["content"]]
    if not how.sees and any(part["type"] == "image_url" for part in parts):
        return 400, {"error": {"message": "At most 0 image(s) may be provided in one prompt."}}
    if how.refuses is not None and how.refuses in json.dumps(body["messages"]):
        return 400, {"error": {"message": "this prompt is not taken"}}
    how.chats.append(body)
    longest = body["max_tokens"] if how.cut is None else min(how.cut, body["max_tokens"])
    out = mmspec.generate(how.target, messages=body["messages"], max_new_tokens=longest)
    text = out.text[0] if how.other is None else how.other
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = "stop" if out.finish_reason[0] == "eos" else "length"
    usage = {"prompt_tokens": out.stats.prompt_tokens[0], "completion_tokens": len(out.token_ids[0]) + how.miscounted}
    found: dict[str, Any] = {"choices": [choice], "usage": usage}
    if how.ids and how.other is None:
        choice["token_ids"] = out.token_ids[0]
    return 200, found


def counters(chats: int) -> str:
    """Return the page of counters after so many chats, as vLLM writes it, of two engines behind one address."""
    lines = ["# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts."]
    for name, each in {"drafts": 1, "draft_tokens": 3, "accepted_tokens": 2}.items():
        lines += [
            f'vllm:spec_decode_num_{name}_total{{engine="{one}",model_name="served"}} {count}.0'
            for one, count in ((0, chats * each), (1, 0))
        ]
    lines += [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="served",position="{place}"}} '
        f"{chats * (place < 2)}.0"
        for place in range(3)
    ]
    return "\n".join(lines) + "\n"
