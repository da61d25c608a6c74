"""Validation by acceptance: how much a drafter in training would save, per position and task, and a short real run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from ..drafters import Drafter
from ..generation import generate
from ..lesson import Lesson
from ..trees import Chain
from .data import TrainingPass
from .teacher import Teacher


class SimulatedAcceptance:
    """Counts over simulated greedy drafting: a chain of guesses begins at every token and ends at the first wrong one.

    Args:
        depth: length of the chains.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self.tried: dict[str, Tensor] = defaultdict(lambda: torch.zeros(depth))
        self.right: dict[str, Tensor] = defaultdict(lambda: torch.zeros(depth))

    def add(self, drafter: Drafter, lesson: Lesson) -> None:
        """Let a drafter guess at a lesson, and count its right guesses."""
        vocabulary = drafter.draft_vocabulary
        batch, roots = lesson.root_slots.shape
        alive = torch.ones(batch * roots, dtype=torch.bool, device=lesson.embeds.device)
        tasks = lesson.tasks or [""] * batch
        for step, guess in enumerate(drafter.unroll(lesson, self.depth)):
            token = guess.logits.argmax(-1)
            if vocabulary is not None:
                token = vocabulary[token]
            started = alive[guess.roots]
            right = started & (token == lesson.tokens[guess.places])
            alive = torch.zeros_like(alive)
            alive[guess.roots] = right
            rows = (guess.roots // roots).tolist()
            for row, was, now in zip(rows, started.tolist(), right.tolist(), strict=True):
                self.tried[tasks[row]][step] += was
                self.right[tasks[row]][step] += now

    def summary(self, task: str | None = None) -> dict:
        """Return `mean_acceptance_length` of a chain of this depth (bonus token included), and by position the chance
        that a guess is right if all before it were; for one task or for all together."""
        names = [task] if task is not None else list(self.tried)
        nothing = torch.zeros(self.depth)
        tried, right = (sum((counts[name] for name in names), nothing) for counts in (self.tried, self.right))
        by_position = right / tried.clamp(min=1)
        return {
            "mean_acceptance_length": round(1 + by_position.cumprod(0).sum().item(), 4),
            "acceptance_by_position": [round(value, 4) for value in by_position.tolist()],
        }


@dataclass
class Validator:
    """Measures a drafter on held-out answers.

    Args:
        teacher: the teacher that runs the target.
        passes: held-out examples, prepared.
        depth: length of the simulated chains.
        prompts: number of prompts that the real run answers at least, with a chain of the same depth; 0 for no real
            run.
        max_new_tokens: longest answer of the real run, in tokens.
    """

    teacher: Teacher
    passes: list[TrainingPass]
    depth: int = 5
    prompts: int = 4
    max_new_tokens: int = 64

    @torch.no_grad()
    def __call__(self, drafter: Drafter) -> dict:
        """Return `simulated` over everything held out, `tasks` with the same per task, and `measured` from the real
        run."""
        acceptance = SimulatedAcceptance(self.depth)
        for batch in self.passes:
            acceptance.add(drafter, self.teacher.lesson_of(batch))
        report = {
            "simulated": acceptance.summary(),
            "tasks": {task: acceptance.summary(task) for task in sorted(acceptance.tried) if task},
        }
        emitted = rounds = prompts = 0
        for batch in self.passes:
            if prompts >= self.prompts:
                break
            stats = generate(
                self.teacher.target,
                drafter,
                inputs=batch.prompt,
                max_new_tokens=self.max_new_tokens,
                tree=Chain(self.depth),
            ).stats
            prompts += batch.prompt.batch_size
            emitted += sum(sum(record.emitted) for record in stats.rounds)
            rounds += sum(sum(count > 0 for count in record.emitted) for record in stats.rounds)
        if rounds:
            report["measured"] = {"mean_acceptance_length": round(emitted / rounds, 4), "prompts": prompts}
        return report
