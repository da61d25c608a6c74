"""Settings of how a training runs, as opposed to what is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MMSpecError


@dataclass
class TrainingSettings:
    """Settings of how a training runs; the recipe says what is trained, and on what.

    Args:
        steps: number of optimizer steps.
        batch_size: number of examples per step, over all processes.
        rows: number of examples per forward pass; a step adds up the gradients of as many passes as it needs.
        warmup_steps: number of steps in which the learning rate rises from 0.
        schedule: course of the learning rate after that, a name from transformers' `get_scheduler`:
            `constant_with_warmup`, `linear`, `cosine`, ...
        clip_norm: largest norm of the gradient; null for no limit.
        clip_value: largest absolute value of any number in the gradient (EAGLE's way); null for no limit.
        max_length: largest length of prompt and answer in tokens; longer examples are dropped and counted.
        max_failures: number of pictures that may fail to open before training stops.
        held_out: number of examples kept for validation.
        validate_every, save_every, log_every: number of steps between two validations, saved states, and lines of the
            log.
        depth: length of the chains that validation simulates.
        measured_prompts: number of held-out prompts that are answered with the real loop at each validation.
        temperature: temperature at which validation draws drafts and finds the best drafter; 0 is greedy decoding.
        seed: seed for the order, the noise and the first weights.
        text_steps, picture_steps: number of steps on examples without pictures at the beginning, and on examples with
            pictures at the end; in between the share of pictures rises. With 0 and 0 all examples come in one shuffled
            order. See `Curriculum`.
    """

    steps: int = 300
    batch_size: int = 32
    rows: int = 8
    warmup_steps: int = 20
    schedule: str = "cosine"
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    max_length: int = 2048
    max_failures: int = 20
    held_out: int = 32
    validate_every: int = 100
    save_every: int = 50
    log_every: int = 10
    depth: int = 5
    measured_prompts: int = 4
    temperature: float = 0.0
    seed: int = 0
    text_steps: int = 0
    picture_steps: int = 0

    FREE = ("validate_every", "save_every", "log_every", "measured_prompts", "max_failures", "rows")
    """Settings that may change when a training is resumed."""

    def __post_init__(self) -> None:
        for name in ("text_steps", "picture_steps", "temperature"):
            if getattr(self, name) < 0:
                raise MMSpecError(f"{name}={getattr(self, name)} must not be negative")
        positive = ("steps", "batch_size", "rows", "max_length", "held_out", "validate_every", "save_every")
        for name in (*positive, "log_every", "depth"):
            if getattr(self, name) < 1:
                raise MMSpecError(f"{name}={getattr(self, name)} must be at least 1")
