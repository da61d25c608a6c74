"""Let a model answer the samples of a split, and count how often it is right."""

from __future__ import annotations

import time
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmspec.zoo.data import TASKS, sample
from mmspec.zoo.metrics import measure, total

LONGEST_ANSWER = 192


def chat(processor: Any, prompt: str, media: int = 1, kind: str = "image") -> str:
    """Return the text of a user turn with pictures, or media of another kind, ready for the processor."""
    content: list[dict[str, str]] = [{"type": kind}] * media + [{"type": "text", "text": prompt}]
    # The annotation knows of no content in parts, which is what processors of vision-language models take.
    conversation: list[Any] = [{"role": "user", "content": content}]
    return processor.apply_chat_template(conversation, add_generation_prompt=True)


def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: list[Image.Image],
    prompts: list[str],
    longest: int = LONGEST_ANSWER,
) -> list[tuple[str, int]]:
    """Generate greedy answers to a batch of pictures with one prompt each: pairs of (text, number of tokens)."""
    texts = [chat(processor, prompt) for prompt in prompts]
    inputs = processor(text=texts, images=[[image] for image in images], padding=True, return_tensors="pt")
    return written(model, processor, inputs, longest)


@torch.inference_mode()
def written(model: Any, processor: Any, inputs: Any, longest: int) -> list[tuple[str, int]]:
    """Let a model write greedily behind a processor's output, padded on the left: pairs of (text, number of tokens)."""
    tokenizer = processor.tokenizer
    ids = model.generate(
        **inputs.to(model.device, model.dtype),
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    lengths = (ids != tokenizer.pad_token_id).sum(dim=1).tolist()
    return list(zip(processor.batch_decode(ids, skip_special_tokens=True), lengths, strict=True))


def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    split: str = "test",
    examples: int = 100,
    rows: int = 32,
    tasks: tuple[str, ...] = TASKS,
    longest: int = LONGEST_ANSWER,
) -> dict[str, dict]:
    """Return metrics, mean answer length in tokens (end token included) and share of perfect answers, per task."""
    report: dict[str, dict] = {}
    for task in tasks:
        started = time.monotonic()
        counts, lengths, perfect = [], [], 0
        for start in range(0, examples, rows):
            samples = [sample(task, split, index) for index in range(start, min(start + rows, examples))]
            answers = answer(model, processor, [s.image for s in samples], [s.prompt for s in samples], longest)
            for example, (text, length) in zip(samples, answers, strict=True):
                entry = measure(task, example.reference, text)
                counts.append(entry)
                lengths.append(length)
                perfect += entry == measure(task, example.reference, example.reference)
        report[task] = {name: value if value is None else round(value, 4) for name, value in total(counts).items()}
        report[task] |= {
            "perfect_answers": round(perfect / examples, 4),
            "mean_answer_tokens": round(sum(lengths) / len(lengths), 1),
            "examples": examples,
            "seconds": round(time.monotonic() - started, 1),
        }
    return report
