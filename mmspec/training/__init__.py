"""Training drafters: the target's own answers (`distill`), lessons, losses, and one trainer for all recipes."""

from ..lesson import Guess, Lesson
from . import losses
from .objective import Objective, UniformNoise
from .teacher import Teacher

__all__ = ["Guess", "Lesson", "Objective", "Teacher", "UniformNoise", "losses"]
