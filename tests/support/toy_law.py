"""A toy model whose exact law over short texts is known, and sampled texts of whole runs to hold against it."""

from __future__ import annotations

import torch
from models import TEXT, rescale
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

import mmspec

ALPHA = 1e-4
"""The p-value below which samples are said not to follow a law."""

# Rows of one batch are independent samples.
TOY_VOCAB, TOY_TOKENS, ROWS = 6, 3, 2500
PROMPT = [1, 2, 3, 1, 4, 2, 3]


def toy(seed: int) -> LlamaForCausalLM:
    sizes = {"vocab_size": TOY_VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return rescale(LlamaForCausalLM(LlamaConfig(**{**TEXT, **sizes, "num_key_value_heads": 1})), seed)


@torch.inference_mode()
def exact_law(model, *processors) -> torch.Tensor:
    """`[vocab] * tokens`, from full passes over every prefix."""
    law = torch.ones(1, dtype=torch.float64)
    prefixes = torch.tensor([PROMPT])
    for _ in range(TOY_TOKENS):
        scores = LogitsProcessorList(processors)(prefixes, model(prefixes).logits[:, -1].clone())
        law = (law[:, None] * scores.double().softmax(-1)).flatten()
        tokens = torch.arange(TOY_VOCAB).repeat(len(prefixes))[:, None]
        prefixes = torch.cat([prefixes.repeat_interleave(TOY_VOCAB, dim=0), tokens], dim=1)
    return law.view([TOY_VOCAB] * TOY_TOKENS)


def sample(target, drafter, tree, **options) -> list[tuple[int, ...]]:
    """The texts of all rows; a drafter must have been right and wrong."""
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    options = {"temperature": 1.0, **options}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, tree=tree, **options)
    assert out.stats.lossless
    if drafter is not None:
        assert 0 < out.stats.num_accepted_draft_tokens < out.stats.num_draft_tokens
    return [tuple(row) for row in out.token_ids]
