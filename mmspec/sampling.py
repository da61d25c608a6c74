"""The logits pipeline: one chain of processors for the target, and for the drafter where its probabilities matter."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from .errors import MMSpecError

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
)
"""Processors that look at the scores alone; any other one is called with each node's own prefix."""

Prefixes = Callable[[], list[list[list[int]]]]
"""Called only when needed: per row and node, the tokens up to and including that node."""


class LogitsPipeline:
    """What stands between the model's logits and the distribution to draw from.

    Args:
        temperature: 0 for greedy decoding (the argmax of the processed logits), else a divisor of the logits.
        top_k, top_p, min_p: keep the k likeliest tokens / the likeliest of total probability p / those above p times
            the likeliest. Without effect on greedy decoding.
        repetition_penalty: divisor of the positive (factor of the negative) logits of tokens already in the sequence.
        logits_processor: further Hugging Face processors. They must not keep state between calls: nodes are judged in
            any order. The order is that of `generate`: penalty, these, temperature, top-k, top-p, min-p.

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
        logits_processor: Iterable | None = None,
    ):
        _check("temperature", temperature, temperature >= 0, "0 (greedy) or more")
        _check("top_k", top_k, top_k is None or (isinstance(top_k, int) and top_k > 0), "a positive integer")
        _check("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1")
        _check("min_p", min_p, min_p is None or 0 <= min_p <= 1, "from 0 to 1")
        valid = repetition_penalty is None or repetition_penalty > 0
        _check("repetition_penalty", repetition_penalty, valid, "above 0 (1 is no penalty)")
        self.temperature = float(temperature)
        processors = []
        if repetition_penalty not in (None, 1.0):
            processors.append(hf.RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
        processors.extend(logits_processor or ())
        if not self.greedy:
            if temperature != 1.0:
                processors.append(hf.TemperatureLogitsWarper(float(temperature)))
            if top_k is not None:
                processors.append(hf.TopKLogitsWarper(top_k))
            if top_p is not None and top_p < 1.0:
                processors.append(hf.TopPLogitsWarper(float(top_p)))
            if min_p:
                processors.append(hf.MinPLogitsWarper(float(min_p)))
        self.processors = LogitsProcessorList(processors)
        self.prefix_free = all(isinstance(processor, PREFIX_FREE) for processor in processors)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def __call__(self, logits: Tensor, prefixes: Prefixes) -> Tensor:
        """Process `[batch, nodes, vocab]` logits, in float32 as `generate` does (float64 stays); same shape out.

        Args:
            logits: for the token after each node.
            prefixes: called if some processor depends on the tokens so far.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if not self.processors:
            return logits if self.greedy else logits.to(dtype)
        batch, nodes, vocab = logits.shape
        flat = logits.reshape(-1, vocab).to(dtype, copy=True)
        if self.prefix_free:
            dummy = torch.zeros(flat.shape[0], 0, dtype=torch.long, device=flat.device)
            return self.processors(dummy, flat).view(batch, nodes, vocab)
        # Processors take rectangular batches: nodes with prefixes of one length go together.
        by_length = defaultdict(list)
        for index, prefix in enumerate(prefix for row in prefixes() for prefix in row):
            by_length[len(prefix)].append((index, prefix))
        for group in by_length.values():
            index = torch.tensor([i for i, _ in group], device=flat.device)
            ids = torch.tensor([prefix for _, prefix in group], device=flat.device)
            flat[index] = self.processors(ids, flat[index]).to(flat.dtype)
        return flat.view(batch, nodes, vocab)


def random_stream(device: torch.device, seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose within a request. Streams of different purposes or seeds share no draws; with plain
    seeds such as `seed + row` the noise of one would be that of another, and draws that must be independent equal."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


class NoiseTape:
    """Gumbel noise by position: the draw for the t-th new token of a row depends on the seed, the row and t only.

    The argmax of logits plus Gumbel noise is a sample of their softmax (Gumbel-max). With one noise vector per
    *position*, a sampled text does not depend on how many tokens each round drafts or accepts, so any deterministic
    drafter reproduces plain sampling token for token. Siblings share a vector, which is sound: at most one node per
    depth is on the path, and which nodes are drafted does not depend on noise ahead of them.
    """

    def __init__(self, batch_size: int, vocab_size: int, seed: int, device: torch.device):
        self.vocab_size = vocab_size
        self.generators = [random_stream(device, seed, f"noise of row {row}") for row in range(batch_size)]
        self.ahead: list[deque[Tensor]] = [deque() for _ in range(batch_size)]
        self.device = device

    def peek(self, count: int) -> Tensor:
        """`[batch, count, vocab]` noise for each row's next `count` tokens."""
        for generator, ahead in zip(self.generators, self.ahead, strict=True):
            while len(ahead) < count:
                exponential = torch.empty(self.vocab_size, device=self.device)
                ahead.append(-exponential.exponential_(generator=generator).log())
        return torch.stack([torch.stack([ahead[i] for i in range(count)]) for ahead in self.ahead])

    def consume(self, counts: list[int]) -> None:
        """Move on by `counts` tokens per row."""
        for ahead, count in zip(self.ahead, counts, strict=True):
            for _ in range(count):
                ahead.popleft()


def _check(name: str, value, ok: bool, wanted: str) -> None:
    if not ok:
        raise MMSpecError(f"{name}={value!r} is out of range: it must be {wanted}")
