"""Server: a client of any server that speaks OpenAI's protocol, with many requests in flight and an end to waiting."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError, cut, did_you_mean, first_line, listed
from ..extras import missing
from .asking import Asked
from .worker import COUNTERS

if TYPE_CHECKING:
    import httpx2

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may be answered."""
OF_THE_PROMPT = (400, 413, 422)
"""Statuses that say that this one prompt cannot be answered."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry, which double from retry to retry, and at most."""
CONNECTING, ABOUT_ITSELF = 10.0, 30.0
"""Seconds that a connection may take to come about, and that a question may take that needs no model."""
WAYS_OUT = {
    401: "; put its key into the variable {key} (engine.key names another)",
    403: "; put another key into the variable {key} (engine.key names another)",
    404: "; url= is its address up to /v1",
}
"""The ways out that are told with a refusal, by its status."""
METRIC = re.compile(r"^(vllm:spec_decode_\w+?)_total(?:\{(.*)\})? ([0-9.e+-]+)$", re.MULTILINE)
POSITION = re.compile(r'position="(\d+)"')


@dataclass(frozen=True)
class Served:
    """A server's answer to one prompt.

    Args:
        text: the answer; None where this prompt could not be answered.
        ids: its token ids where the server gives them, else None.
        finish: `"stop"`, `"length"`, or what else the server says.
        tokens: number of tokens that it counts in the answer, its end token included or not; None if it does not say.
        prompt_tokens: number of tokens that it counts in the prompt; None if it does not say.
        prompt_ids: those of the prompt where the server gives them.
        reason: why there is no answer, in one line.
    """

    text: str | None
    ids: list[int] | None = None
    finish: str | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_ids: list[int] | None = None
    reason: str = ""


class Server:
    """A client of one server.

    Args:
        url: where it is, with `/v1` at its end or without.
        model: the model's name there; None for the only one that it has.
        key: variable of the environment that holds the server's key, if it wants one.
        concurrency: requests in flight at most.
        patience: seconds that one request may take at most, its further tries included.
        retries: further tries of a request that a busy server has refused, or that was lost on the way.

    Raises:
        MMSpecError: for a URL that is none; if the package that speaks HTTP is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        patience: float = 600.0,
        retries: int = 5,
    ):
        try:
            import httpx2  # noqa: F401
        except ModuleNotFoundError:
            raise MMSpecError(missing("url=", "httpx2")) from None
        if not _is_address(url):
            raise MMSpecError(f"url={url!r} is no address of a server: give one such as http://localhost:8000")
        self.root = url.rstrip("/").removesuffix("/v1")
        self.model, self.key = model, key
        self.room: int | None = None
        """Tokens that a prompt and its answer may have together; None if the server does not say."""
        self.concurrency, self.patience, self.retries = concurrency, patience, retries

    # What is asked.

    def models(self) -> dict[str, int | None]:
        """Return the names of the models that the server has, and how many tokens a prompt and its answer may have
        together there (vLLM says so); None where it does not say."""
        found = self._run(lambda client: self._sent(client, "GET", "/v1/models", seconds=ABOUT_ITSELF))
        ones = found.get("data")
        if not isinstance(ones, list):
            raise _not_the_protocol(self.root, str(found))
        rooms = {str(one.get("id")): one.get("max_model_len") for one in ones if isinstance(one, dict)}
        return {name: room if type(room) is int else None for name, room in rooms.items()}

    def choose_model(self) -> None:
        """Take the model that was named, or the only one that there is, and note how much room it has.

        Raises:
            MMSpecError: if the server has no such model, or several and none was named.
        """
        rooms = self.models()
        names, name = list(rooms), self.model
        if name is None:
            if len(names) != 1:
                raise MMSpecError(
                    f"the server at {self.root} has the models {listed(names)}: name one, engine.model=NAME"
                )
            name = names[0]
        elif name not in names:
            raise MMSpecError(f"the server at {self.root} has no model {name!r}.{did_you_mean(name, names)}")
        self.model, self.room = name, rooms[name]

    def tokenized(self, text: str) -> list[int] | None:
        """Return the tokens of a text by the server's tokenizer, without special tokens; None if it does not say."""
        try:
            asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
            found = self._run(lambda client: self._sent(client, "POST", "/tokenize", asked, seconds=ABOUT_ITSELF))
        except RefusedError:
            return None
        tokens = found.get("tokens")
        return tokens if isinstance(tokens, list) and tokens else None  # others look for the text elsewhere

    def counts(self) -> dict[str, Any]:
        """Return the counters of speculative decoding that vLLM publishes; nothing of another server."""
        try:
            text = self._run(lambda client: self._sent(client, "GET", "/metrics", as_text=True, seconds=ABOUT_ITSELF))
        except RefusedError:
            return {}
        found: dict[str, Any] = {}
        per_position: Counter[int] = Counter()
        for name, labels, value in METRIC.findall(text):
            if (own := COUNTERS.get(name)) is None:
                continue
            if (place := POSITION.search(labels or "")) is not None:
                per_position[int(place[1])] += int(float(value))
            else:
                found[own] = found.get(own, 0) + int(float(value))
        if per_position:
            found["per_position"] = [per_position[place] for place in range(max(per_position) + 1)]
        return found

    def answers(
        self,
        asked: Sequence[Asked],
        sampling: dict[str, Any],
        seeds: Sequence[int],
        arrived: Callable[[int, Served], None] = lambda number, served: None,
    ) -> list[Served]:
        """Return the answers to prompts, in their order. At most `concurrency` of them are asked at once.

        Args:
            asked: the prompts.
            sampling: arguments about sampling, as vLLM names them.
            seeds: one per prompt.
            arrived: function that is called with each answer as soon as it is there, and the number of its prompt. What
                it raises ends the asking.

        Raises:
            MMSpecError: if the server cannot be reached, or refuses more than one prompt's own fault.
        """

        async def all_of(client: httpx2.AsyncClient) -> list[Served]:
            free = asyncio.Semaphore(self.concurrency)

            async def one(number: int, prompt: Asked, seed: int) -> Served:
                async with free:
                    served = await self._answer(client, prompt, sampling, seed)
                arrived(number, served)
                return served

            async with asyncio.TaskGroup() as group:
                pairs = enumerate(zip(asked, seeds, strict=True))
                tasks = [group.create_task(one(number, *pair)) for number, pair in pairs]
            return [task.result() for task in tasks]

        return self._run(all_of)

    async def _answer(self, client: httpx2.AsyncClient, prompt: Asked, sampling: dict[str, Any], seed: int) -> Served:
        body = {"model": self.model, "messages": prompt.messages(), "seed": seed, "return_token_ids": True, **sampling}
        try:
            found = await self._sent(client, "POST", "/v1/chat/completions", body)
        except RefusedError as error:
            if error.status in OF_THE_PROMPT:
                return Served(None, reason=str(error))
            raise
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            served = Served(
                text=choice["message"]["content"] or "",
                ids=choice.get("token_ids"),
                finish=choice.get("finish_reason"),
                tokens=usage.get("completion_tokens"),
                prompt_tokens=usage.get("prompt_tokens"),
                prompt_ids=found.get("prompt_token_ids"),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            served = None
        if (
            served is None
            or not isinstance(served.text, str)
            or not all(map(_ids_or_none, (served.ids, served.prompt_ids)))
        ):
            raise MMSpecError(
                f"the server at {self.root} has answered what is no chat completion: {cut(str(found), 200)}"
            )
        return served

    # How it is sent.

    def _run(self, ask: Callable[[httpx2.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
        """Return what is asked with a client of its own; of a group of errors, one is raised alone."""
        import httpx2

        async def asked() -> Any:
            key = os.environ.get(self.key)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            limits = httpx2.Limits(max_connections=self.concurrency)
            timeout = httpx2.Timeout(None, connect=CONNECTING)  # of the whole request: `_sent`
            async with httpx2.AsyncClient(
                base_url=self.root, headers=headers, limits=limits, timeout=timeout
            ) as client:
                return await ask(client)

        try:
            if not _in_a_loop():
                return asyncio.run(asked())
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(lambda: asyncio.run(asked())).result()
        except BaseExceptionGroup as group:
            errors = sorted(_flat(group), key=lambda error: not isinstance(error, MMSpecError))
            raise errors[0] from None

    async def _sent(
        self,
        client: httpx2.AsyncClient,
        method: str,
        path: str,
        body: Any = None,
        as_text: bool = False,
        seconds: float = math.inf,
    ) -> Any:
        """Return what the server answers to one request, which is tried again while it is busy.

        All tries together take `seconds` at most, and never more than `patience`.

        Raises:
            RefusedError: if it refuses, with its words.
            MMSpecError: if it cannot be reached, or takes too long.
        """
        limit, tries, wrong = min(self.patience, seconds), 0, ""
        try:
            async with asyncio.timeout(limit):
                while tries <= self.retries:
                    tries += 1
                    answer, wrong, wished = await self._tried(client, method, path, body)
                    if answer is not None:
                        return answer.text if as_text else _json(answer, self.root)
                    if tries <= self.retries:
                        await asyncio.sleep(min(wished or FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE))
        except TimeoutError:
            wrong = wrong or f"has not answered within {limit:g} s"
        raise MMSpecError(
            f"the server at {self.root} {wrong}, tried {tries} times: start it (vllm serve MODEL), "
            "correct url=, or lower engine.concurrency; what was answered is kept"
        )

    async def _tried(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Any
    ) -> tuple[httpx2.Response | None, str, float | None]:
        """Return the answer to one try, or what went wrong and the seconds that the server wants to be left alone.

        Raises:
            RefusedError: if it refuses, with its words.
        """
        import httpx2

        try:
            answer = await client.request(method, path, json=body)
        except httpx2.RequestError as error:
            return None, f"cannot be reached ({first_line(error)})", None
        if answer.status_code < 400:
            return answer, "", None
        said = f"says {answer.status_code}: {_words(answer)}"
        if answer.status_code in BUSY:
            return None, said, _number(answer.headers.get("retry-after"))
        said += WAYS_OUT.get(answer.status_code, "").format(key=self.key)
        raise RefusedError(f"the server at {self.root} {said}", answer.status_code)


class RefusedError(MMSpecError):
    """A server's refusal.

    Args:
        message: in one line.
        status: the status of HTTP.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def _is_address(url: Any) -> bool:
    import httpx2

    try:
        found = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        return False
    return found.scheme in ("http", "https") and bool(found.host) and (found.port or 0) < 2**16


def _in_a_loop() -> bool:
    """Return True if a loop runs in this thread already, as it does in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _json(answer: Any, root: str) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _not_the_protocol(root, answer.text)
    return found


def _not_the_protocol(root: str, said: str) -> MMSpecError:
    return MMSpecError(f"{root} answers, but not in OpenAI's protocol: {cut(said, 100)!r}; correct url=")


def _ids_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(type(one) is int for one in value))


def _words(answer: Any) -> str:
    """Return what a server says about an error."""
    try:
        found = answer.json()
        said = found.get("error", found) if isinstance(found, dict) else found
        said = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        said = answer.text
    return cut(" ".join(str(said).split()), 300)


def _number(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:  # a date
        return None


def _flat(group: BaseExceptionGroup) -> list[BaseException]:
    """Return the errors of a group, and of the groups in it."""
    return [
        one
        for error in group.exceptions
        for one in (_flat(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
