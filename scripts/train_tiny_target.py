"""Train the embedded vision-language model, or resume an interrupted training.

    python scripts/train_tiny_target.py --output runs/target --minutes 90
    python scripts/train_tiny_target.py --output runs/target --minutes 60    # resumes, and decays earlier

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


def main() -> None:
    """Every field of `PretrainingSettings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"minutes": float, "output": Path}
    for field in fields(PretrainingSettings):
        kind = kinds.get(field.name) or type(field.default)
        default = Path("runs/target") if field.name == "output" else field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default, help=f"default: {default}")
    print(f"last checkpoint: {train(PretrainingSettings(**vars(parser.parse_args())))}")


if __name__ == "__main__":
    main()
