# Made from 06_train_your_own_eagle.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show

# # Train your own EAGLE
#
# A drafter has to foresee what *this* target will say next. So it learns from answers that the target wrote itself, and needs
# no labels. Three steps: collect answers, train, and look how often it is right. Allow ten minutes on two cores.

PICTURES = 40  # of each task to learn from
STEPS = 300  # of training
LENGTH = 192  # tokens of an answer at most
HELD_OUT = 24  # answers kept aside

import csv
from pathlib import Path

import torch

import mmspec
from mmspec import visualization, zoo
from mmspec.data import EmbeddedSource
from mmspec.training import Objective, UniformNoise, losses
from mmspec.training.answers import open_source
from mmspec.training.distill import distill
from mmspec.training.settings import TrainingSettings
from mmspec.training.trainer import Trainer
from mmspec.trees import Chain

folder = Path("runs/notebook")

# ## 1. The target answers
#
# Forty pictures of each of four tasks. In earnest you would take thousands, of the kind that your drafter is to serve:
# `mmspec distill --data pictures`.

target = mmspec.load_target("tiny", dtype="bfloat16")
source = EmbeddedSource(count=PICTURES)
done = distill(target, source, folder / "answers", batch_size=16, max_new_tokens=LENGTH)
print(f"{done.answers} answers of {done.mean_tokens:.0f} tokens on average")

# ## 2. The drafter
#
# EAGLE's head is a single layer. It reads the target's last hidden state beside the embedding of the newest token and foresees
# the *next hidden state*; the target's own vocabulary head turns that into words. So there is little to learn.

torch.manual_seed(0)
drafter = mmspec.drafters.EagleDrafter(target)
ours = sum(weight.numel() for weight in drafter.parameters() if weight.requires_grad)
theirs = sum(weight.numel() for weight in target.model.parameters())
print(f"{ours / 1e6:.2f} million weights to learn, for a target of {theirs / 1e6:.2f} million")

# ## 3. The objective
#
# Two losses: the foreseen state should resemble the true one, and the words that follow from it should be as likely as the
# target finds them. A little noise on the states makes the head robust against its own mistakes, from which it goes on in use.

objective = Objective([losses.SmoothL1Features(), losses.SoftCrossEntropy(0.1)], noise=UniformNoise(0.2))
settings = TrainingSettings(
    steps=STEPS,
    batch_size=16,
    rows=8,
    warmup_steps=min(20, STEPS // 2),
    held_out=HELD_OUT,
    validate_every=STEPS // 4 or STEPS,
    log_every=max(1, STEPS // 30),
)
trainer = Trainer(
    drafter,
    objective,
    open_source(folder / "answers"),
    folder / "eagle",
    settings,
    optimizer=lambda weights: torch.optim.AdamW(weights, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    feature_cache=folder / "states",  # the target's states are computed once and read again
)
report = trainer.run()

# The target is frozen and runs beside the drafter; here its states are kept on disk, because the same few answers are read
# many times. The log has a line every few steps:

with open(folder / "eagle" / "log.csv", newline="") as file:
    log = list(csv.DictReader(file))
steps = [int(row["step"]) for row in log]

plot = visualization.figure(7.5, 2.8)
left, right = plot.subplots(1, 2)
left.plot(steps, [float(row["loss"]) for row in log])
left.set_title("loss", loc="left", fontsize=11)
right.plot(steps, [float(row["right 0"]) for row in log])
right.set_title("next token foreseen", loc="left", fontsize=11)
right.set_ylim(0, 1)
for axes in (left, right):
    axes.set_xlabel("step")
show(plot, "outputs/06_train_your_own_eagle/11")

# With so few answers it soon knows them by heart. New ones will tell.
#
# ## 4. Is it any good?
#
# What counts is not the loss but how many guesses in a row are right. Validation lets a chain of five begin at every token of
# answers that were kept aside.

simulated = report["simulated"]
print("right by position, if all before were:", " ".join(f"{p:.0%}" for p in simulated["acceptance_by_position"]))
print(f"tokens per pass of a chain of five:    {simulated['mean_acceptance_length']:.2f}")
for task, part in report["tasks"].items():
    print(f"    {task:10} {part['mean_acceptance_length']:.2f}")

# And in use, on a picture that no one has seen. `best` is a folder with a `config.json` and a `model.safetensors`; it is
# loaded like any other drafter, and `mmspec generate drafter=FOLDER` takes it too.

target = mmspec.load_target("tiny")
mine = mmspec.load_drafter(str(folder / "eagle" / "best"), target)
shipped = mmspec.load_drafter("tiny/eagle", target)  # the same head, after 1200 steps on 5000 answers

scene = zoo.sample("scenes", "test", 7)
outs = {
    name: mmspec.generate(target, drafter, scene.prompt, [scene.image], tree=Chain(5), max_new_tokens=LENGTH)
    for name, drafter in {"mine": mine, "shipped": shipped}.items()
}
for name, out in outs.items():
    print(f"{name:8} {out.stats.mean_acceptance_length:.2f} tokens per pass")
print("same text:", outs["mine"].token_ids == outs["shipped"].token_ids)

show(outs["mine"], "outputs/06_train_your_own_eagle/16")

show(visualization.acceptance_by_position(outs), "outputs/06_train_your_own_eagle/17")

# ## What to try
#
# More answers help most, then more steps. `Eagle3Drafter` with
# `Objective([losses.SoftCrossEntropy()], steps=7, decay=0.8)` reads three depths and rehearses chains in training. On the command
# line all of this is `mmspec distill` and `mmspec train recipe=eagle3`; the recipes of the other methods are listed in
# `docs/training.md`.
