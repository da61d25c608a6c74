"""`mmspec generate`: print one answer as it comes, with the drafted tokens set apart."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..decoding.draining import drain
from ..decoding.stats import speed_in_words
from ..embedded import EMBEDDED_TARGET, EMBEDDED_TARGETS, EMBEDDED_VIDEO_TARGET
from ..metrics import SHOWN, SPEEDUPS
from ..settings import configuration
from ..similarity import similarity
from . import output, question

if TYPE_CHECKING:
    from rich.console import Console

    from ..drafters import Drafter
    from ..target import Target

DRAFTED, OWN = "green", "bold"  # styles of the text that was drafted, and of the text that the target supplied itself

COMPARED_RUNS = 3  # the median of three, taken in turns, so that a busy machine slows both sides alike


@dataclass
class GenerateSettings:
    """Top-level keys of `configs/generate.yaml`, where their defaults and meanings are."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int
    stop: Any
    num_return_sequences: int
    chat_template_kwargs: dict[str, Any]
    seed: int
    compare: bool
    json: bool

    def sampling(self) -> dict[str, Any]:
        """Return the arguments that speculative and plain decoding share."""
        given = {name: value for name, value in vars(self).items() if name not in ("compare", "json")}
        return given | {"chat_template_kwargs": self.chat_template_kwargs or None}

    def check(self, verifier: Any) -> None:
        """Refuse numbers that are out of range or do not suit the verifier, before anything is loaded."""
        from ..decoding.sampling import LogitsPipeline
        from ..decoding.stopping import Stopping
        from ..generation import answers_per_row

        Stopping(self.max_new_tokens, [])
        pipeline = LogitsPipeline(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        answers_per_row(self.num_return_sequences, pipeline)
        if verifier is not None:
            verifier.check_sampling(pipeline)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec generate`."""
    parser.description = "Answer a question about a picture; without flags, about a picture that ships with mmspec."
    question.add_flags(parser)
    parser.add_argument("--output", metavar="FILE", help=output.HELP.format(what="the answer"))


def run(arguments: argparse.Namespace) -> int:
    """Compose the configuration, load the models, decode and print."""
    overrides = completed(arguments.overrides)
    config = configuration.compose("generate", overrides, arguments.config_dir)
    settings = configuration.typed(config, GenerateSettings)
    configuration.check_method(config)
    place = output.output_file(arguments.output)
    if note := note_on_drafter(arguments.overrides):
        print(note, file=sys.stderr)

    from rich.console import Console

    with Console(stderr=True).status("loading"):
        import transformers
        from omegaconf import OmegaConf

        import mmspec

        from ..memory import Memories

        transformers.utils.logging.disable_progress_bar()
        watches = OmegaConf.select(config, "target.name") == EMBEDDED_VIDEO_TARGET
        asked = question.asked(arguments, watches)
        shape = {"tree": configuration.build(config.tree), "verifier": configuration.build(config.verifier)}
        settings.check(shape["verifier"])
        target = configuration.build(config.target)
        drafter = configuration.build_drafter(config, target)
        request = {**asked, **settings.sampling()}

    memories = Memories(*((drafter, *shape.values()) if settings.compare else ()))
    pieces = mmspec.stream(target, drafter, **request, **shape)
    out = show(pieces, Console()) if settings.num_return_sequences == 1 else show_several(pieces)
    comparison = None
    if settings.compare and out.stats.rounds:  # without a round there is no decoding to compare, only the prompt's pass
        exact = settings.temperature == 0 and out.stats.lossless

        def speculative() -> Any:
            memories.restore()  # a drafter may remember what it has just been asked
            return mmspec.generate(target, drafter, **request, **shape)

        comparison = compare(
            speculative,
            lambda: mmspec.generate(target, None, **request),
            partial(difference, target, drafter, asked, shape, settings) if exact else None,
        )
    line = summary_line(out.stats, comparison, sampled=settings.temperature > 0)
    if settings.compare and comparison is None:
        line += " | nothing to compare: the prompt's pass wrote the only token"
    print(line)
    result = {"text": out.text[0], "token_ids": out.token_ids[0], "finish_reason": out.finish_reason[0]}
    result["stats"] = out.stats.summary()
    result |= {"compare": comparison} if comparison else {}
    if len(out.text) > 1:
        rows = zip(out.text, out.token_ids, out.finish_reason, strict=True)
        result["answers"] = [{"text": t, "token_ids": ids, "finish_reason": why} for t, ids, why in rows]
    output.write_result(place, out.text[0], result)
    if settings.json:
        print(json.dumps(result))
    return 0


def completed(overrides: list[str]) -> list[str]:
    """Return overrides with `drafter=ngram` for a target of the user's own: the configured drafter fits embedded
    targets only."""
    chosen = dict(override.partition("=")[::2] for override in overrides)
    own = chosen.get("target", EMBEDDED_TARGET) not in EMBEDDED_TARGETS and "drafter" not in chosen
    return [*(["drafter=ngram"] if own else []), *overrides]


def note_on_drafter(overrides: list[str]) -> str | None:
    """Return the line that says which drafter was taken in place of the default, why, and how to get a better one."""
    if completed(overrides) == overrides:
        return None
    target = shlex.join(override for override in overrides if override.lstrip("+").startswith(("target=", "target.")))
    return (
        "note: took drafter=ngram, which goes with every target; the default, eagle3, is for target=tiny. For more "
        "speed name a drafter that was made for your target, drafter=FOLDER_OR_HUB_ID, or train one: "
        f"mmspec distill {target}, mmspec train {target}, and then drafter=runs/train/best"
    )


def show(pieces: Generator[Any, None, Any], console: Console) -> Any:
    """Print the pieces of a stream as they come and return what the stream returns at its end."""

    def put(piece: Any) -> None:
        for text, drafted in piece.spans:
            if console.is_terminal:
                console.out(text, style=DRAFTED if drafted else OWN, highlight=False, end="")
            else:  # exactly what the model wrote: rich would expand tabs
                console.file.write(text)
                console.file.flush()

    decoded = drain(pieces, put)
    console.file.write("\n")
    return decoded


def show_several(pieces: Generator[Any, None, Any]) -> Any:
    """Print the answers of a stream one after the other, once they are all there, and return what the stream
    returns."""
    decoded = drain(pieces)
    for number, text in enumerate(decoded.text, start=1):
        print(f"answer {number}: {text}")
    return decoded


def compare(
    speculative: Any, plain: Any, explain: Callable[..., dict[str, Any] | None] | None = None
) -> dict[str, Any]:
    """Time both ways of decoding in turns; return median speeds, both speed-ups, whether the ids agree, and their
    similarity if not.

    Args:
        speculative, plain: functions that decode once.
        explain: function that takes the ids of plain decoding and the other ids and returns where they differ first;
            None if they may differ.
    """
    ours, theirs = [], []
    for _ in range(COMPARED_RUNS):
        theirs.append(plain())
        ours.append(speculative())
    result: dict[str, Any] = {}
    for name, speedup in SPEEDUPS.items():
        speed, plain_speed = (statistics.median(getattr(out.stats, name) for out in outs) for outs in (ours, theirs))
        result |= {name: speed, f"plain_{name}": plain_speed, speedup: speed / plain_speed}
    result["identical"] = identical = ours[0].token_ids == theirs[0].token_ids
    if not identical:
        result["similarity"] = similarity(theirs[0].token_ids[0], ours[0].token_ids[0])
    if not identical and explain is not None:
        result["divergence"] = explain(theirs[0].token_ids, ours[0].token_ids)
    return result


def difference(
    target: Target,
    drafter: Drafter | None,
    asked: dict[str, Any],
    shape: dict[str, Any],
    settings: GenerateSettings,
    plain: list,
    found: list,
) -> dict[str, Any] | None:
    """Return where the ids of two answers to a question differ first, and why; see `mmspec.exactness.explained`."""
    from mmspec.decoding.sampling import Sampling
    from mmspec.exactness import attribute, explained
    from mmspec.inputs import prepare

    sampling = Sampling(repetition_penalty=settings.repetition_penalty)
    request = prepare(target, **asked, chat_template_kwargs=settings.chat_template_kwargs or None)
    options = {**shape, "max_new_tokens": settings.max_new_tokens, "repetition_penalty": settings.repetition_penalty}
    attributed = None if drafter is None else partial(attribute, target, drafter, request, **options)
    return explained(target, request, plain, found, sampling, attributed)


def summary_line(stats: Any, comparison: dict[str, Any] | None, sampled: bool) -> str:
    """Return the line under the answer, in the words of `docs/metrics.md`."""
    # With a comparison the speed is its median: the answer printed above was also the warm-up.
    parts = [speed_in_words(comparison["tokens_per_second"] if comparison else stats.tokens_per_second), stats.origin]
    if stats.windows_ahead:
        parts.append(f"windows written ahead and judged: {stats.windows_ahead}")
    if (projected := stats.projected_tokens_per_second) is not None:
        parts.append(f"projected, with both models side by side: {speed_in_words(projected)}")
    if not stats.lossless:
        parts.append("NOT lossless, so the text may be another than the target's")
    if stats.num_unverified_tokens:
        parts.append(f"{SHOWN['num_unverified_tokens']}: {stats.num_unverified_tokens}")
    if stats.unusable_guesses:
        parts.append(f"{SHOWN['unusable_guesses']}: {stats.unusable_guesses}, the drafter's logits are NaN or infinite")
    if comparison:
        parts.append(f"plain: {speed_in_words(comparison['plain_tokens_per_second'])}")
        parts += [f"{SHOWN[name]} {comparison[name]:.2f}" for name in SPEEDUPS.values()]
        if sampled:
            parts.append("text sampled, so the two may differ")
        elif comparison["identical"]:
            parts.append("text identical")
        elif found := comparison.get("divergence"):
            parts.append(f"text {'differs by rounding' if found['excused'] else 'DIFFERS'}: {found['text']}")
        else:
            parts.append(
                f"text {'DIFFERS' if stats.lossless else 'differs'}, similarity {comparison['similarity']:.2f}"
            )
    return " | ".join(parts)
