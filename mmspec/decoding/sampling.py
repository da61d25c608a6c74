"""Logits pipeline: one chain of processors for the target, and for the drafter where its probabilities matter."""

from __future__ import annotations

import math
import numbers
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, MaxTimeCriteria, StoppingCriteria, StopStringCriteria
from transformers.generation import logits_process as hf

from ..errors import MMSpecError
from ..seeds import random_stream
from ..settings.arguments import as_int, callables
from .allowed import AllowedTokens
from .by_row import ByRow

PREFIX_FREE = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.LogitNormalization,
    hf.InfNanRemoveLogitsProcessor,
    hf.SuppressTokensLogitsProcessor,
)
"""Processors that read the scores alone; all others are called with each node's own prefix."""

UNUSABLE = (
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    hf.SynthIDTextWatermarkLogitsProcessor,
    hf.EncoderRepetitionPenaltyLogitsProcessor,
    hf.ClassifierFreeGuidanceLogitsProcessor,
    hf.DiaClassifierFreeGuidanceLogitsProcessor,
    hf.DiaEOSChannelFilterLogitsProcessor,
    hf.DiaEOSDelayPatternLogitsProcessor,
    hf.WhisperNoSpeechDetection,
)
"""Processors that keep state from token to token, that take row n of the scores for row n of the batch, or that need
several rows for one."""

FOR_ONE_ROW = (hf.EncoderNoRepeatNGramLogitsProcessor,)
FOR_ONE_LENGTH = (
    hf.AlternatingCodebooksLogitsProcessor,
    hf.WhisperTimeStampLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
)
"""Processors that were given the length of the prompt, which here is each row's own length without padding."""

NOT_TAKEN_OVER: dict[str, tuple[Any, type | None]] = {
    "min_length": (0, hf.MinLengthLogitsProcessor),
    "min_new_tokens": (0, hf.MinNewTokensLengthLogitsProcessor),
    "forced_bos_token_id": (None, hf.ForcedBOSTokenLogitsProcessor),
    "forced_eos_token_id": (None, hf.ForcedEOSTokenLogitsProcessor),
    "exponential_decay_length_penalty": (None, hf.ExponentialDecayLengthPenalty),
    "encoder_no_repeat_ngram_size": (0, hf.EncoderNoRepeatNGramLogitsProcessor),
    "encoder_repetition_penalty": (1, None),
    "watermarking_config": (None, None),
    "token_healing": (False, None),
    "num_beams": (1, None),
    "penalty_alpha": (0, None),
    "dola_layers": (None, None),
    "constraints": (None, None),
    "force_words_ids": (None, None),
    "stop_strings": (None, StopStringCriteria),
    "max_time": (None, MaxTimeCriteria),
}
"""Settings of a generation config that change the text and that this pipeline does not apply: the value that has no
effect, and the class that a caller can pass for the same effect."""

Prefixes = Callable[[], list[list[list[int]]]]
"""Function that returns, per row and node, the tokens up to and including that node. It is called only when needed."""


class SuppressedAtFirst(hf.SuppressTokensLogitsProcessor):
    """Suppresses tokens with which no answer begins (`begin_suppress_tokens`). It is called for the first token only,
    so the ends of a batch's prompts need not be known."""


class LogitsPipeline:
    """The processors between the model's logits and the distribution to draw from.

    Args:
        temperature: 0 for greedy decoding (the argmax of the processed logits), else a divisor of the logits.
        top_k, top_p, min_p: keep the k likeliest tokens, the likeliest with total probability p, and those above p
            times the likeliest. Without effect on greedy decoding.
        repetition_penalty: divisor of the positive (factor of the negative) logits of tokens that are already in the
            sequence.
        logits_processor: further Hugging Face processors or functions, or a single one. They are called with nodes of
            trees as rows, any number in any order and without padding: they must not keep state between calls, nor
            depend on the number of a row. Processors of `prefix_allowed_tokens_fn` receive the number of the row in the
            batch. The order is that of `generate`: the model's own processors and the penalty, these, temperature,
            top-k, top-p, min-p. As in `generate`, a processor replaces one of the same class in the first group.
        generation_config: generation config of a model. Its repetition penalty applies if none is given here, and its
            sequence_bias, no_repeat_ngram_size, bad_words_ids, remove_invalid_values, begin_suppress_tokens,
            suppress_tokens and renormalize_logits apply.
        eos_token_ids: end tokens, which are never bad words.
        of_family: further processors of the model's own `generate`, which run behind those settings; see
            `Family.processors`.

    Raises:
        MMSpecError: naming a value out of range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        logits_processor: Iterable | Callable | None = None,
        generation_config: GenerationConfig | None = None,
        eos_token_ids: Iterable[int] = (),
        of_family: Iterable[Callable] = (),
    ):
        config = generation_config or GenerationConfig()
        if repetition_penalty is None:
            repetition_penalty = config.repetition_penalty
        self.temperature = _number("temperature", temperature, lambda t: 0 <= t < math.inf, "0 (greedy) or more")
        if top_k is not None:
            top_k = int(_number("top_k", top_k, lambda k: k > 0 and as_int(k) is not None, "a positive integer"))
        if top_p is not None:
            top_p = _number("top_p", top_p, lambda p: 0 < p <= 1, "above 0 and at most 1")
        if min_p is not None:
            min_p = _number("min_p", min_p, lambda p: 0 <= p <= 1, "from 0 to 1")
        penalty = 1.0 if repetition_penalty is None else repetition_penalty
        penalty = _number("repetition_penalty", penalty, lambda r: 0 < r < math.inf, "above 0 (1 is no penalty)")
        given = _usable(callables("logits_processor", logits_processor))
        processors = _merged([*_of_model(config, penalty, list(eos_token_ids)), *of_family], given)
        if not self.greedy:
            if self.temperature != 1.0:
                processors.append(hf.TemperatureLogitsWarper(self.temperature))
            if top_k is not None:
                processors.append(hf.TopKLogitsWarper(top_k))
            if top_p is not None and top_p < 1.0:
                processors.append(hf.TopPLogitsWarper(top_p))
            if min_p:
                processors.append(hf.MinPLogitsWarper(min_p))
        if config.renormalize_logits and not any(isinstance(own, hf.LogitNormalization) for own in given):
            processors.append(hf.LogitNormalization())
        self.processors = LogitsProcessorList(processors)
        self._later = LogitsProcessorList(one for one in processors if not isinstance(one, SuppressedAtFirst))

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0.0

    @property
    def looking_back(self) -> list:
        """The processors that look at the tokens so far."""
        return [processor for processor in self.processors if not isinstance(processor, PREFIX_FREE)]

    @property
    def barred(self) -> list[int]:
        """The tokens that may stand nowhere in an answer."""
        kinds = [one for one in self._later if isinstance(one, hf.SuppressTokensLogitsProcessor)]
        return sorted({token for one in kinds for token in one.suppress_tokens.tolist()})

    @property
    def prefix_free(self) -> bool:
        """True if no processor reads the tokens so far."""
        return not self.looking_back

    def __call__(self, logits: Tensor, prefixes: Prefixes, first: bool = False) -> Tensor:
        """Process `[batch, nodes, vocab]` logits in float32, as `generate` does (float64 stays); the result has the
        same shape.

        Args:
            logits: logits for the token after each node.
            prefixes: called if a processor reads the tokens so far.
            first: True if the logits follow the prompts.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        processors = self.processors if first else self._later
        if not processors:
            return logits if self.greedy else logits.to(dtype)
        batch, nodes, vocab = logits.shape
        flat = logits.reshape(-1, vocab).to(dtype, copy=True)
        if self.prefix_free:
            dummy = torch.zeros(flat.shape[0], 0, dtype=torch.long, device=flat.device)
            return processors(cast(torch.LongTensor, dummy), cast(torch.FloatTensor, flat)).view(batch, nodes, vocab)
        # Processors take rectangular batches: nodes with prefixes of one length go together.
        by_length = defaultdict(list)
        for node, prefix in enumerate(prefix for row in prefixes() for prefix in row):
            by_length[len(prefix)].append((node, prefix))
        for group in by_length.values():
            index = torch.tensor([i for i, _ in group], device=flat.device)
            ids = torch.tensor([prefix for _, prefix in group], device=flat.device)
            scores, rows = flat[index], [i // nodes for i, _ in group]
            for processor in processors:
                own = isinstance(processor, ByRow)
                scores = processor(ids, scores, rows) if own else processor(ids, scores)
            flat[index] = scores.to(flat.dtype)
        return flat.view(batch, nodes, vocab)

    def settle(self, row: int, history: list[int], start: int, count: int, ended: bool) -> None:
        """Update how far a row has come, for processors that failed on its way; see `AllowedTokens.settle`."""
        for processor in self.processors:
            if isinstance(processor, ByRow):
                processor.settle(row, history, start, count, ended)

    def begin(self, lengths: list[int]) -> None:
        """Check the numbers of tokens in the prompts of a batch.

        Raises:
            MMSpecError: for processors that were made for other prompts.
        """
        for processor in self.processors:
            if isinstance(processor, ByRow):
                processor.begin(lengths)
            made_for = None
            if isinstance(processor, FOR_ONE_ROW) and max(len(lengths), processor.batch_size) > 1:
                made_for = "one prompt" if processor.batch_size == 1 else f"{processor.batch_size} prompts"
            length = isinstance(processor, FOR_ONE_LENGTH) or getattr(processor, "prompt_ignore_length", None)
            if length and len(set(lengths)) > 1:
                made_for = "one prompt length"
            if made_for is not None:
                raise MMSpecError(
                    f"{type(processor).__name__} was made for {made_for}, but the batch has rows of "
                    f"{', '.join(map(str, lengths))} tokens; generate row by row, each with its own processor"
                )


@dataclass
class Sampling:
    """Settings by which the next token is chosen, equal for all sides of a comparison; see `mmspec.stream`."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        LogitsPipeline(**vars(self))  # refuses what is out of range


def refuse_settings(config: GenerationConfig, given: Iterable, of_family: Mapping[str, Any]) -> None:
    """Refuse a model whose own `generate` writes another text than the loop would because of a setting that
    `LogitsPipeline` does not apply, and for which the caller has given no processor or criterion.

    Args:
        config: generation config of the model.
        given: processors and criteria of the caller.
        of_family: settings of the family, see `Family.settings_not_applied`.
    """
    given = list(given)
    settings = NOT_TAKEN_OVER | {name: (neutral, None) for name, neutral in of_family.items()}
    for name, (neutral, kind) in settings.items():
        value = getattr(config, name, None)
        if value is None or value == neutral or (kind is not None and any(isinstance(own, kind) for own in given)):
            continue
        instead = ""
        if kind is not None:
            argument = "stopping_criteria" if issubclass(kind, StoppingCriteria) else "logits_processor"
            instead = f"pass {argument}=[{kind.__name__}(...)], or "
        raise MMSpecError(
            f"the model's generation config has {name}={' '.join(repr(value).split())}, which mmspec does not apply by "
            f"itself; {instead}set it to None on model.generation_config to decode without it"
        )


def _of_model(config: GenerationConfig, penalty: float, eos: list[int]) -> list:
    """Return the processors of a generation config, in the order of `generate`."""
    wanted: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "sequence_bias": (hf.SequenceBiasLogitsProcessor, config.sequence_bias),
        "repetition_penalty": (hf.RepetitionPenaltyLogitsProcessor, penalty if penalty != 1.0 else None),
        "no_repeat_ngram_size": (hf.NoRepeatNGramLogitsProcessor, config.no_repeat_ngram_size),
        "bad_words_ids": (lambda words: hf.NoBadWordsLogitsProcessor(words, eos), config.bad_words_ids),
        "remove_invalid_values": (lambda _: hf.InfNanRemoveLogitsProcessor(), config.remove_invalid_values),
        "begin_suppress_tokens": (SuppressedAtFirst, config.begin_suppress_tokens),
        "suppress_tokens": (hf.SuppressTokensLogitsProcessor, config.suppress_tokens),
    }
    processors = []
    for name, (make, value) in wanted.items():
        try:
            processors += [make(value)] if value else []
        except (TypeError, ValueError) as error:
            raise MMSpecError(f"the model's generation config has a wrong {name}={value!r}: {error}") from None
    return processors


def _usable(processors: list) -> list:
    """Refuse processors that cannot judge any node of any row, in any order; return the others."""
    usable = []
    for processor in processors:
        if type(processor) is hf.PrefixConstrainedLogitsProcessor:
            processor = AllowedTokens(processor._prefix_allowed_tokens_fn)
        usable.append(processor)
        name = type(processor).__name__
        if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
            raise MMSpecError(
                f"logits_processor holds a {name} with a prompt_ignore_length per row, but a tree has many nodes per "
                "row; call mmspec.generate with repetition_penalty= instead"
            )
        if "ClassifierFreeGuidance" in name:
            raise MMSpecError(f"logits_processor holds a {name}, which runs the model: give guidance_scale= instead")
        if isinstance(processor, (*UNUSABLE, hf.PrefixConstrainedLogitsProcessor)):  # a class derived from the latter
            raise MMSpecError(f"logits_processor holds a {name}, which cannot judge the nodes of a tree; leave it out")
    return usable


def _merged(own: list, given: list) -> list:
    """Merge two lists of processors as `generate` does: of two with the same class, the caller's stays."""
    stands_for: dict[type, type] = {SuppressedAtFirst: hf.SuppressTokensAtBeginLogitsProcessor}
    kinds: list[type] = [stands_for.get(type(mine), type(mine)) for mine in own]
    merged = [
        next((processor for processor in given if type(processor) is kind), mine)
        for mine, kind in zip(own, kinds, strict=True)
    ]
    for processor in given:
        if processor not in merged:
            merged.append(processor)
    return merged


class NoiseTape:
    """Gumbel noise by position: the draw for the t-th new token of a row depends on the seed, the row and t only.

    The argmax of logits plus Gumbel noise is a sample of their softmax (Gumbel-max). With one noise vector per
    *position*, a sampled text does not depend on how many tokens each round drafts or accepts, so any deterministic
    drafter reproduces plain sampling token for token. Siblings share a vector, which is sound: at most one node per
    depth is on the path, and the choice of drafted nodes does not depend on noise ahead of them.

    Rows are identified by their number in the batch, not by their prompts: rows of one prompt must be independent
    samples, and rows of one question about different pictures have the same token ids.
    """

    def __init__(self, batch_size: int, vocab_size: int, seed: int, device: torch.device):
        self.vocab_size = vocab_size
        self.generators = [random_stream(device, seed, f"noise of row {row}") for row in range(batch_size)]
        self.ahead: list[deque[Tensor]] = [deque() for _ in range(batch_size)]
        self.device = device

    def peek(self, count: int) -> Tensor:
        """Return noise for each row's next `count` tokens, `[batch, count, vocab]`."""
        for generator, ahead in zip(self.generators, self.ahead, strict=True):
            while len(ahead) < count:
                exponential = torch.empty(self.vocab_size, dtype=torch.float32, device=self.device)
                ahead.append(-exponential.exponential_(generator=generator).log())
        return torch.stack([torch.stack([ahead[i] for i in range(count)]) for ahead in self.ahead])

    def consume(self, counts: list[int]) -> None:
        """Advance by `counts` tokens per row."""
        for ahead, count in zip(self.ahead, counts, strict=True):
            for _ in range(count):
                ahead.popleft()


def _number(name: str, value: Any, ok: Callable[[Any], bool], wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not ok(value):
        raise MMSpecError(f"{name}={value!r} is out of range: it must be {wanted}")
    return float(value)
