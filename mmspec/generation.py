"""The loop: draft, score, verify, commit, observe. The only one; it knows no method and no model family by name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .calls import expect_drafter, expect_target, named_arguments
from .drafters import Drafter
from .errors import MMSpecError
from .families.frequencies import check_reach
from .inputs import Request, prepare, whole
from .sampling import LogitsPipeline, random_stream, refuse_settings
from .seeing.trace import Trace
from .stats import PhaseClock, Round, Stats
from .stopping import Stopping
from .target import Target
from .text import TextStream, whole_text
from .tree import DraftTree
from .trees import Proposals, TreeBuilder
from .verifiers import Greedy, PointMassSampling, Verifier
from .wellformed import refuse_malformed


@dataclass
class Piece:
    """What one round adds to one row.

    Args:
        row: of the batch.
        token_ids: the new tokens.
        drafted: per token, True if the drafter proposed it, False if the target supplied it.
        round: number of the round; 0 is the prefill, which gives the first token.
        last: whether the row ends with it.
    """

    row: int
    token_ids: list[int]
    drafted: list[bool]
    round: int
    last: bool
    _texts: TextStream = field(repr=False)
    _start: int = field(repr=False)

    @property
    def spans(self) -> list[tuple[str, bool]]:
        """The new text cut at changes of origin: `(text, drafted)`."""
        spans = [(self._texts.text(self._start + i), drafted) for i, drafted in enumerate(self.drafted)]
        if self.last:
            spans.append((self._texts.rest(), self.drafted[-1]))
        return _merge(spans)

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.spans)


@dataclass
class Output:
    """The result of `generate`; every list has one entry per row.

    Args:
        text: the new text, without special tokens (None if the target has no tokenizer).
        token_ids: the new tokens, the end token included.
        finish_reason: `"eos"`, `"length"` or `"stopping_criteria"`.
        drafted: per token, whether the drafter proposed it.
        stats: records and metrics.

    In a notebook it shows its text, every token coloured by its origin.
    """

    text: list[str | None]
    token_ids: list[list[int]]
    finish_reason: list[str | None]
    drafted: list[list[bool]]
    stats: Stats = field(repr=False)
    _texts: list[TextStream] = field(repr=False)
    _trace: Trace | None = field(repr=False)

    @property
    def trace(self) -> Trace:
        """The tree of every round, see `mmspec.seeing.Trace`.

        Raises:
            MMSpecError: if it was not recorded.
        """
        if self._trace is None:
            raise MMSpecError("the trees of this answer were not kept: call generate(..., trace=True)")
        return self._trace

    def pieces(self, row: int = 0) -> list[str]:
        """The text that each token of a row completes: of a character in several tokens, the last one has it all."""
        texts = self._texts[row]
        pieces = [texts.text(number) for number in range(len(self.token_ids[row]))]
        return [*pieces[:-1], pieces[-1] + texts.rest()] if pieces else []

    def _repr_html_(self) -> str:
        from .seeing.html import answer

        return answer(self)


class Decoding:
    """One call of `generate`: a request on its way through the loop."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        verifier: Verifier,
        pipeline: LogitsPipeline,
        request: Request,
        stopping: Stopping,
        seed: int,
        trace: bool = False,
    ):
        self.target, self.drafter, self.verifier = target, drafter, verifier
        self.pipeline, self.request, self.stopping, self.seed = pipeline, request, stopping, seed
        batch = request.batch_size
        self.stats = Stats(prompt_tokens=request.lengths, new_tokens=[0] * batch, lossless=verifier.lossless)
        self.token_ids: list[list[int]] = [[] for _ in range(batch)]
        self.drafted: list[list[bool]] = [[] for _ in range(batch)]
        self.finish_reason: list[str | None] = [None] * batch
        self._texts = [TextStream(target.tokenizer) for _ in range(batch)]
        self.trace = Trace(target.tokenizer) if trace else None
        cuda = target.device.type == "cuda"
        self.clock = PhaseClock(torch.cuda.synchronize if cuda else None)

    @torch.inference_mode()
    def prefill(self) -> list[Piece]:
        """Read the prompt; emit the first token of every row."""
        vision = self.target.encode(self.request)
        self.clock.lap("vision")
        drafter, request = self.drafter, self.request
        capacity = self.target.first_capacity(request.max_length, self.stopping.max_new_tokens)
        features = drafter.feature_layers if drafter is not None else ()
        context = self.context = self.target.prefill(request, vision, capacity, features)
        self.verifier = self.verifier.fork(context, self.pipeline, self.seed)
        self.root = self.verifier.first_token(context)
        emitted = [[token] for token in self.root.tolist()]
        context.admit(emitted)
        self.clock.lap("prefill")
        if drafter is not None:
            sampled = self.verifier.proposal_under(self.pipeline) == "sampled"
            generator = random_stream(self.target.device, self.seed, "drafter") if sampled else None
            context.proposals = Proposals(sampled, self.pipeline, context.history, generator)
            drafter.start(context)
            self.clock.lap("prefill")
        return self._emit(emitted)

    @torch.inference_mode()
    def round(self) -> list[Piece]:
        """One round of every row that is still active."""
        context, drafter, clock = self.context, self.drafter, self.clock
        before = dict(clock.seconds)
        tree = self._drafted_tree() if drafter is not None else DraftTree.root_only(self.root)
        clock.lap("draft")
        scores = context.score(tree)
        clock.lap("score")
        verdict = self.verifier.verify(tree, scores).only(context.active)
        clock.lap("verify")
        if self.trace is not None:
            self.trace.record(tree, scores, verdict, context.active)
            clock.lap("other")
        emitted = context.commit(tree, verdict)
        clock.lap("commit")
        if drafter is not None:
            drafter.observe(tree, scores, verdict)
            clock.lap("observe")
        self.root = verdict.bonus
        pieces = self._emit(emitted, tree)
        self.stats.rounds[-1].seconds = {name: clock.seconds[name] - before[name] for name in before}
        return pieces

    def _drafted_tree(self) -> DraftTree:
        drafter = self.drafter
        tree = drafter.draft(self.root)
        if not getattr(tree, "grown", False):
            name = type(drafter).__name__
            refuse_malformed(tree, self.root, self.context.active, self.target.vocab_size, name)
        return tree

    def _emit(self, emitted: list[list[int]], tree: DraftTree | None = None) -> list[Piece]:
        """Cut what a round emitted where a row ends, record it, and make pieces of it."""
        pieces, batch = [], self.request.batch_size
        nothing = [0] * batch
        depth = tree.max_depth if tree is not None else 0
        record = Round([*nothing], [*nothing], [*nothing], depth, unusable=[*nothing])
        drafted = tree.account() if tree is not None else None
        for row, tokens in enumerate(emitted):
            if not self.context.active[row]:
                continue
            accepted = len(tokens) - 1
            tokens, reason = self.stopping.cut(self.context.history[row], self.token_ids[row], tokens)
            if reason is not None:
                self.finish_reason[row] = reason
                self.context.finish(row)
            history = self.context.history[row]
            self.pipeline.settle(row, history, len(history) - 1 - accepted, len(tokens), reason is not None)
            origin = [i < accepted for i in range(len(tokens))]
            start = len(self.token_ids[row])
            self.token_ids[row] += tokens
            self._texts[row].ids += tokens
            self.drafted[row] += origin
            self.stats.new_tokens[row] += len(tokens)
            if drafted is not None:
                record.drafted[row], record.unusable[row] = drafted[row]
                record.accepted[row], record.emitted[row] = sum(origin), len(tokens)
            number = len(self.stats.rounds) + (tree is not None)
            pieces.append(Piece(row, tokens, origin, number, reason is not None, self._texts[row], start))
        if tree is not None:
            self.stats.rounds.append(record)
        self.clock.lap("other")
        self.stats.seconds = dict(self.clock.seconds)
        return pieces

    def output(self) -> Output:
        text = [whole_text(self.target.tokenizer, ids) for ids in self.token_ids]
        return Output(text, self.token_ids, self.finish_reason, self.drafted, self.stats, self._texts, self.trace)


@named_arguments("stream")
def stream(
    target: Target,
    drafter: Drafter | None = None,
    prompt: str | Sequence[str | tuple[str, ...]] | None = None,
    images: Any = None,
    *,
    inputs: Any = None,
    max_new_tokens: int = 256,
    tree: TreeBuilder | None = None,
    verifier: Verifier | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    logits_processor: Iterable | Callable | None = None,
    stopping_criteria: Iterable | Callable | None = None,
    streamer=None,
    eos_token_id: int | Iterable[int] | None = None,
    seed: int = 0,
    model_settings: bool = True,
    trace: bool = False,
) -> Generator[Piece, None, Output]:
    """Generate, and yield what each round adds. The generator's return value is the `Output`.

    Closing the generator, or an exception in it, leaves target and drafter as they were: all state is the request's.
    Bad arguments raise here, before the first piece is asked for.

    Args:
        target: the model whose output is preserved.
        drafter: what proposes tokens; None decodes one token at a time through the same loop.
        prompt: a text, or a list with one per row of a batch. A row may be a tuple of texts instead, a conversation
            `(question, answer, question, ...)` that ends with the question to answer; its pictures come first.
        images: the pictures of the prompt: PIL images, paths, arrays (see `mmspec.pictures.load_image`); for a list of
            prompts, one (list) per row.
        inputs: instead of both, what a Hugging Face processor returned, or `{"input_ids": ...}`; or what
            `mmspec.inputs.prepare` made for this target, so that a prompt that is answered often is prepared once.
        max_new_tokens: at most so many new tokens per row, at least 1.
        tree: how the drafter grows its trees, instead of its own default.
        verifier: by default `Greedy()` at temperature 0 and `PointMassSampling()` above it, both lossless.
        temperature, top_k, top_p, min_p, repetition_penalty, logits_processor: see `LogitsPipeline`. Whether and how to
            sample is said by these alone, whatever the model's generation config says.
        stopping_criteria: Hugging Face criteria or functions, called after every token with the row's `[1, length]` ids
            and None for the scores.
        streamer: a Hugging Face streamer, for a single row.
        eos_token_id: end token(s), instead of the model's own; `[]` for none.
        seed: of all draws, an integer; the same seed and arguments give the same tokens.
        model_settings: whether what the model's generation config asks for applies, as in `model.generate`: the
            settings that `LogitsPipeline` lists, among them the penalty. One that mmspec cannot apply is refused, not
            passed over. False leaves it all out but the end tokens.
        trace: whether to keep the tree of every round with both models' probabilities, see `Output.trace`, which takes
            some time.

    Raises:
        MMSpecError: for anything the caller can put right.
    """
    expect_target(target, "mmspec.generate")
    if drafter is not None:
        expect_drafter(drafter, "mmspec.generate")
    if whole(seed) is None:
        raise MMSpecError(f"seed={seed!r} must be an integer, such as 0")
    eos = target.eos_token_ids if eos_token_id is None else eos_token_id
    stopping = Stopping(max_new_tokens, eos, stopping_criteria)
    settings = target.model.generation_config if model_settings else None
    pipeline = LogitsPipeline(
        temperature, top_k, top_p, min_p, repetition_penalty, logits_processor, settings, stopping.eos
    )
    if settings is not None:
        refuse_settings(settings, [*pipeline.processors, *stopping.criteria])
    verifier = verifier or (Greedy() if pipeline.greedy else PointMassSampling())
    if not isinstance(verifier, Verifier):
        raise MMSpecError(f"verifier={verifier!r} is no Verifier; pass an instance, such as mmspec.verifiers.Greedy()")
    verifier.check(target, pipeline)
    if not isinstance(tree, TreeBuilder | None):
        raise MMSpecError(f"tree={tree!r} is no TreeBuilder; pass an instance, such as mmspec.trees.Chain()")
    if drafter is not None:
        if drafter.target is not target and drafter.target.model is not target.model:
            raise MMSpecError(
                f"this {type(drafter).__name__} was made for another target; build it with the target it is to serve"
            )
        if tree is not None and drafter.tree is None:
            raise MMSpecError(
                f"{type(drafter).__name__} proposes whole trees of its own, so tree= does not apply to it"
            )
        drafter = drafter.fork(tree)
        drafter.check(verifier.proposal_under(pipeline))
    elif tree is not None:
        raise MMSpecError("tree= shapes what a drafter proposes, but drafter is None")
    request = prepare(target, prompt, images, inputs)
    pipeline.check_rows(request.lengths)
    check_reach(target.family, request, stopping.max_new_tokens)
    if drafter is not None and drafter.tree is not None:
        drafter.tree.calibrate(drafter, request)  # before the clock starts
    if streamer is not None and request.batch_size > 1:
        raise MMSpecError(f"a streamer shows one row, the batch has {request.batch_size}; use mmspec.stream instead")
    decoding = Decoding(target, drafter, verifier, pipeline, request, stopping, whole(seed), trace)
    return _run(decoding, streamer)


def _run(decoding: Decoding, streamer) -> Generator[Piece, None, Output]:
    if streamer is not None:
        streamer.put(decoding.request.inputs["input_ids"].cpu())
    step = decoding.prefill
    while True:
        decoding.clock.resume()
        pieces = step()
        step = decoding.round
        for piece in pieces:
            if streamer is not None:
                streamer.put(torch.tensor(piece.token_ids, device="cpu"))
            yield piece
        if not any(decoding.context.active):
            break
    if streamer is not None:
        streamer.end()
    return decoding.output()


@named_arguments("generate", like=stream)
def generate(
    target: Target,
    drafter: Drafter | None = None,
    prompt: str | Sequence[str | tuple[str, ...]] | None = None,
    images: Any = None,
    **options: Any,
) -> Output:
    """Generate text (see `stream` for the arguments) and return it whole."""
    pieces = stream(target, drafter, prompt, images, **options)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _merge(spans: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Join neighbours of one origin."""
    merged: list[tuple[str, bool]] = []
    for text, drafted in spans:
        if text and merged and merged[-1][1] == drafted:
            merged[-1] = (merged[-1][0] + text, drafted)
        elif text:
            merged.append((text, drafted))
    return merged
