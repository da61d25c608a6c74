"""How a training runs, as opposed to what is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MMSpecError


@dataclass
class Settings:
    """How a training runs; what is trained, and on what, is the business of the recipe.

    Args:
        steps: optimizer steps.
        batch_size: examples per step, over all processes.
        rows: examples per forward pass; a step adds up the gradients of as many passes as it needs.
        warmup_steps: steps in which the learning rate rises from 0.
        schedule: what it does then, a name from transformers' `get_scheduler`: `constant_with_warmup`, `linear`,
            `cosine`, ...
        clip_norm: the largest norm of the gradient; null for no limit.
        clip_value: the largest absolute value of any of its numbers (EAGLE's way); null for no limit.
        max_length: prompt and answer in tokens; longer examples are dropped and counted.
        max_failures: so many pictures may fail to open before training stops.
        held_out: examples kept for validation.
        validate_every, save_every, log_every: in steps.
        depth: of the chains that validation simulates.
        measured_prompts: how many held-out prompts are answered with the real loop at each validation.
        seed: of the order, the noise and the first weights.
        text_steps, picture_steps: steps on examples without pictures at the beginning, and on examples with pictures at
            the end; in between the share of pictures rises. With 0 and 0 all examples come in one shuffled order. See
            `Curriculum`.
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
    seed: int = 0
    text_steps: int = 0
    picture_steps: int = 0

    FREE = ("validate_every", "save_every", "log_every", "measured_prompts", "max_failures", "rows")
    """What may change when a training is resumed."""

    def __post_init__(self):
        for name in ("text_steps", "picture_steps"):
            if getattr(self, name) < 0:
                raise MMSpecError(f"{name}={getattr(self, name)} must not be negative")
        positive = ("steps", "batch_size", "rows", "max_length", "held_out", "validate_every", "save_every")
        for name in (*positive, "log_every", "depth"):
            if getattr(self, name) < 1:
                raise MMSpecError(f"{name}={getattr(self, name)} must be at least 1")
