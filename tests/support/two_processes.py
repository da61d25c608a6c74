"""A training of 20 steps, run by `test_trainer` in one process and in two: `two_processes.py FOLDER`."""

import sys

import school
from accelerate import Accelerator

from mmspec.training.trainer import Trainer

drafter, objective = school.eagle()
settings = school.settings(steps=20, validate_every=20, save_every=20)
Trainer(
    drafter, objective, school.Answered(), sys.argv[1], settings, school.adam, accelerator=Accelerator(cpu=True)
).run()
