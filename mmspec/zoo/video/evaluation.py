"""Let a model tell what it saw in the clips of a split, and count how often it is right."""

from __future__ import annotations

import time
from typing import Any

import numpy
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.video_utils import VideoMetadata

from mmspec.zoo.evaluation import chat, written
from mmspec.zoo.metrics import total
from mmspec.zoo.video.data import CLIP_TASKS, watch
from mmspec.zoo.video.frames import FRAMES_PER_SECOND
from mmspec.zoo.video.metrics import measure_clip
from mmspec.zoo.video.processing import build_clip_processor

LONGEST_ACCOUNT = 320


def clip_inputs(processor: Qwen2_5_VLProcessor, clips: list[numpy.ndarray], prompts: list[str]) -> Any:
    """Return the model's inputs for clips with one prompt each, padded on the left. Clips of one frame are pictures."""
    if all(len(clip) == 1 for clip in clips):
        texts = [chat(processor, prompt) for prompt in prompts]
        images: list[Any] = [[Image.fromarray(clip[0])] for clip in clips]
        return processor(text=texts, images=images, padding=True, return_tensors="pt")
    known = [
        VideoMetadata(total_num_frames=len(clip), fps=FRAMES_PER_SECOND, frames_indices=list(range(len(clip))))
        for clip in clips
    ]
    return processor(
        text=[chat(processor, prompt, kind="video") for prompt in prompts],
        videos=clips,
        video_metadata=known,
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )


def answer_clips(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    clips: list[numpy.ndarray],
    prompts: list[str],
    longest: int = LONGEST_ACCOUNT,
) -> list[tuple[str, int]]:
    """Generate greedy answers to a batch of clips with one prompt each: pairs of (text, number of tokens)."""
    return written(model, processor, clip_inputs(processor, clips, prompts), longest)


def evaluate_clips(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    split: str = "test",
    examples: int = 100,
    rows: int = 16,
    tasks: tuple[str, ...] = CLIP_TASKS,
    length: str = "long",
    longest: int = LONGEST_ACCOUNT,
) -> dict[str, dict]:
    """Return metrics and mean answer length in tokens (end token included) per task."""
    processor = build_clip_processor(tokenizer)
    report: dict[str, dict] = {}
    for task in tasks:
        started = time.monotonic()
        samples = [watch(task, split, index, length) for index in range(examples)]
        answers: list[tuple[str, int]] = []
        for start in range(0, examples, rows):
            part = samples[start : start + rows]
            answers += answer_clips(model, processor, [s.frames for s in part], [s.prompt for s in part], longest)
        counts = [measure_clip(task, s.reference, text) for s, (text, _) in zip(samples, answers, strict=True)]
        report[task] = {name: value if value is None else round(value, 4) for name, value in total(counts).items()}
        report[task] |= {
            "mean_answer_tokens": round(sum(length for _, length in answers) / examples, 1),
            "examples": examples,
            "seconds": round(time.monotonic() - started, 1),
        }
    return report
