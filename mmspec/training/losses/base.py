"""`Loss`: a term of an objective, from a guess and the truth about it to one value per predicted token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import MMSpecError
from ...lesson import Guess, Lesson
from ...settings.arguments import is_number
from ...settings.calls import Named
from .weights import Ramp, Weight


class Truth(NamedTuple):
    """The target's predictions at the places of a guess.

    Args:
        logits: `[n, draft_vocab]` the target's logits over the drafter's vocabulary.
        tokens: `[n]` the token that the target wrote, as an index into the drafter's vocabulary (0 where it is not in
            it).
        inside: `[n]` True where the target's likeliest token is in the drafter's vocabulary.
        written: `[n]` True where the token that the target wrote is in the drafter's vocabulary.
        lesson: the lesson that the guess is about, for losses that read the target's states.
        places: `[n]` indices into the lesson's answer tokens.
    """

    logits: Tensor
    tokens: Tensor
    inside: Tensor
    written: Tensor
    lesson: Lesson
    places: Tensor

    def log_p(self, temperature: float = 1.0) -> Tensor:
        """Return the target's log-probabilities of the drafter's tokens, `[n, draft_vocab]`.

        They are shares of the whole vocabulary: over a reduced one they add up to less than 1, because what the drafter
        cannot propose cannot be accepted.

        Args:
            temperature: temperature of the request; 0 is greedy decoding, where all of the probability is on the
                target's likeliest token.
        """
        if temperature == 0:
            best = self.logits.argmax(-1, keepdim=True)
            alone = torch.full_like(self.logits, float("-inf")).scatter(-1, best, 0.0)
            return alone.masked_fill(~self.inside[:, None], float("-inf"))
        logits = self.logits / temperature
        if logits.shape[-1] == self.lesson.logits.shape[-1]:
            return logits.log_softmax(-1)
        everything = self.lesson.logits[self.places].float() / temperature
        return logits - everything.logsumexp(-1, keepdim=True)


def truth_at(lesson: Lesson, places: Tensor, vocabulary: Tensor | None) -> Truth:
    """Return the truth at some places, over a draft vocabulary (None for the whole one)."""
    logits, tokens = lesson.logits[places].float(), lesson.tokens[places]
    if vocabulary is None:
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return Truth(logits, tokens, everywhere, everywhere, lesson, places)
    number = torch.full((logits.shape[-1],), -1, device=tokens.device)
    number[vocabulary] = torch.arange(len(vocabulary), device=tokens.device)
    inside, written = number[logits.argmax(-1)] >= 0, number[tokens] >= 0
    return Truth(logits[:, vocabulary], number[tokens].clamp(min=0), inside, written, lesson, places)


def log_q_at(guess: Guess, temperature: float = 1.0) -> Tensor:
    """Return the drafter's log-probabilities at the temperature of a request, `[n, draft_vocab]`; -inf where it can
    propose nothing. At temperature 0, where it proposes its likeliest token alone, those at temperature 1 stand in."""
    return (guess.logits.float() / (temperature or 1.0)).log_softmax(-1)


def log_q_of(guess: Guess, temperature: float = 1.0) -> Tensor:
    """Return the drafter's log-probabilities, `[n, draft_vocab]`, of logits that are divided by a temperature.

    They are 0 where a draft model's embedding table is smaller than its target's and ends before a token (logits of
    -inf), which no training can change.
    """
    log_q = log_q_at(guess, temperature)
    return log_q.masked_fill(log_q == float("-inf"), 0.0)


class Term(Named):
    """A summand of an objective, with its weight.

    Args:
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for a weight that is neither a number nor a `Ramp`.
    """

    feature_layers: tuple[int, ...] = ()
    """States of the target that this loss needs besides the last one."""

    def __init__(self, weight: Weight = 1.0):
        if not isinstance(weight, Ramp) and not is_number(weight):
            raise MMSpecError(f"{type(self).__name__}: weight={weight!r} must be a number or a Ramp")
        self.weight = weight

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return type(self).__name__


class Loss(Term):
    """A term that looks at one step of the chains at a time.

    Args:
        weight: factor of this loss in the sum.
    """

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        raise NotImplementedError


class OnBase(Loss):
    """Another loss, on the logits that a drafter had before it corrected them for the tokens before the place (Domino,
    arXiv 2605.29707, whose base is trained first).

    Args:
        loss: the loss that is applied to them, without a weight of its own.
        weight: factor of this loss in the sum.

    Raises:
        MMSpecError: for a drafter that corrects nothing.
    """

    def __init__(self, loss: Loss, weight: Weight = 1.0):
        super().__init__(weight)
        self.loss = checked(self, loss)
        self.feature_layers = loss.feature_layers

    def __call__(self, guess: Guess, truth: Truth) -> Tensor:
        """Return the loss of every predicted token, `[n]`."""
        if guess.base is None:
            raise MMSpecError(f"{self.name}: this drafter corrects no logits; leave this loss out of the recipe")
        return self.loss(guess._replace(logits=guess.base), truth)

    @property
    def name(self) -> str:
        """Name of this loss in logs."""
        return f"OnBase {self.loss.name}"


def checked(owner: Term, loss: Loss) -> Loss:
    """Return a loss that another is made of.

    Raises:
        MMSpecError: if it is none, or one that sees whole chains, or has a weight of its own.
    """
    name = type(owner).__name__
    if not isinstance(loss, Loss):
        raise MMSpecError(f"{name}: loss={type(loss).__name__} must be a loss of single tokens, such as CrossEntropy")
    if loss.weight != 1:
        raise MMSpecError(f"{name}: loss.weight={loss.weight} would not count; give the weight to {name} itself")
    return loss
