"""A small target that reads real prompts and pictures, answers of its own, trainings and distillations of seconds."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import models
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import mmspec
from mmspec import zoo
from mmspec.data import EmbeddedSource, Example, Source
from mmspec.drafters import Eagle3Drafter, EagleDrafter, MedusaDrafter
from mmspec.loading import EMBEDDED
from mmspec.training import Objective, UniformNoise, losses
from mmspec.training.settings import TrainingSettings
from mmspec.training.trainer import Trainer


@cache
def target() -> mmspec.Target:
    """The same small target whenever it is asked for: tests must leave no trace on it."""
    return mmspec.Target(*small_model())


def small_model(seed: int = 0) -> tuple[LlavaForConditionalGeneration, Any]:
    """A random LLaVA of four narrow layers, and the processor of the embedded model."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(EMBEDDED / "tiny" / "target")
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        text_config=LlamaConfig(**{**models.TEXT, "vocab_size": len(tokenizer), "num_hidden_layers": 4}),
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=96,
            patch_size=8,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=144,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)  # `redraw` only shifts what is a vector
    return models.redraw(LlavaForConditionalGeneration(config), seed), processor


class Answered(Source):
    """Examples of the embedded generator with answers of random tokens, of different lengths.

    Args:
        count: how many.
        broken: numbers of examples whose picture does not exist.
        longest: tokens of an answer.
    """

    def __init__(self, count: int = 24, broken: tuple[int, ...] = (), longest: int = 12):
        self.count, self.broken, self.longest = count, broken, longest

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if index >= self.count:
            raise IndexError(index)
        task = zoo.TASKS[index % 4]
        generator = torch.Generator().manual_seed(index)
        length = 3 + index % (self.longest - 2)
        answer = torch.randint(10, 60, (length,), generator=generator)
        picture = f"tiny:{task}/train/{index}" if index not in self.broken else "no/such/picture.png"
        return Example(str(index), "What is this?", (picture,), task, None, tuple(answer.tolist()))

    def describe(self) -> dict:
        return {"source": "test"}


class Rule(Answered):
    """Answers that follow a rule."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        ids = tuple(20 + (index + n) % 7 for n in range(10))
        return type(example)(example.id, example.prompt, example.images, example.task, None, ids)


def settings(**changes) -> TrainingSettings:
    """A training of seconds."""
    values = {
        "steps": 8,
        "batch_size": 4,
        "rows": 2,
        "warmup_steps": 2,
        "held_out": 4,
        "validate_every": 4,
        "save_every": 3,
        "log_every": 1,
        "depth": 3,
        "measured_prompts": 0,
    }
    return TrainingSettings(**(values | changes))


def eagle(**changes) -> tuple[EagleDrafter, Objective]:
    """The same untrained head whenever it is called, and its objective."""
    made_for = target()
    torch.manual_seed(0)
    terms = [losses.SmoothL1Features(), losses.SoftCrossEntropy(0.1)]
    return EagleDrafter(made_for, **changes), Objective(terms, noise=UniformNoise())


def eagle3(**changes) -> tuple[Eagle3Drafter, Objective]:
    made_for = target()
    torch.manual_seed(0)
    return Eagle3Drafter(made_for, **changes), Objective([losses.SoftCrossEntropy()], steps=3, decay=0.8)


def medusa(**changes) -> tuple[MedusaDrafter, Objective]:
    """Heads of which the last ones have nothing to learn from short answers."""
    made_for = target()
    torch.manual_seed(0)
    return MedusaDrafter(made_for, **changes), Objective([losses.CrossEntropy()], steps=5, decay=0.8)


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def trainer(folder, kind=eagle, examples=None, drafter=None, objective=None, recipe=None, cache=None, **changes):
    made, aim = kind(**(drafter or {}))
    return Trainer(
        made,
        objective or aim,
        examples or Answered(),
        folder,
        settings(**changes),
        adam,
        recipe=recipe,
        feature_cache=cache,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Say whether two trainings have come to the same numbers."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


# Distillation.

ANSWERS, SKIPPED, INFO = (
    f"{kind}-00000-of-00001.{suffix}"
    for kind, suffix in (("answers", "jsonl"), ("skipped", "jsonl"), ("distill", "json"))
)
SOURCE = EmbeddedSource(tasks=["scenes", "documents"], count=4)
OPTIONS = {"batch_size": 3, "max_new_tokens": 4}
SAMPLED = {**OPTIONS, "temperature": 1.5, "top_k": 50, "seed": 1}


def lines(folder: Path, name: str = ANSWERS) -> list[dict]:
    """The records of a file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
