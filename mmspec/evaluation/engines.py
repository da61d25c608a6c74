"""Engines that decode: our own loop, or transformers' `generate` with what it knows of speculative decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..decoding.draining import drain
from ..decoding.sampling import Sampling
from ..decoding.stats import Round
from ..drafters import Drafter, DraftModelDrafter, NGramDrafter
from ..errors import MMSpecError
from ..exactness import Attribution, attribute
from ..generation import stream, tree_for
from ..inputs import PER_TOKEN, Request
from ..memory import unchanged
from ..models.slots import pick_numbers
from ..target import Target
from ..trees import Chain, TreeBuilder
from ..verifiers import Verifier
from .assistant import quiet, sighted, stock_assistant

ASSISTANT_TOKENS = 20
"""Tokens that an assistant drafts at most, if nothing else is said: the default of transformers."""

Result = TypeVar("Result")


@dataclass
class Answer:
    """The answer of one engine to one request. Lists have an entry per row.

    Args:
        token_ids: the new tokens, the end token included.
        finish: why each row ended.
        wall: seconds from outside, the reading of the prompt included.
        seconds: the same by phase, from inside.
        first_tokens: tokens that came with the prompt's own pass.
        passes: target passes that verified something; see `TransformersEngine`.
        rounds: records of the loop where it is ours, or what follows of them from another engine's counters.
        unanswered: rows that could not be answered, with the reasons; their tokens are empty.
        cache_bytes: what the caches take, see `mmspec.decoding.stats.Stats`; empty where nobody knows.
        overlap_seconds: by how much decoding would be shorter, had a drafter and a target that took turns worked side
            by side, see `mmspec.decoding.stats.Stats.projected_decode_seconds`; None where none took turns.
    """

    token_ids: list[list[int]]
    finish: list[str | None]
    wall: float
    seconds: dict[str, float]
    first_tokens: list[int]
    passes: int
    rounds: list[Round] = field(default_factory=list)
    unanswered: dict[int, str] = field(default_factory=dict)
    cache_bytes: dict[str, int] = field(default_factory=dict)
    overlap_seconds: float | None = None

    def complete(self) -> Answer:
        """Return it if all rows were answered.

        Raises:
            MMSpecError: with the reason for the first one that was not.
        """
        for reason in self.unanswered.values():
            raise MMSpecError(reason)
        return self


@dataclass(frozen=True)
class Arrival:
    """One row of an answer, as it arrives.

    Args:
        row: number of the row in the request.
        token_ids: the new tokens, the end token included; none of a row that could not be answered.
        finish: why the row ended.
        reason: why it could not be answered; None if it was.
    """

    row: int
    token_ids: list[int]
    finish: str | None
    reason: str | None = None


@dataclass(eq=False)
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
        one_by_one: whether rows are answered each by itself, so that `answer_each` can hand them on as they come.
        versions: versions of the libraries of an engine in a process of its own; None for this one.
    """

    target: Target
    drafter: Drafter | None
    tree: TreeBuilder | None
    verifier: Verifier | None
    sampling: Sampling
    max_new_tokens: int
    lossless: bool = field(init=False, default=True)
    exact: bool = field(init=False, default=True)
    budget: int | None = field(init=False, default=0)
    one_row: bool = field(init=False, default=False)
    one_by_one: bool = field(init=False, default=False)
    versions: dict[str, str] | None = field(init=False, default=None)

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request; the preparation of the prompt is not part of it, everything after it is."""
        raise NotImplementedError

    def answer_each(self, request: Request, seeds: Sequence[int], arrived: Callable[[Arrival], None]) -> None:
        """Decode a request, with a seed for each row, and hand on every row as soon as it is there.

        Only engines with `one_by_one` do that. What `arrived` raises ends it.
        """
        raise NotImplementedError

    def attribute(self, request: Request, seed: int) -> Attribution | None:
        """Return why its answer to a single prompt differs from plain decoding's; None if that cannot be found out."""
        return None


@dataclass(eq=False)
class MMSpecEngine(Engine):
    """The loop of this library."""

    def __post_init__(self) -> None:
        if self.drafter is not None:
            tree = tree_for(self.drafter, self.tree)
            self.budget = self.drafter.max_nodes if tree is None else tree.for_drafter(self.drafter).max_nodes
        if self.verifier is not None:  # the default rules reproduce plain decoding, at any temperature
            self.lossless = self.verifier.lossless
            self.exact = self.lossless and self.verifier.proposal == "point"

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
        wall, out = timed(self.target.device, lambda: drain(pieces))
        rounds, first = out.stats.rounds, [1] * request.batch_size
        held, projected = dict(out.stats.cache_bytes), out.stats.projected_decode_seconds
        return Answer(
            out.token_ids,
            out.finish_reason,
            wall,
            dict(out.stats.seconds),
            first,
            len(rounds),
            rounds,
            cache_bytes=held,
            overlap_seconds=None if projected is None else out.stats.decode_seconds - projected,
        )

    def attribute(self, request: Request, seed: int) -> Attribution | None:
        """Decode a prompt node by node, see `mmspec.exactness.attribute`."""
        if self.drafter is None:
            return None
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": seed, **vars(self.sampling)}
        with unchanged(self.drafter, self.tree, self.verifier):
            return attribute(self.target, self.drafter, request, tree=self.tree, verifier=self.verifier, **options)


@dataclass(eq=False)
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

    mend_pictures: bool = True

    def __post_init__(self) -> None:
        self.exact = self.sampling.temperature == 0
        self.one_row = self.drafter is not None
        self._refuse()
        self.options = self._options() | self._drafting()

    def _refuse(self) -> None:
        """Refuse what transformers cannot do."""
        drafter, tree = self.drafter, self.tree
        if self.verifier is not None:
            raise MMSpecError("engine=transformers has its own rule of acceptance: leave verifier=auto")
        if tree is not None and not (isinstance(tree, Chain) and isinstance(drafter, DraftModelDrafter)):
            raise MMSpecError(
                f"engine=transformers knows no {type(tree).__name__} for drafter {type(drafter).__name__}: it drafts "
                "chains, with draft models only"
            )
        if self.target.family.cross_attends:
            name = type(self.target.model).__name__
            raise MMSpecError(f"engine=transformers does not ask {name}, an encoder-decoder model: use engine=mmspec")
        if drafter is not None and not isinstance(drafter, NGramDrafter | DraftModelDrafter):
            raise MMSpecError(
                f"engine=transformers has no counterpart of {type(drafter).__name__}: choose drafter=none, "
                "drafter=ngram (prompt lookup) or a draft model (assisted generation)"
            )

    def _options(self) -> dict[str, Any]:
        """Return the options of `generate` about sampling."""
        sampling = self.sampling
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": sampling.temperature > 0}
        if options["do_sample"]:
            # Its own defaults, such as top_k=50, would be another law than that of the other sides.
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
            options |= {"top_p": 1.0 if sampling.top_p is None else sampling.top_p, "min_p": sampling.min_p}
        if sampling.repetition_penalty is not None:
            options["repetition_penalty"] = sampling.repetition_penalty
        return options

    def _drafting(self) -> dict[str, Any]:
        """Return the options of `generate` about guesses, and set the budget by them."""
        drafter = self.drafter
        if isinstance(drafter, NGramDrafter):
            self.budget = drafter.length
            return {"prompt_lookup_num_tokens": drafter.length, "max_matching_ngram_size": drafter.max_ngram}
        if not isinstance(drafter, DraftModelDrafter):
            return {}
        assistant = stock_assistant(drafter)
        settings = assistant.generation_config
        if isinstance(self.tree, Chain):
            settings.num_assistant_tokens = self.tree.length
            settings.num_assistant_tokens_schedule = "constant"
            settings.assistant_confidence_threshold = 0.0
        self.budget = settings.num_assistant_tokens or ASSISTANT_TOKENS
        return {"assistant_model": assistant}

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request by the target's `generate`."""
        inputs = _left_padded(request)
        width, device = inputs["input_ids"].shape[1], self.target.device
        mend, drafter = self.mend_pictures, self.drafter
        with (
            sighted(self.options["assistant_model"], drafter, request)
            if mend and isinstance(drafter, DraftModelDrafter)
            else nullcontext(),
            quiet(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(seed)
            watch = _StopWatch(width)
            generate = self.target.model.generate
            wall, ids = timed(device, lambda: generate(**inputs, **self.options, stopping_criteria=[watch.begin()]))
        rows = [_cut(row, self.target.eos_token_ids) for row in ids[:, width:].tolist()]
        return Answer(
            token_ids=rows,
            finish=["eos" if row and row[-1] in self.target.eos_token_ids else "length" for row in rows],
            wall=wall,
            seconds={"prefill": watch.first, "transformers": wall - watch.first},
            first_tokens=[min(watch.first_tokens, len(row)) for row in rows],
            passes=watch.passes,
        )


class _StopWatch:
    """A stopping criterion that never stops anything: `generate` calls it after every pass of the target."""

    def __init__(self, width: int):
        self.width, self.passes, self.first, self.first_tokens = width, 0, 0.0, 0

    def begin(self) -> _StopWatch:
        """Set the watch to zero and return it."""
        self._started = time.perf_counter()
        return self

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if not self.passes:
            _settle(input_ids.device)
            self.first = time.perf_counter() - self._started
            self.first_tokens = input_ids.shape[1] - self.width
        self.passes += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def timed(device: torch.device, act: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that an act takes, with nothing queued on the device at either end, and its result."""
    _settle(device)
    started = time.perf_counter()
    result = act()
    _settle(device)
    return time.perf_counter() - started, result


def _settle(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _cut(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Return a row of `generate` up to its end token; what follows is padding."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in eos), ids)
