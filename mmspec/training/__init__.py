"""Training drafters: the target's own answers (`distill`), lessons, losses, and one trainer for all recipes."""

from . import losses
from .lesson import Guess, Lesson, Teacher
from .objective import Objective, UniformNoise

__all__ = ["Guess", "Lesson", "Objective", "Teacher", "UniformNoise", "losses"]
