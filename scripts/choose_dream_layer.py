"""Which layer of a target teaches DREAM's first block: the one with the least attention entropy (arXiv 2505.19201).

Prints AE(l) of every layer and the `layer` of SmoothL1Intermediate: the state that leaves the chosen layer, numbered by
the layer that it enters (-1 after the last one).

python scripts/choose_dream_layer.py
python scripts/choose_dream_layer.py --among 2 8 13 -1    # of the states that a feature cache holds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the script also runs without installing

import mmspec
from mmspec import zoo
from mmspec.inputs import prepare
from mmspec.models.attention import entropy_of_layers
from mmspec.models.states import LAST


def main() -> None:
    """Read prompts, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="tiny", help="a name for mmspec.load_target")
    parser.add_argument("--examples", type=int, default=4, help="prompts per task of the embedded generator")
    parser.add_argument("--among", type=int, nargs="*", help="choose among these states alone")
    options = parser.parse_args()
    target = mmspec.load_target(options.target)
    samples = [zoo.sample(task, "train", index) for task in zoo.TASKS for index in range(options.examples)]
    requests = (prepare(target, sample.prompt, [sample.image]) for sample in samples)
    entropies = entropy_of_layers(target, requests)
    states = [*range(1, len(entropies)), LAST]  # what leaves layer l is what enters layer l + 1
    for layer, (state, entropy) in enumerate(zip(states, entropies, strict=True)):
        print(f"layer {layer:3d}  AE {entropy:.3f} nats  state {state}")
    allowed = [index for index, state in enumerate(states) if options.among is None or state in options.among]
    if not allowed:
        parser.error(f"--among {options.among}: the states of this target are {states}")
    print(f"layer: {states[min(allowed, key=entropies.__getitem__)]}")


if __name__ == "__main__":
    main()
