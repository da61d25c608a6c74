"""What a training step costs beyond its models, as ratios within one run. Prints one JSON object.

    mmspec distill && python benchmarks/training.py --answers runs/answers

A step prepares pictures and prompts, runs the target and the drafter, and updates the weights. It is compared with the
bare passes over the same batches, already prepared: the target's own forward pass, and the drafter's forward and
backward pass. The two sides alternate and medians are compared; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time

import torch
from accelerate import Accelerator

from mmspec.loading import load_target
from mmspec.settings import configuration
from mmspec.training.answers import open_source
from mmspec.training.settings import TrainingSettings
from mmspec.training.trainer import Trainer


def bare_passes(trainer: Trainer, passes: list, lessons: list) -> tuple[float, float]:
    """Seconds of the target's forward passes, and of the drafter's forward and backward passes."""
    model = trainer.target.model
    start = time.perf_counter()
    for batch, lesson in zip(passes, lessons, strict=True):
        inputs = batch.prompt.inputs
        pictures = {name: inputs[name] for name in trainer.target.family.media_inputs if name in inputs}
        request = lesson.request.inputs
        with torch.no_grad():
            model(
                input_ids=request["input_ids"],
                attention_mask=request["attention_mask"],
                use_cache=False,
                logits_to_keep=1,
                **pictures,
            )
    middle = time.perf_counter()
    for lesson in lessons:
        total, _ = trainer.trainee(lesson, "benchmark")
        total.backward()
    trainer.optimizer.zero_grad()
    return middle - start, time.perf_counter() - middle


def measure(recipe: str, answers: str, repeats: int, settings: TrainingSettings) -> dict:
    """One recipe: medians of both sides, their ratio, and the growth of memory over the steps."""
    config = configuration.compose("train", [f"train/recipe={recipe}"])
    target = load_target("tiny", "bfloat16")
    drafter = configuration.build(config.recipe.drafter, target=target)
    objective = configuration.build(config.recipe.objective)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            drafter, objective, open_source(answers), folder, settings, accelerator=Accelerator(mixed_precision="bf16")
        )
        steps, targets, drafters, memory = [], [], [], []
        for number in range(repeats + 1):
            passes = list(trainer.loader.passes(trainer.order.step(number), settings.rows))
            lessons = [trainer.teacher.lesson_of(batch) for batch in passes]
            forward, both = bare_passes(trainer, passes, lessons)
            trainer.step = number
            start = time.perf_counter()
            trainer.train_step()
            steps.append(time.perf_counter() - start)
            targets.append(forward)
            drafters.append(both)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    medians = {
        name: statistics.median(values[1:])  # the first is the warm-up
        for name, values in {"step_s": steps, "target_s": targets, "drafter_s": drafters}.items()
    }
    ratio = statistics.median(a / (b + c) for a, b, c in zip(steps[1:], targets[1:], drafters[1:], strict=True))
    half = len(memory) // 2
    return medians | {"ratio": ratio, "peak_mb": memory[-1], "peak_growth_in_second_half_mb": memory[-1] - memory[half]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", default="runs/answers", help="what mmspec distill wrote")
    parser.add_argument("--recipes", nargs="+", default=["eagle2", "eagle3", "small_vlm", "text_only"])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    settings = TrainingSettings(batch_size=options.batch_size, held_out=1)
    report = {name: measure(name, options.answers, options.repeats, settings) for name in options.recipes}
    print(json.dumps({"threads": torch.get_num_threads(), **report}, indent=1))


if __name__ == "__main__":
    main()
