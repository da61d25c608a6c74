"""Objective: a recipe's losses over the steps of a drafter's chains, as one number to minimise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..drafters import Drafter
from ..errors import MMSpecError, shown
from ..lesson import Guess, Lesson
from ..seeds import seed_from
from ..settings import arguments
from .losses import ChainLoss, Chains, Loss, Truth, truth_at, weight_at


class UniformNoise:
    """Adds uniform noise to the target's features, so that a drafter learns to bear its own errors (EAGLE, arXiv
    2401.15077).

    A state h becomes `h + (u - 1/2) * scale * reference / length` with u uniform in [0, 1), as released. The draw
    depends on the seed, the answer and the step alone: neither the number of processes nor an interruption changes it.

    Args:
        scale: width of the noise at the reference length.
        reference: reference length in tokens.
    """

    def __init__(self, scale: float = 0.2, reference: int = 512):
        self.scale, self.reference = scale, reference

    def __call__(self, lesson: Lesson, seed: str) -> dict[int, Tensor]:
        """Return the lesson's features with noise, `[batch, length, hidden]` by layer."""
        noisy = {layer: states.clone() for layer, states in lesson.features.items()}
        for row, (length, answer) in enumerate(zip(lesson.request.lengths, lesson.answers, strict=True)):
            words = f"{seed}/{lesson.prompt.lengths[row]}/{answer}"
            generator = torch.Generator().manual_seed(seed_from(words))
            for states in noisy.values():
                noise = (
                    torch.rand(length, states.shape[-1], generator=generator, dtype=torch.float32, device="cpu") - 0.5
                )
                states[row, :length] += (noise * (self.scale * self.reference / length)).to(states)
        return noisy


@contextmanager
def drawing(seed: str, device: torch.device) -> Iterator[None]:
    """Seed everything drawn inside, such as the branches of `Elastic`, and leave the random numbers outside alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_from(seed))
        yield


class Objective:
    """The weighted sum of some losses over the steps of every chain.

    Args:
        losses: terms of the sum, each for single steps (`Loss`) or for whole chains (`ChainLoss`).
        steps: length of the chains. 1 is ordinary training; more is training-time test (EAGLE-3).
        decay: factor per step: step i counts `decay ** i` in losses for single steps.
        detach: whether to stop gradients from a step into earlier ones (multi-step alignment of HASS and HiViS).
        noise: change to the features that the drafter reads, such as `UniformNoise`, or None.
        keep_within: number k: a chain goes on only while the target's choice is among the drafter's k likeliest tokens
            (dynamic mask of HiViS, arXiv 2509.23928); None keeps all.
        anchors: tokens of each answer at which chains begin, drawn anew at every step, for drafters that guess a block
            from each (DFlash, arXiv 2602.06036); the sums are scaled up as if all had been taken. None takes all.
        keep: share of the chains that a further step keeps, drawn anew every time: step i has a share
            `max(keep ** i, keep_least)` of them, and its tokens count as much as any others (P-EAGLE's sampling of
            depths, arXiv 2602.01469, see `Lesson.thinned`). 1 keeps all.
        keep_least: see `keep`.
        part: which part of the drafter guesses in a pass: a function of the drafter and of the share of the training
            that is done, such as `SubNetworks`; None for the whole drafter.

    Raises:
        MMSpecError: without losses, for something else among them, for a number of steps or anchors below 1, or for
            shares and a part that are none.
    """

    def __init__(
        self,
        losses: Iterable[Loss | ChainLoss],
        steps: int = 1,
        decay: float = 1.0,
        detach: bool = False,
        noise: UniformNoise | None = None,
        keep_within: int | None = None,
        anchors: int | None = None,
        keep: float = 1.0,
        keep_least: float = 0.0,
        part: Callable[[Drafter, float], Drafter] | None = None,
    ):
        self.losses = list(losses)
        if not self.losses:
            raise MMSpecError("an objective needs at least one loss")
        for number, loss in enumerate(self.losses):
            if not isinstance(loss, Loss | ChainLoss):
                raise MMSpecError(
                    f"objective: losses.{number}={shown(loss)} is no loss; name its class as _target_, such as "
                    "mmspec.training.losses.CrossEntropy"
                )
        if not isinstance(steps, int) or steps < 1:
            raise MMSpecError(f"objective: steps={steps!r} must be a positive integer")
        if anchors is not None and (not isinstance(anchors, int) or anchors < 1):
            raise MMSpecError(f"objective: anchors={anchors!r} must be a positive integer, or None for all")
        arguments.number(self, above=0, highest=1, keep=keep)
        arguments.number(self, lowest=0, highest=1, keep_least=keep_least)
        self.steps, self.decay, self.detach = steps, decay, detach
        if part is not None and not callable(part):
            raise MMSpecError(f"Objective: part={shown(part)} must be a function such as SubNetworks(), or None")
        self.keep, self.keep_least, self.part = keep, keep_least, part
        self.noise, self.keep_within, self.anchors = noise, keep_within, anchors

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """States of the target that the losses need."""
        return tuple(dict.fromkeys(layer for loss in self.losses for layer in loss.feature_layers))

    @property
    def names(self) -> list[str]:
        """Names of the sums that a call returns second, in order; a second loss of one class is numbered."""
        kinds = [loss.name for loss in self.losses]
        earlier = [kinds[:number].count(kind) for number, kind in enumerate(kinds)]
        terms = [f"{kind} {count + 1}" if count else kind for kind, count in zip(kinds, earlier, strict=True)]
        return terms + [f"right {step}" for step in range(self.steps)]

    def __call__(
        self, drafter: Drafter, lesson: Lesson, seed: str = "", progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of a drafter's guesses at a lesson.

        Args:
            drafter: the drafter in training.
            lesson: a lesson that a `Teacher` made.
            seed: seed for the noise and for whatever the drafter draws itself, which depends on the rows of the lesson
                too; give every step of a training another one.
            progress: share of the training that is done, for weights that change (`Ramp`).

        Returns:
            The sum over all drafted tokens, to be divided by `Lesson.weight`; and the sums to log, `[len(names)]`: each
            term over all steps, undiscounted, and how often the first guess was the written token at each step. Where a
            drafter guesses at some roots only, each stands for as many of its row, so that both are what they would be
            expected to be over all roots; where further steps keep a share of the chains, that is so of right guesses.
        """
        read = lesson if self.noise is None else replace(lesson, features=self.noise(lesson, seed))
        device = lesson.embeds.device
        total, marks = torch.zeros((), device=device), torch.zeros(len(self.names), device=device)
        weights = [weight_at(loss.weight, progress) for loss in self.losses]
        alive = torch.ones(lesson.root_slots.numel(), dtype=torch.bool, device=device)
        vocabulary = drafter.draft_vocabulary
        whole = any(isinstance(loss, ChainLoss) for loss in self.losses)
        seen: list[tuple[Guess, Truth, Tensor]] = []
        share = torch.ones(())
        with drawing(f"{seed}/{lesson.answers}", device):
            read = read if self.anchors is None else read.at_roots(self.anchors)
            read = read if self.keep == 1 else read.thinned(self.steps, self.keep, self.keep_least)
            guessing = drafter if self.part is None else self.part(drafter, progress)
            for step, guess in enumerate(guessing.unroll(read, self.steps, self.detach)):
                truth = truth_at(lesson, guess.places, vocabulary)
                share = stands_for(lesson, guess.roots) if step == 0 else share
                kept = alive[guess.roots]
                if whole:
                    seen.append((guess, truth, kept))
                for number, loss in enumerate(self.losses):
                    if isinstance(loss, Loss):
                        value = (loss(guess, truth) * kept * share[guess.roots]).sum()
                        total = total + self.decay**step * weights[number] * value
                        marks[number] += value.detach()
                right = (guess.logits.argmax(-1) == truth.tokens) & truth.written
                counted = (share.view(len(lesson.answers), -1) * read.thinning(step)[:, None]).flatten()
                marks[len(self.losses) + step] += (right * counted[guess.roots]).sum()
                if self.keep_within is not None and step + 1 < self.steps:
                    best = guess.logits.topk(min(self.keep_within, guess.logits.shape[-1]), dim=-1).indices
                    alive[guess.roots] &= (best == truth.logits.argmax(-1, keepdim=True)).any(-1) & truth.inside
            if seen:
                chains = Chains(*zip(*seen, strict=True))
                for number, loss in enumerate(self.losses):
                    if isinstance(loss, ChainLoss):
                        value = (loss(chains) * share[chains.roots][:, None]).sum()
                        total = total + weights[number] * value
                        marks[number] += value.detach()
        return total, marks


def stands_for(lesson: Lesson, roots: Tensor) -> Tensor:
    """Return how many roots of its row each guessed root stands for, by root, `[batch * roots]`.

    Args:
        lesson: the lesson that is guessed at.
        roots: `[n]` the roots with a guess.
    """
    valid, _ = lesson.drafted(0)
    guessed = torch.zeros(valid.numel(), device=roots.device).index_fill(0, roots, 1.0).view_as(valid)
    return (valid.sum(1) / guessed.sum(1).clamp(min=1)).repeat_interleave(valid.shape[1])
