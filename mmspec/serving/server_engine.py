"""ServerEngine: a running server that speaks OpenAI's protocol, as one side of a comparison and as who answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..decoding.sampling import Sampling
from ..decoding.text import whole_text
from ..errors import MMSpecError
from ..evaluation.engines import Answer, Arrival, Engine
from ..exactness import divergences
from ..generation import generate
from ..inputs import Request, prepare
from ..settings.arguments import number, positive, whole_number
from .asking import asked_of, check_prompt, check_room, cut_short
from .counters import rounds_of
from .engine import sampling_of
from .server import Served, Server

PROBE, PROBED = "Describe the picture.", 8
"""The question that every server is asked first, and the number of tokens of its answer that are compared."""
SAMPLE = "What is left of the red square? 17 blue circles: naïve, α + β."
"""A text that tells tokenizers apart."""

MORE_ROOM = "start it with more (vllm serve --max-model-len N)"
"""The way out where a server's answers are cut short."""


@dataclass(eq=False)
class ServerEngine(Engine):
    """A server that has the target: vLLM, SGLang, or any other that speaks OpenAI's protocol of chats.

    How it drafts was decided when it was started, so the method here has no drafter. It is asked a probe first: the
    tokens of the prompt, and the first tokens of the answer, have to be the target's, up to near-ties.

    Token ids are the server's where it gives them (vLLM does); else its text is tokenised again, and held against the
    number of tokens that the server counts. The time is from here, the way there and back included; when the first
    token came is not known. Where vLLM's counters can be read (`/metrics`), rounds follow from them, as long as nobody
    else asks the server.

    Args:
        url, model, key, concurrency, patience, retries: see `Server`.
        probe: whether to ask the probe; without it nothing is known of who answers.

    Raises:
        MMSpecError: for a drafter, a tree or a verifier; if the server cannot be reached, or is none of this target's.
    """

    url: str = ""
    model: str | None = None
    key: str = "OPENAI_API_KEY"
    concurrency: int = 32
    patience: float = 600.0
    retries: int = 5
    probe: bool = True

    def __post_init__(self) -> None:
        self.exact, self.budget, self.one_by_one = self.sampling.temperature == 0, None, True
        number(self, above=0, patience=self.patience)
        positive(self, concurrency=self.concurrency)
        whole_number(self, lowest=0, retries=self.retries)
        if self.drafter is not None or self.tree is not None or self.verifier is not None:
            raise MMSpecError(
                "engine=server: a running server drafts as it was started to; leave drafter=none, tree=default and "
                "verifier=auto, and name the method after it"
            )
        self.server = Server(self.url, self.model, self.key, self.concurrency, self.patience, self.retries)
        self.server.choose_model()
        if self.server.room is not None:
            check_room(f"the server at {self.server.root}", self.server.room, self.max_new_tokens, MORE_ROOM)
        if self.probe:
            self._check_tokenizer()
            self._check_answers()

    def _check_tokenizer(self) -> None:
        theirs, ours = (
            self.server.tokenized(SAMPLE),
            self.target.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"],
        )
        if theirs is not None and theirs != ours:
            raise MMSpecError(
                f"the server at {self.server.root} has another tokenizer than the target: it serves "
                f"{self.server.model!r}, and the target is {self.target.model.config.name_or_path!r}; correct url= or "
                "target="
            )

    def _check_answers(self) -> None:
        """Hold the first tokens of an answer against the target's own."""
        from ..zoo import demo_image

        where, sees = f"the server at {self.server.root}", "image" in self.target.family.encoders
        request = prepare(self.target, PROBE, [demo_image()] if sees else None)
        (served,) = self.server.answers(asked_of(self.target, request), sampling_of(Sampling(), PROBED), [0])
        if served.text is None:
            what = "a picture and a question" if sees else "a question"
            raise MMSpecError(f"{where} does not take {what} ({served.reason}): serve the target with picture input")
        if served.prompt_tokens is not None and served.prompt_tokens != request.max_length:
            raise MMSpecError(
                f"{where} reads the probe as {served.prompt_tokens} tokens, and the target as {request.max_length}: "
                "it has another model, another chat template, or does not see pictures"
            )
        ours = generate(self.target, inputs=request, max_new_tokens=PROBED).token_ids[0]
        theirs = self._ids(served)[: len(ours)]
        found = [one for one in divergences(self.target, request, [ours], [theirs]) if not one["tie"]]
        if found:
            said, own = map(self.target.tokenizer.decode, (theirs, ours))
            raise MMSpecError(
                f"{where} answers the probe with {said!r}, and the target with {own!r}: it serves another model; "
                "correct url= or target="
            )

    def answer(self, request: Request, seed: int) -> Answer:
        """Ask all rows at once; `Answer.unanswered` has those that the server, or the tokenizer, had trouble with."""
        rows, before, arrived = request.batch_size, self.server.counts(), list[Arrival]()
        started = time.perf_counter()
        self.answer_each(request, [seed + row for row in range(rows)], arrived.append)
        wall = time.perf_counter() - started
        arrived.sort(key=lambda one: one.row)
        after = self.server.counts() if before else {}
        ids = [one.token_ids for one in arrived]
        rounds = rounds_of(_grown(before, after), sum(max(0, len(row) - 1) for row in ids)) if before else []
        return Answer(
            token_ids=ids,
            finish=[one.finish for one in arrived],
            wall=wall,
            seconds={"server": wall},
            first_tokens=[min(1, len(row)) for row in ids],
            passes=len(rounds),
            rounds=rounds,
            unanswered={one.row: one.reason for one in arrived if one.reason is not None},
        )

    def answer_each(self, request: Request, seeds: Sequence[int], arrived: Callable[[Arrival], None]) -> None:
        """Ask all rows at once, and hand on every one as its answer comes.

        Raises:
            MMSpecError: if the server cannot be reached any more, or has read another prompt than the target would.
        """
        ours, where = request.token_ids(), f"the server at {self.server.root}"

        def read(row: int, served: Served) -> None:
            if served.prompt_ids is not None:
                check_prompt(row, ours[row], served.prompt_ids, where)
            arrived(self._arrival(row, served))

        sampling = sampling_of(self.sampling, self.max_new_tokens)
        self.server.answers(asked_of(self.target, request), sampling, [seed % 2**63 for seed in seeds], read)

    def _arrival(self, row: int, served: Served) -> Arrival:
        finish = "eos" if served.finish == "stop" else "length"
        try:
            ids = self._ids(served)
        except MMSpecError as error:
            return Arrival(row, [], finish, str(error))
        written = served.tokens if served.ids is None else len(ids)
        if finish == "length" and written is not None and written < self.max_new_tokens:
            where = f"the server at {self.server.root}"
            return Arrival(row, [], finish, cut_short(where, self.server.room, written, self.max_new_tokens, MORE_ROOM))
        return Arrival(row, ids, finish)

    def _ids(self, served: Served) -> list[int]:
        """Return the token ids of an answer.

        Raises:
            MMSpecError: if there is none, or its text cannot be tokenised into as many tokens as the server wrote.
        """
        if served.text is None:
            raise MMSpecError(served.reason)
        if served.ids is not None:
            if strange := [token for token in served.ids if not 0 <= token < self.target.vocab_size]:
                raise MMSpecError(
                    f"the answer has the token id {strange[0]}, but those of the target go from 0 to "
                    f"{self.target.vocab_size - 1}"
                )
            return list(served.ids)
        tokenizer, ends = self.target.tokenizer, self.target.eos_token_ids
        ids = list(tokenizer(served.text, add_special_tokens=False)["input_ids"])
        if served.finish == "stop" and ends:
            ids.append(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])
        if whole_text(tokenizer, ids) != served.text:
            raise MMSpecError(f"the text of the answer does not survive its tokenizer: {served.text[:60]!r}")
        if served.tokens is not None and served.tokens not in (len(ids), len(ids) - 1):
            raise MMSpecError(
                f"tokenised again, the answer has {len(ids)} tokens, and the server counts {served.tokens}: a server "
                "that gives token ids (vLLM) has no such trouble"
            )
        return ids


def _grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return by how much counters have grown."""
    grown: dict[str, Any] = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, list):
            old = (old or []) + [0] * (len(value) - len(old or []))
            grown[name] = [now - then for now, then in zip(value, old, strict=True)]
        else:
            grown[name] = value - (old or 0)
    return grown
