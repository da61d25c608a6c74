"""Train the embedded draft models on the embedded target's own answers.

    python scripts/train_tiny_drafters.py --output runs/drafters

Writes `draft_model/` and `text_only/` into the output folder; copy them to `mmspec/zoo/weights/` to embed them. The
target's answers are kept in the folder, so an interrupted run does not ask for them again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the script also runs without installing

from mmspec.loading import load_target
from mmspec.zoo.distillation import Settings, distill


def main() -> None:
    """Every field of `Settings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="tiny", help="name or folder of the target; default: tiny")
    for field in fields(Settings):
        default = Path("runs/drafters") if field.name == "output" else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}"
        )
    options = vars(parser.parse_args())
    distill(load_target(options.pop("target"), "bfloat16"), Settings(**options))


if __name__ == "__main__":
    main()
