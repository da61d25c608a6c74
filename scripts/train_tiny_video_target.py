"""Train the embedded video target, or resume an interrupted training.

    python scripts/train_tiny_video_target.py --output runs/video --minutes 90
    python scripts/train_tiny_video_target.py --output runs/video --minutes 60    # resumes, and decays earlier

The run stops after `--minutes` of training, all resumptions together (or after `--steps`), its learning rate decaying
over the last quarter. Interrupt it at any time; the same command resumes it from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the script also runs without installing

from mmspec.zoo.pretraining import PretrainingSettings, train
from mmspec.zoo.video.course import CLIPS


def main() -> None:
    """Every field of `PretrainingSettings` is an option; its pictures are clips here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"minutes": float, "output": Path}
    for field in fields(PretrainingSettings):
        kind = kinds.get(field.name) or type(field.default)
        default = Path("runs/video") if field.name == "output" else field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default, help=f"default: {default}")
    settings = PretrainingSettings(**vars(parser.parse_args()))
    print(f"last checkpoint: {train(settings, spawn=settings.processes > 1, course=CLIPS)}")


if __name__ == "__main__":
    main()
