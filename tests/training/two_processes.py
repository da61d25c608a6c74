"""A training of 20 steps, run by `test_trainer` in one process and in two: `two_processes.py FOLDER`."""

import sys

import tiny_training
from accelerate import Accelerator
from tiny_training import Answered, adam, eagle

from mmspec.training.trainer import Trainer

drafter, objective = eagle()
settings = tiny_training.settings(steps=20, validate_every=20, save_every=20)
Trainer(drafter, objective, Answered(), sys.argv[1], settings, adam, accelerator=Accelerator(cpu=True)).run()
