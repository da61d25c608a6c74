"""What the tests of distillation share: a small target, prompts for it, and a look at what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import redraw

import mmspec
from mmspec import Target
from mmspec.data import EmbeddedSource
from mmspec.training import distill as module
from mmspec.training.distill import distill

ANSWERS, SKIPPED, INFO = (
    f"{kind}-00000-of-00001.{suffix}"
    for kind, suffix in (("answers", "jsonl"), ("skipped", "jsonl"), ("distill", "json"))
)
SOURCE = EmbeddedSource(tasks=["scenes", "documents"], count=4)
OPTIONS = {"batch_size": 3, "max_new_tokens": 4}
SAMPLED = {**OPTIONS, "temperature": 1.5, "top_k": 50, "seed": 1}


def small_model(seed: int = 0):
    """A small random LLaVA and its processor, with the embedded model's vocabulary."""
    from mmspec.zoo import architecture, vocabulary

    processor = vocabulary.build_processor(vocabulary.build_tokenizer(examples=4))
    config = architecture.build_config(processor.tokenizer)
    # With its embeddings as head an untrained model would only repeat the last token.
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    return redraw(architecture.build_model(config), seed), processor


def uninterrupted(target: Target, factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that nothing interrupted."""
    folders = {}
    for kind, options in (("greedy", OPTIONS), ("sampled", SAMPLED)):
        folders[kind] = factory.mktemp(kind)
        distill(target, SOURCE, folders[kind], **options)
    return folders


def count_prompts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of prompts with every call of the target."""
    calls = []

    def counted(target, drafter, prompts, images, **options):
        calls.append(len(prompts))
        return mmspec.generate(target, drafter, prompts, images, **options)

    monkeypatch.setattr(module, "generate", counted)
    return calls


def lines(folder: Path, name: str = ANSWERS) -> list[dict]:
    """The records of a file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
