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
from ..verifiers import RejectionSampling
from .data import TrainingPass
from .losses import truth_at
from .losses.acceptance import acceptance
from .teacher import Teacher


class SimulatedAcceptance:
    """Sums over simulated drafting: a chain of guesses begins at every token and ends at the first refused one.

    Greedily, a guess is accepted or not. At a higher temperature a chain goes on with a chance: over answers that the
    target drew at this temperature, the means are those of drawn chains, see `AcceptedLength`.

    Args:
        depth: length of the chains.
        temperature: temperature of the request; 0 is greedy decoding.
    """

    def __init__(self, depth: int, temperature: float = 0.0):
        self.depth, self.temperature = depth, temperature
        self.tried: dict[str, Tensor] = defaultdict(lambda: torch.zeros(depth))
        self.right: dict[str, Tensor] = defaultdict(lambda: torch.zeros(depth))

    def add(self, drafter: Drafter, lesson: Lesson) -> None:
        """Let a drafter guess at a lesson, and count its right guesses."""
        vocabulary = drafter.draft_vocabulary
        batch, roots = lesson.root_slots.shape
        alive = torch.ones(batch * roots, device=lesson.embeds.device)
        tasks = lesson.tasks or [""] * batch
        for step, guess in enumerate(drafter.unroll(lesson, self.depth)):
            truth = truth_at(lesson, guess.places, vocabulary)
            if self.temperature:
                accepted, passed = acceptance(guess, truth, self.temperature)
            else:
                accepted = passed = ((guess.logits.argmax(-1) == truth.tokens) & truth.written).float()
            started = alive[guess.roots]
            alive = torch.zeros_like(alive)
            alive[guess.roots] = started * passed
            rows = (guess.roots // roots).tolist()
            for row, was, now in zip(rows, started.tolist(), (started * accepted).tolist(), strict=True):
                self.tried[tasks[row]][step] += was
                self.right[tasks[row]][step] += now

    def summary(self, task: str | None = None) -> dict:
        """Return `mean_acceptance_length` of a chain of this depth (bonus token included), and by position the chance
        that a guess is right if all before it were; for one task or for all together."""
        names = [task] if task is not None else list(self.tried)
        nothing = torch.zeros(self.depth)
        tried, right = (sum((counts[name] for name in names), nothing) for counts in (self.tried, self.right))
        by_position = right / torch.where(tried > 0, tried, 1)
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
        temperature: temperature of the requests, whose drafts are drawn; 0 is greedy decoding.
    """

    teacher: Teacher
    passes: list[TrainingPass]
    depth: int = 5
    prompts: int = 4
    max_new_tokens: int = 64
    temperature: float = 0.0

    @torch.no_grad()
    def __call__(self, drafter: Drafter) -> dict:
        """Return `simulated` over everything held out, `tasks` with the same per task, and `measured` from the real
        run."""
        acceptance = SimulatedAcceptance(self.depth, self.temperature)
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
                verifier=RejectionSampling() if self.temperature else None,
                temperature=self.temperature,
                seed=0,
            ).stats
            prompts += batch.prompt.batch_size
            emitted += sum(sum(record.emitted) for record in stats.rounds)
            rounds += sum(sum(count > 0 for count in record.emitted) for record in stats.rounds)
        if rounds:
            report["measured"] = {"mean_acceptance_length": round(emitted / rounds, 4), "prompts": prompts}
        return report
