"""Engines that decode: our own loop, or transformers' `generate` with what it knows of speculative decoding."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..decoding.draining import drain
from ..decoding.sampling import Sampling
from ..decoding.stats import Round
from ..decoding.text import whole_text
from ..drafters import Drafter, DraftModelDrafter, NGramDrafter
from ..errors import MMSpecError
from ..generation import stream
from ..inputs import PER_TOKEN, Request
from ..models.slots import pick_numbers
from ..target import Target
from ..trees import Chain, TreeBuilder
from ..verifiers import Verifier
from .assistant import quiet, sighted, stock_assistant

ASSISTANT_TOKENS = 20
"""Tokens that an assistant drafts at most, if nothing else is said: the default of transformers."""


@dataclass
class Answer:
    """The answer of one engine to one request. Lists have an entry per row.

    Args:
        token_ids: the new tokens, the end token included.
        finish: why each row ended.
        wall: seconds from outside, the reading of the prompt included.
        seconds: the same by phase, from inside.
        first_tokens: tokens that came with the prompt's own pass.
        passes: target passes that verified something; see `Engine.answer`.
        rounds: records of the loop, where it is ours.
    """

    token_ids: list[list[int]]
    finish: list[str | None]
    wall: float
    seconds: dict[str, float]
    first_tokens: list[int]
    passes: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def new_tokens(self) -> list[int]:
        """Number of new tokens per row."""
        return [len(ids) for ids in self.token_ids]


class Engine:
    """One side of a comparison: a way to answer requests.

    Args:
        target: who answers.
        drafter, tree, verifier: how it is sped up; None as in `mmspec.stream`.
        sampling: how tokens are chosen.
        max_new_tokens: at most so many per answer.

    Attributes:
        lossless: whether its text follows the target's own law.
        exact: whether it must be, token for token, the text of plain decoding with the same seed.
        budget: drafted nodes a round at most; None if unknown.
        one_row: whether it takes one prompt at a time only.
    """

    lossless = True
    one_row = False
    exact = False
    budget: int | None = 0

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        tree: TreeBuilder | None,
        verifier: Verifier | None,
        sampling: Sampling,
        max_new_tokens: int,
    ):
        self.target, self.drafter, self.tree, self.verifier = target, drafter, tree, verifier
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.setup()

    def setup(self) -> None:
        """Check what was given and set the attributes."""

    def ready(self, request: Request) -> None:
        """Do what comes once for a machine and a kind of request, so that no answer's time has it."""

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request; the preparation of the prompt is not part of it, everything after it is."""
        raise NotImplementedError


class MMSpecEngine(Engine):
    """The loop of this library."""

    def setup(self) -> None:
        """Read the budget off the tree or the drafter, and exactness off the verifier."""
        drafter = self.drafter
        if drafter is not None:
            self.budget = drafter.max_nodes if self.tree is None else self.tree.max_nodes
        if self.verifier is not None:
            self.lossless = self.verifier.lossless
            self.exact = self.lossless and self.verifier.proposal == "point"
        else:
            self.exact = True  # the default rules reproduce plain decoding, at any temperature

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request by `mmspec.stream`."""
        pieces = stream(
            self.target,
            self.drafter,
            inputs=request,
            tree=self.tree,
            verifier=self.verifier,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            **vars(self.sampling),
        )
        with _settled(self.target.device) as seconds:
            out = drain(pieces)
        stats = out.stats
        first = [1] * request.batch_size
        return Answer(
            out.token_ids, out.finish_reason, seconds[0], dict(stats.seconds), first, len(stats.rounds), stats.rounds
        )


class TransformersEngine(Engine):
    """The target's own `generate`: plain, with prompt lookup, or with an assistant model.

    The drafter of the configuration says which: none is plain decoding; `NGramDrafter` is prompt lookup with as long
    guesses and n-grams; `DraftModelDrafter` is assisted generation with the same weights, with guesses of a fixed
    length if the tree is a `Chain`, and by transformers' own schedule otherwise. `passes` counts the prompt's pass as
    well, because that one verifies a guess too.

    Args:
        mend_pictures: show the pictures to the assistant, which transformers 5.23 forgets (see `sighted`); False
            measures it as it is.

    Raises:
        MMSpecError: for a drafter that has no counterpart in transformers, another tree, or a verifier.
    """

    def __init__(self, *arguments: Any, mend_pictures: bool = True, **keywords: Any):
        self.mend_pictures = mend_pictures
        super().__init__(*arguments, **keywords)

    def setup(self) -> None:
        """Make the options of `generate`."""
        self.exact = self.sampling.temperature == 0
        self.one_row = self.drafter is not None
        self.options = self._options()

    def _options(self) -> dict[str, Any]:
        if self.verifier is not None:
            raise MMSpecError("engine=transformers has its own rule of acceptance: leave verifier=auto")
        if self.tree is not None and not (isinstance(self.tree, Chain) and isinstance(self.drafter, DraftModelDrafter)):
            raise MMSpecError(
                f"engine=transformers knows no {type(self.tree).__name__} for drafter "
                f"{type(self.drafter).__name__}: it drafts chains, with draft models only"
            )
        if self.target.family.cross_attends:
            name = type(self.target.model).__name__
            raise MMSpecError(f"engine=transformers does not ask {name}, an encoder-decoder model: use engine=mmspec")
        sampling = self.sampling
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": sampling.temperature > 0}
        if options["do_sample"]:
            # Its own defaults, such as top_k=50, would be another law than that of the other sides.
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
            options |= {"top_p": 1.0 if sampling.top_p is None else sampling.top_p, "min_p": sampling.min_p}
        if sampling.repetition_penalty is not None:
            options["repetition_penalty"] = sampling.repetition_penalty
        drafter = self.drafter
        if isinstance(drafter, NGramDrafter):
            self.budget = drafter.length
            options |= {"prompt_lookup_num_tokens": drafter.length, "max_matching_ngram_size": drafter.max_ngram}
        elif isinstance(drafter, DraftModelDrafter):
            assistant = options["assistant_model"] = stock_assistant(drafter)
            settings = assistant.generation_config
            if self.tree is not None:
                settings.num_assistant_tokens = self.tree.length
                settings.num_assistant_tokens_schedule = "constant"
                settings.assistant_confidence_threshold = 0.0
            self.budget = settings.num_assistant_tokens or ASSISTANT_TOKENS
        elif drafter is not None:
            raise MMSpecError(
                f"engine=transformers has no counterpart of {type(drafter).__name__}: choose drafter=none, "
                "drafter=ngram (prompt lookup) or a draft model (assisted generation)"
            )
        return options

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request by the target's `generate`."""
        inputs = _left_padded(request)
        width = inputs["input_ids"].shape[1]
        watch = _StopWatch(width)
        assistant, drafter = self.options.get("assistant_model"), self.drafter
        with (
            sighted(assistant, drafter, request)
            if self.mend_pictures and assistant is not None and isinstance(drafter, DraftModelDrafter)
            else nullcontext(),
            quiet(),
            torch.random.fork_rng([self.target.device] if self.target.device.type == "cuda" else []),
        ):
            torch.manual_seed(seed)
            with _settled(self.target.device) as seconds:
                watch.start()
                ids = self.target.model.generate(**inputs, **self.options, stopping_criteria=[watch])
        rows = [_cut(row, self.target.eos_token_ids) for row in ids[:, width:].tolist()]
        wall = seconds[0]
        return Answer(
            [row for row, _ in rows],
            [reason for _, reason in rows],
            wall,
            {"prefill": watch.first, "transformers": wall - watch.first},
            [min(watch.first_tokens, len(row)) for row, _ in rows],
            watch.passes,
        )


class _StopWatch:
    """A stopping criterion that never stops anything: `generate` calls it after every pass of the target."""

    def __init__(self, width: int):
        self.width, self.passes, self.first, self.first_tokens = width, 0, 0.0, 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if not self.passes:
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            self.first = time.perf_counter() - self._started
            self.first_tokens = input_ids.shape[1] - self.width
        self.passes += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _settled(device: torch.device) -> Iterator[list[float]]:
    """Time a block, with nothing queued on the device at either end; the list holds the seconds afterwards."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - started)


def _left_padded(request: Request) -> dict[str, Any]:
    """Return the inputs with the padding moved to the left, where `generate` expects it."""
    inputs = dict(request.inputs)
    if min(request.lengths) == request.max_length:
        return inputs
    order = inputs["attention_mask"].argsort(dim=-1, stable=True)
    for name in PER_TOKEN:
        if name in inputs:
            inputs[name] = pick_numbers(inputs[name], order)
    inputs.pop("position_ids", None)
    return inputs


def _cut(ids: list[int], eos: tuple[int, ...]) -> tuple[list[int], str]:
    """Return a row of `generate` up to its end token; what follows is padding."""
    for place, token in enumerate(ids):
        if token in eos:
            return ids[: place + 1], "eos"
    return ids, "length"


def texts(target: Target, token_ids: list[list[int]]) -> list[str | None]:
    """Return the texts of answers."""
    return [whole_text(target.tokenizer, ids) for ids in token_ids]
