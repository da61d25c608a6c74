"""Use from inside transformers: `model.generate(**inputs, custom_generate=mmspec.hf.custom_generate(drafter))`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode

from .compat import CACHE_NAMES
from .decoding.allowed import AllowedTokens
from .decoding.sampling import FOR_ONE_LENGTH
from .drafters import Drafter
from .drafters.base import expect_drafter
from .errors import MMSpecError, shown
from .generation import generate
from .inputs import PER_TOKEN
from .settings.calls import named_arguments
from .trees import TreeBuilder
from .verifiers import Verifier

DECODED = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

UNFILLED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""Parts of the result of `return_dict_in_generate` that are not recorded."""

OF_THE_LOOP = (*UNFILLED, *CACHE_NAMES, "use_cache", "logits_to_keep", "position_ids", "mm_encoder_outputs")
"""Arguments that `generate` passes to a decoding loop. All others are inputs, which are read or refused."""

OWN = (MaxLengthCriteria, EosTokenCriteria)
"""Criteria that the loop implements itself; `generate` has replaced its own by a caller's where given."""


@named_arguments("custom_generate")
def custom_generate(
    drafter: Drafter, *, tree: TreeBuilder | None = None, verifier: Verifier | None = None, seed: int | None = None
) -> Callable[..., Tensor | GenerateDecoderOnlyOutput]:
    """Return a callable for `generate(custom_generate=...)`: mmspec's loop with the settings of `generate`.

    Logits processors, stopping criteria, streamer, `max_new_tokens`, `do_sample` and the sampling parameters are those
    of the call; the drafter's target must be the model that is called. Your own criteria are called row by row, with
    the row's tokens and no padding. Your own processors are called with nodes of trees as rows, see `LogitsPipeline`.
    `prefix_allowed_tokens_fn` receives the same as in `generate`: the number of the row and its tokens with padding. In
    a pipeline: `generate_kwargs={"custom_generate": ...}`.

    transformers takes pictures out of the inputs and encodes them, unless a callable has parameters of their names, as
    this one does: drafters and compressors see pixels and grids as in `mmspec.generate`.

    Args:
        drafter: drafter that was made for this model.
        tree, verifier: as in `mmspec.generate`.
        seed: seed of the draws; by default it is drawn from torch's global generator, which `set_seed` controls.

    Returns:
        A callable whose result is that of `generate`: `[batch, length]` ids, prompt included, padded on the right with
            the pad token, or with `return_dict_in_generate` an object that holds them as `sequences`.
            `drafter.last_output` holds the full `mmspec.Output` of the latest call.

    Raises:
        MMSpecError: for anything but a drafter; when called, for another model than the drafter's target and for what
            this loop does not do: beams, another assistant, scores and states in the result, a cache that holds tokens.
    """
    expect_drafter(drafter, "custom_generate")

    def run(
        model, input_ids, logits_processor=None, stopping_criteria=None, generation_config=None, streamer=None, **given
    ):
        call = _call()
        if model is not drafter.target.model:
            raise MMSpecError("custom_generate: the drafter was made for another model than the one that is called")
        _refuse(generation_config, call, given)
        width, config, copies = input_ids.shape[1], generation_config, generation_config.num_return_sequences
        if copies > 1 and drafter.target.family.cross_attends:
            raise MMSpecError(
                f"custom_generate: num_return_sequences={copies} of a {type(model).__name__}, whose encoder generate "
                "runs by itself: call mmspec.generate(num_return_sequences=...)"
            )
        tokens, mask = drafter.target.family.token_inputs
        streamer = streamer if streamer is not None else call.get("streamer")
        decode = partial(
            generate,
            drafter.target,
            drafter,
            inputs=_once({tokens: input_ids} | _inputs(input_ids, given), copies),
            num_return_sequences=copies,
            tree=tree,
            verifier=verifier,
            # generate has already put the temperature and all the model's other settings among the processors.
            temperature=1.0 if config.do_sample else 0.0,
            model_settings=False,
            logits_processor=_processors(logits_processor, input_ids, given.get(mask)),
            streamer=None if streamer is None else _AfterPrompt(streamer),
            eos_token_id=_ends(stopping_criteria),
            seed=int(torch.randint(2**31, ())) if seed is None else seed,
        )
        criteria = [c for c in stopping_criteria or () if not isinstance(c, OWN)]
        out = decode(max_new_tokens=_length(stopping_criteria, config) - width, stopping_criteria=criteria)
        pad, longest = _pad(config), max(map(len, out.token_ids))
        if min(map(len, out.token_ids)) < longest and not _ends(stopping_criteria):
            # Without an end token generate pads nothing: rows that have met a criterion go on until all have.
            out = decode(max_new_tokens=longest)
        drafter.last_output = out
        rows = [ids + [pad] * (longest - len(ids)) for ids in out.token_ids]
        sequences = torch.cat([input_ids, torch.tensor(rows, device=input_ids.device)], dim=1)
        return GenerateDecoderOnlyOutput(sequences=sequences) if config.return_dict_in_generate else sequences

    # What a callable names, and the usual loops do not, goes to it untouched.
    signature = inspect.signature(run)
    *usual, others = signature.parameters.values()
    pictures = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in drafter.target.family.media_inputs
    ]
    named: Any = run
    named.__signature__ = signature.replace(parameters=[*usual, *pictures, others])
    return named


def _call() -> dict[str, Any]:
    """Return the arguments of the calling `generate`, if there is one. transformers 5.23 passes neither the streamer
    nor the assistant of a call to a callable; without this they would be lost silently."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = None if frame is None else frame.f_back
    if frame is None or frame.f_code is not inspect.unwrap(GenerationMixin.generate).__code__:
        return {}
    return frame.f_locals


def _refuse(config: GenerationConfig, call: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a call that asks for anything but greedy or sampled sequences by this drafter."""
    mode = config.get_generation_mode(call.get("assistant_model"))
    if mode == GenerationMode.ASSISTED_GENERATION:
        raise MMSpecError(
            "custom_generate: the drafter is the assistant; leave out assistant_model, prompt_lookup_num_tokens, "
            "assistant_early_exit and use_mtp"
        )
    if mode not in DECODED:
        raise MMSpecError(
            f"custom_generate decodes greedily or by sampling, and not {mode.value} with num_beams={config.num_beams}"
        )
    if config.guidance_scale not in (None, 1):
        raise MMSpecError(
            f"custom_generate does not guide, but guidance_scale={shown(config.guidance_scale)}: call "
            "mmspec.generate(guidance_scale=..., negative_prompt=...)"
        )
    if asked := [name for name in UNFILLED if config.return_dict_in_generate and getattr(config, name)]:
        raise MMSpecError(
            f"custom_generate keeps no {', '.join(asked)} of a tree's passes; leave that out, or read "
            "drafter.last_output.stats"
        )
    for name in CACHE_NAMES:
        if (cache := given.get(name)) is not None and (held := cache.get_seq_length()):
            raise MMSpecError(
                f"custom_generate keeps a cache of its own, but {name} holds {held} tokens; pass the whole text and no "
                f"{name}"
            )


def _inputs(input_ids: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs other than the tokens."""
    inputs = {name: value for name, value in given.items() if value is not None and name not in OF_THE_LOOP}
    if given.get("mm_encoder_outputs"):  # pictures that the caller has encoded
        inputs["mm_encoder_outputs"] = given["mm_encoder_outputs"]
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    if positions is not None:
        real = torch.ones_like(input_ids) if mask is None else mask
        counted = real.cumsum(-1) - 1
        if not torch.where(real.bool(), positions == counted, True).all():  # the caller's, not those of generate
            inputs["position_ids"] = positions.expand(*positions.shape[:-2], *input_ids.shape)
    return inputs


def _once(inputs: dict[str, Any], copies: int) -> dict[str, Any]:
    """Return the inputs with every row once. transformers repeats the rows for `num_return_sequences`, and leaves media
    as they are."""
    return {name: value[..., ::copies, :] if name in PER_TOKEN else value for name, value in inputs.items()}


def _length(criteria: Iterable[Any] | None, config: GenerationConfig) -> int:
    """Return the length at which the rows end, padding included."""
    return min([c.max_length for c in criteria or () if isinstance(c, MaxLengthCriteria)], default=config.max_length)


def _ends(criteria: Iterable[Any] | None) -> list[int]:
    """Return the end tokens."""
    return [token for c in criteria or () if isinstance(c, EosTokenCriteria) for token in c.eos_token_id.tolist()]


def _pad(config: Any) -> int | None:
    """Return the token that follows the end of a row. Where no pad token is set, `generate` has put an end token
    there."""
    token = config._pad_token_tensor
    return None if token is None else int(token)


def _processors(processors: Iterable[Any] | None, input_ids: Tensor, mask: Tensor | None) -> list:
    """Return the processors, adapted to rows without padding.

    Raises:
        MMSpecError: for a processor that was made for another length of the prompt.
    """
    width = input_ids.shape[1]
    lengths = [width] * len(input_ids) if mask is None else mask.sum(-1).tolist()
    longest = max(lengths)
    for processor in processors or ():
        if isinstance(processor, FOR_ONE_LENGTH) and longest < width:
            raise MMSpecError(
                f"{type(processor).__name__} counts from the end of a prompt of {width} tokens, but the longest row "
                f"has {longest}: drop the columns that hold padding alone"
            )
    return [_unpadded(processor, input_ids, lengths) for processor in processors or ()]


def _unpadded(processor: Any, input_ids: Tensor, lengths: list[int]) -> Any:
    """Adapt one processor to rows without padding. A repetition penalty that skips every row's padding becomes a plain
    one; a function that expects padding, because it may count from the end of the prompt, receives it."""
    if type(processor) is PrefixConstrainedLogitsProcessor:
        return AllowedTokens(processor._prefix_allowed_tokens_fn, input_ids, lengths)
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty)
    return processor


class _AfterPrompt:
    """A streamer to which `generate` has already shown the prompt.

    Args:
        streamer: the caller's streamer.
    """

    def __init__(self, streamer: Any):
        self.streamer, self.shown = streamer, False

    def put(self, value: Tensor) -> None:
        if self.shown:
            self.streamer.put(value)
        self.shown = True

    def end(self) -> None:
        self.streamer.end()
