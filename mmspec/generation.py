"""`stream` and `generate`: arguments in, checked and made into a run of the loop; pieces and outputs out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch

from .decoding.draining import drain
from .decoding.negative_prompts import guidance_of
from .decoding.sampling import LogitsPipeline, refuse_settings
from .decoding.stopping import Stopping
from .decoding.token_run import TokenRun
from .decoding.transcript import Output, Piece
from .drafters import Drafter
from .drafters.base import expect_drafter
from .errors import MMSpecError
from .inputs import prepare
from .settings.arguments import as_int
from .settings.calls import named_arguments
from .speed import AutoTree
from .target import Target, expect_target
from .trees import TreeBuilder
from .verifiers import Greedy, PointMassSampling, Verifier


@named_arguments("stream")
def stream(
    target: Target,
    drafter: Drafter | None = None,
    prompt: str | Sequence[str | tuple[str, ...]] | None = None,
    images: Any = None,
    *,
    # what else is asked
    videos: Any = None,
    audio: Any = None,
    system: str | Sequence[str | None] | None = None,
    messages: Any = None,
    inputs: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    extras: Mapping[str, Sequence[Any]] | None = None,
    num_return_sequences: int = 1,
    # how it is drafted and verified
    tree: TreeBuilder | None = None,
    verifier: Verifier | None = None,
    # which text is written
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    logits_processor: Iterable | Callable | None = None,
    guidance_scale: float | None = None,
    negative_prompt: Any = None,
    model_settings: bool = True,
    seed: int = 0,
    # where it ends
    max_new_tokens: int | None = None,
    stop: str | Iterable[str] | None = None,
    eos_token_id: int | Iterable[int] | None = None,
    stopping_criteria: Iterable | Callable | None = None,
    # who else hears of it
    streamer=None,
    trace: bool = False,
    node_by_node: bool = False,
) -> Generator[Piece, None, Output]:
    """Generate, and yield what each round adds. The generator's return value is the `Output`.

    Closing the generator, or an exception in it, leaves target and drafter as they were: all state is the request's.
    Bad arguments raise here, before the first piece is asked for.

    Args:
        target: the model whose output is preserved.
        drafter: what proposes tokens; None decodes one token at a time through the same loop.
        prompt: a text, or a list with one per row of a batch. A row may be a tuple of texts instead, a conversation
            `(question, answer, question, ...)` that ends with the question to answer. `<image>`, `<video>` and
            `<audio>` in a question say where a medium stands; without them the media come first.
        images: the pictures of the prompt: PIL images, paths, URLs, bytes, arrays (see `mmspec.media.load_image`); for
            a list of prompts, one (list) per row.
        videos: its videos: paths, arrays of frames, lists of pictures (see `mmspec.media.load_video`).
        audio: its sounds: paths, `(samples, rate)` (see `mmspec.media.load_sound`).
        system: what the model is told before the prompt; one text for all rows, or a list.
        messages: instead of these, conversations in the layout of chats, `[{"role": "user", "content": ...}, ...]`,
            with media of any kind in any message, see `mmspec.chat.messages`; or a list of them, one per row.
        inputs: instead of both, what a Hugging Face processor returned, or `{"input_ids": ...}`; or what
            `mmspec.inputs.prepare` made for this target, so that a prompt that is answered often is prepared once.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
        extras: whatever a drafter wants to know besides, name to one entry per row: a reference text, say, or
            documents. Drafters read `context.request.extras`.
        num_return_sequences: independent answers to every row, in succession; more than one only where it is sampled.
            Media are encoded once.
        tree: how the drafter grows its trees. By default those that it was made with, or else what pays
            (`mmspec.speed.AutoTree`); `mmspec.trees.NativeTree()` is the shape that its authors drafted with.
        verifier: by default `Greedy()` at temperature 0 and `PointMassSampling()` above it, both lossless.
        temperature, top_k, top_p, min_p, repetition_penalty, logits_processor: see `LogitsPipeline`. Whether and how to
            sample is said by these alone, whatever the model's generation config says.
        model_settings: whether what the model's generation config asks for applies, as in `model.generate`: the
            settings that `LogitsPipeline` lists, among them the penalty. One that mmspec cannot apply is refused, not
            passed over. False leaves it all out but the end tokens.
        seed: integer that all draws follow from; the same seed and arguments give the same tokens.
        max_new_tokens: at most so many new tokens per row, at least 1; by default 256, or all that a picture has.
        stop: a text or several: a row ends where it has written one, which is the end of its text.
        eos_token_id: end token(s), instead of the model's own; `[]` for none.
        stopping_criteria: Hugging Face criteria or functions, called after every token with the row's `[1, length]` ids
            and None for the scores.
        streamer: a Hugging Face streamer, for a single row.
        trace: whether to keep the tree of every round with both models' probabilities, see `Output.trace`, which takes
            some time.
        node_by_node: whether trees are scored a second time, one node at a time with the passes of plain decoding,
            which then decide: for debugging, and a single row. `Output.scored_twice` tells how far the tree passes
            were from them; `mmspec.exactness.attribute` says whether that is rounding.

    Raises:
        MMSpecError: for anything the caller can put right.
    """
    expect_target(target, "mmspec.generate")
    if drafter is not None:
        expect_drafter(drafter, "mmspec.generate")
    if (whole_seed := as_int(seed)) is None:
        raise MMSpecError(f"seed={seed!r} must be an integer, such as 0")
    eos = target.eos_token_ids if eos_token_id is None else eos_token_id
    stopping = Stopping(_longest(target, max_new_tokens), eos, stopping_criteria, stop, target.speller)
    settings = target.model.generation_config if model_settings else None
    of_family = [] if settings is None else target.family.processors(settings)
    pipeline = LogitsPipeline(
        temperature, top_k, top_p, min_p, repetition_penalty, logits_processor, settings, stopping.eos, of_family
    )
    _refuse_looking_back(target, pipeline)
    if settings is not None:
        refuse_settings(
            settings, [*pipeline.processors, *stopping.criteria, stopping.stop], target.family.settings_not_applied
        )
    copies = answers_per_row(num_return_sequences, pipeline)
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
        if verifier.may_settle and not drafter.drafts_unread:
            raise MMSpecError(
                f"{type(drafter).__name__} drafts from the target's hidden states alone, which are not there after a "
                "round that a gate has settled without the target: leave the gate out, or choose a drafter that goes "
                "on from its own, such as Eagle3Drafter or TextOnlyDrafter"
            )
        drafter = drafter.fork(tree_for(drafter, tree))
        drafter.check(verifier.proposal_under(pipeline))
    elif tree is not None:
        raise MMSpecError("tree= shapes what a drafter proposes, but drafter is None")
    request = prepare(
        target,
        prompt,
        images,
        inputs,
        videos=videos,
        audio=audio,
        system=system,
        messages=messages,
        chat_template_kwargs=chat_template_kwargs,
        extras=extras,
    )
    guidance = guidance_of(target, request, guidance_scale, negative_prompt, settings, copies)
    request = target.repeat(request, copies)
    pipeline.begin(request.lengths)
    for read in [request] if guidance is None else [request, guidance.other]:
        target.family.check_reach(read.inputs, stopping.max_new_tokens)
    if streamer is not None and request.batch_size > 1:
        raise MMSpecError(f"a streamer shows one row, the batch has {request.batch_size}; use mmspec.stream instead")
    run = TokenRun(target, drafter, verifier, pipeline, request, stopping, whole_seed, trace, guidance, node_by_node)
    return _pieces(run, streamer)


def tree_for(drafter: Drafter, tree: TreeBuilder | None) -> TreeBuilder | None:
    """Return the builder that `generate` uses: the one given, or the drafter's, or `AutoTree`; None for a drafter that
    grows no trees."""
    return tree or (drafter.tree if drafter.tree_chosen or drafter.tree is None else AutoTree())


def answers_per_row(given: Any, pipeline: LogitsPipeline) -> int:
    """Return `num_return_sequences` as an int.

    Raises:
        MMSpecError: for no positive number, and for several that would all be the same.
    """
    copies = as_int(given)
    if copies is None or copies < 1:
        raise MMSpecError(f"num_return_sequences={given!r} must be a positive integer, such as 1")
    if copies > 1 and pipeline.greedy:
        raise MMSpecError(
            f"num_return_sequences={copies} at temperature 0 would give the same answer {copies} times: sample with "
            "temperature= above 0, or ask for one"
        )
    return copies


def _longest(target: Target, max_new_tokens: int | None) -> int:
    """Return the largest number of tokens to write: a picture has only so many."""
    whole = target.space.length
    if max_new_tokens is None:
        return whole or 256
    if whole is not None and (as_int(max_new_tokens) or 0) > whole:
        raise MMSpecError(f"max_new_tokens={max_new_tokens}: what this target writes has {whole} tokens; leave it out")
    return max_new_tokens


def _refuse_looking_back(target: Target, pipeline: LogitsPipeline) -> None:
    """Refuse processors that go by earlier tokens where what is written is not like the prompt."""
    if target.family.writes != "text" and (looking := pipeline.looking_back):
        raise MMSpecError(
            f"{type(looking[0]).__name__} looks at earlier tokens, and the prompt of a picture has none that are like "
            "the picture's own: leave it out"
        )


def _pieces(run: TokenRun, streamer) -> Generator[Piece, None, Output]:
    if streamer is not None:
        streamer.put(run.request.inputs["input_ids"].cpu())
    for pieces in run.rounds():
        for piece in pieces:
            if streamer is not None:
                streamer.put(torch.tensor(piece.token_ids, device="cpu"))
            yield piece
    if streamer is not None:
        streamer.end()
    return run.transcript.output()


@named_arguments("generate", like=stream)
def generate(
    target: Target,
    drafter: Drafter | None = None,
    prompt: str | Sequence[str | tuple[str, ...]] | None = None,
    images: Any = None,
    **options: Any,
) -> Output:
    """Generate text (see `stream` for the arguments) and return it whole."""
    return drain(stream(target, drafter, prompt, images, **options))
