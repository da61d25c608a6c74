"""Tiny Whispers of the real classes, a real feature extractor and tokenizer for them, and sounds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from models import redraw
from tokenizers import pre_tokenizers
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from mmspec import Target
from mmspec.drafters import SharedEncoderDrafter

RATE, SECONDS, BINS = 16000, 1, 8
LANGUAGES, TASKS = ("en", "fr", "de"), ("translate", "transcribe")
CHARACTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{name}|>" for name in (*LANGUAGES, *TASKS)),
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    *(f"<|{0.02 * step:.2f}|>" for step in range(51)),
)
ID = {token: len(CHARACTERS) + index for index, token in enumerate(SPECIAL)}
VOCAB = len(CHARACTERS) + len(SPECIAL)
END = ID["<|endoftext|>"]
SUPPRESSED = [ID["<|startoftranscript|>"], ID["<|startofprev|>"], ID["<|nospeech|>"], 7, 11]


def config(layers: int = 3, bins: int = BINS) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=2,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=bins,
        max_source_positions=50 * SECONDS,
        max_target_positions=64,
        decoder_start_token_id=ID["<|startoftranscript|>"],
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        tie_word_embeddings=False,  # a tied random model repeats its last token for ever, whatever it attends to
    )


def whisper(attention="sdpa", seed=0, layers=3, bins=BINS) -> WhisperForConditionalGeneration:
    """A Whisper that writes without an end, as its generation config is that of published ones."""
    model = WhisperForConditionalGeneration._from_config(config(layers, bins), attn_implementation=attention)
    redraw(model, seed)
    settings = dict(
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": ID[f"<|{name}|>"] for name in LANGUAGES},
        task_to_id={name: ID[f"<|{name}|>"] for name in TASKS},
        no_timestamps_token_id=ID["<|notimestamps|>"],
        prev_sot_token_id=ID["<|startofprev|>"],
        max_initial_timestamp_index=20,
        suppress_tokens=SUPPRESSED,
        begin_suppress_tokens=[CHARACTERS.index("Ġ"), END],
        pad_token_id=END,
        eos_token_id=None,
        bos_token_id=END,
        decoder_start_token_id=ID["<|startoftranscript|>"],
        max_length=64,
        return_timestamps=False,
        _from_model_config=False,  # else transformers forgets all of it where it loads the model
    )
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    with torch.no_grad():  # attention that looks somewhere, and matters: else all sounds are nearly one to the decoder
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 4
            layer.encoder_attn.out_proj.weight *= 3
    return model.eval()


def decoder_alone(seed=0, layers=1) -> WhisperForCausalLM:
    return redraw(WhisperForCausalLM._from_config(config(layers), attn_implementation="sdpa"), seed).eval()


@cache
def extractor(bins: int = BINS) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=bins, sampling_rate=RATE, chunk_length=SECONDS)


@cache
def processor(bins: int = BINS) -> WhisperProcessor:
    vocab = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token=SPECIAL[0])
    first = SPECIAL.index("<|0.00|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:first])})
    tokenizer.add_tokens(list(SPECIAL[first:]))
    assert len(tokenizer) == VOCAB and tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [ID[s] for s in SPECIAL]
    return WhisperProcessor(extractor(bins), tokenizer)


def sound(number: int, seconds: float = 0.9) -> np.ndarray:
    """`[samples]` of a few tones and some noise, others for every number."""
    random = np.random.default_rng(number)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in random.uniform(100, 3000, 4))
    return (0.1 * tones * (1 + np.sin(7 * time)) + 0.05 * random.standard_normal(len(time))).astype(np.float32)


def features(numbers, bins: int = BINS) -> torch.Tensor:
    """`[sounds, bins, frames]`, as the real extractor makes them of sounds that differ in length."""
    sounds = [sound(number, 0.5 + 0.1 * number) for number in numbers]
    return extractor(bins)(sounds, sampling_rate=RATE, return_tensors="pt").input_features


def example() -> tuple:
    """A target, a drafter and a sound, for pages that suppose them."""
    target = Target(whisper(), processor())
    return target, SharedEncoderDrafter(target, decoder_alone()), (sound(1), RATE)


def prompt_ids(*names: str) -> list[int]:
    return [ID[f"<|{name}|>"] for name in names]


START = prompt_ids("startoftranscript", "en", "transcribe", "notimestamps")
PROMPTS = [
    START,
    prompt_ids("startoftranscript", "fr", "translate", "notimestamps"),
    [ID["<|startofprev|>"], 33, 40, 41, 35, *START],
]
"""Prompts of a ragged batch: one with a text that came before."""


def inputs_for(prompts=PROMPTS, numbers=(1, 2, 3)) -> dict[str, torch.Tensor]:
    """A batch as `generate` takes it, padded on the right."""
    width = max(map(len, prompts))
    return {
        "decoder_input_ids": torch.tensor([row + [END] * (width - len(row)) for row in prompts]),
        "decoder_attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in prompts]),
        "input_features": features(numbers[: len(prompts)]),
    }


@torch.no_grad()
def reference(model, new: int, prompts=PROMPTS, numbers=(1, 2, 3), **options) -> list[list[int]]:
    """What `model.generate` writes for a window of sound, row by row."""
    rows = []
    for prompt, number in zip(prompts, numbers, strict=False):
        out = model.generate(
            features([number]),
            decoder_input_ids=torch.tensor([prompt]),
            max_new_tokens=new,
            force_unique_generate_call=True,
            **{"do_sample": False, **options},
        )
        rows.append(out[0, len(prompt) :].tolist())
    return rows
