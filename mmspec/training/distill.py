"""Let the target answer prompts with pictures, which gives the data set that drafters are trained on.

A drafter has to predict what the target says, not what is true, so its training data is the target's own output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.examples import Example, Source
from ..decoding.sampling import LogitsPipeline
from ..decoding.stopping import Stopping
from ..drafters import Drafter
from ..errors import MMSpecError
from ..target import Target
from ..version import __version__
from .asking import Asking
from .author import describe_target, rounded_weights
from .own_text import OwnText
from .shards import ShardWriter

if TYPE_CHECKING:
    from ..evaluation.engines import Engine


@dataclass(frozen=True)
class Progress:
    """State of a shard: how many examples are done, and how fast.

    Args:
        total: number of examples in the shard.
        answers, skipped: number of examples that are answered and skipped, by earlier runs too.
        tokens: number of tokens in all answers.
        new_tokens: number of tokens in the answers of this run.
        seconds: time since this run began.
        compared: number of answers of another engine that this run has held against the target.
        near_ties: places in them where the engine took a token that the target holds as good as equal to its own.
    """

    total: int
    answers: int
    skipped: int
    tokens: int
    new_tokens: int
    seconds: float
    compared: int = 0
    near_ties: int = 0

    @property
    def mean_tokens(self) -> float:
        """Mean length of an answer in tokens; 0 if there is none."""
        return self.tokens / self.answers if self.answers else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second that this run has written."""
        return self.new_tokens / self.seconds if self.seconds else 0.0


def distill(
    target: Target,
    source: Source | Sequence[Example],
    folder: str | Path,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    shard: int = 0,
    shards: int = 1,
    drafter: Drafter | None = None,
    engine: Engine | Callable[[], Engine] | None = None,
    compared: int = 8,
    max_failures: int | None = 100,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Ask the target every example of a shard and write the answers; `mmspec.training.answers` says where and how.

    What a folder holds already is not asked again, so a run that was interrupted, at any moment and in any way, goes on
    where it stopped, and ends with the file that it would have written without the interruption: batches are fixed
    slices of the shard, and a batch that was half written is asked again as a whole. The target, the source and the
    sampling have to be the same; a source may have grown at its end. Another batch size or drafter is allowed, for
    want of memory say: sampled answers are then the target's own still, but not those of an uninterrupted run.

    Args:
        target: the model that answers; needs a processor.
        source: the questions.
        folder: where the data set is written.
        batch_size: number of examples that are answered at once.
        max_new_tokens, temperature, top_k, top_p: longest answer and sampling settings, as in `generate`.
        seed: seed for sampled answers.
        shard, shards: ask the examples number shard, shard + shards, shard + 2 shards, ...
        drafter: drafter for speculative decoding, which pays with small batches; the answers stay the target's own.
        engine: who decodes in place of our own loop, with the sampling and the length that are given here: vLLM or a
            running server, see `mmspec.serving`. The target says what is asked and who answers; greedy answers are its
            own up to near-ties. What an engine could not answer is skipped, like what the target cannot read. A
            function that makes the engine is called when the folder has been found to be free and of the same settings,
            and not at all if nothing is left to ask.
        compared: number of answers of another engine, the first of a run, that are held against what the target
            prefers, token by token, before they are written; near-ties are counted (`Progress`). Greedy ones only.
        max_failures: number of examples that may fail (no such picture, a prompt that is too long) before the run
            stops; None never stops.
        progress: function that is called at the beginning and after each batch; after each answer where an engine gives
            them one by one.

    Raises:
        MMSpecError: for anything that the caller can put right. Whatever was answered before is kept.
    """
    # Refused here, because later the folder would have been begun already.
    LogitsPipeline(temperature, top_k, top_p)
    Stopping(max_new_tokens)
    _check_numbers(batch_size, shard, shards, max_failures, compared)
    ready = None if callable(engine) else _of_the_target(engine)
    if target.tokenizer is None:
        raise MMSpecError("the target has no processor, so it reads no text; give Target(model, processor)")
    sampling = {"temperature": float(temperature), "top_k": top_k, "top_p": top_p, "seed": seed}
    if temperature == 0:  # then the others have no effect
        sampling = {"temperature": 0.0}
    folder, pictures = Path(folder), Path(getattr(source, "folder", None) or "")
    settings = {
        "target": describe_target(target),
        "source": _describe_source(source),
        **sampling,
        "max_new_tokens": max_new_tokens,
        "shards": shards,
    }
    facts = {
        "mmspec": __version__,
        "model": str(target.model.config.name_or_path),
        "drafter": None if drafter is None else type(drafter).__name__,
        "engine": None if ready is None else type(ready).__name__,
        "batch_size": batch_size,
        "rounded": rounded_weights(target),
        "images": os.path.relpath(pictures.resolve(), folder.resolve()),
    }
    options = {**sampling, "max_new_tokens": max_new_tokens}
    own_text = OwnText(target, compared if temperature == 0 else 0)
    with ShardWriter(folder, shard, shards, settings, facts) as writer:
        indices = range(shard, len(source), shards)
        before, started = writer.tokens, time.perf_counter()

        def state() -> Progress:
            seconds = time.perf_counter() - started
            answers, skipped, tokens = len(writer.answered), len(writer.skipped), writer.tokens
            found = own_text.compared, own_text.near_ties
            return Progress(len(indices), answers, skipped, tokens, tokens - before, seconds, *found)

        def arrived() -> None:
            if progress is not None and (now := state()).answers + now.skipped < now.total:  # the last one: at the end
                progress(now)

        batches = [indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size)]
        left = [batch for batch in batches if not writer.has(batch)]
        asking = Asking(target, drafter, source, pictures, writer, options, max_failures, ready, own_text)
        asking.check_failures()
        if callable(engine) and left:
            asking.engine = _of_the_target(engine())
            writer.facts["engine"] = type(asking.engine).__name__
        for batch in left:
            if progress is not None:
                progress(state())
            asking.ask(batch, arrived)
        writer.finish()
        if progress is not None:
            progress(state())
        return state()


def _describe_source(source: Source | Sequence[Example]) -> dict[str, Any]:
    describe = getattr(source, "describe", None)
    return describe() if describe is not None else {"source": type(source).__name__, "examples": len(source)}


def _of_the_target(engine: Engine | None) -> Engine | None:
    if engine is not None and not engine.lossless:
        raise MMSpecError(f"{type(engine).__name__} does not write the target's own text, which drafters learn from")
    return engine


def _check_numbers(batch_size: int, shard: int, shards: int, max_failures: int | None, compared: int) -> None:
    if batch_size < 1:
        raise MMSpecError(f"batch_size={batch_size} must be at least 1")
    if shards < 1 or not 0 <= shard < shards:
        raise MMSpecError(f"shard={shard} of shards={shards}: shards are numbered from 0 to shards - 1")
    if compared < 0:
        raise MMSpecError(f"compared={compared} must not be negative; 0 compares nothing")
    if max_failures is not None and max_failures < 0:
        raise MMSpecError(f"max_failures={max_failures} must not be negative; null never stops")
