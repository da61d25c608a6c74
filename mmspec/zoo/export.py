"""Turn a training checkpoint into a folder that `from_pretrained` loads: `python -m mmspec.zoo.export CHECKPOINT`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from mmspec.zoo.architecture import build_config, build_model
from mmspec.zoo.vocabulary import build_processor, kept_tokenizer

DESTINATION = Path(__file__).parent / "weights" / "tiny" / "target"


def put_weights(model: PreTrainedModel, checkpoint: Path) -> dict:
    """Load the weights of a training checkpoint into a model; return the step and the seconds of the training.

    Raises:
        ValueError: if the checkpoint is of another architecture.
    """
    with safe_open(checkpoint, "pt") as file:
        state = json.loads(file.metadata()["state"])
        keys = [key for key in file.keys() if key.startswith("weights/")]
        weights = {key.removeprefix("weights/"): file.get_tensor(key) for key in keys}
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())
        raise ValueError(f"{checkpoint} does not fit {type(model).__name__} as it is built; differing names: {odd}")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return state


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, destination: Path) -> None:
    """Write configuration and bf16 weights of a model that generates greedily."""
    model.bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(destination)
    (destination / "model.safetensors").chmod(0o644)  # written readable by its owner only


def export(checkpoint: Path, destination: Path = DESTINATION) -> Path:
    """Write configuration, bf16 weights, tokenizer, processor and chat template."""
    tokenizer = kept_tokenizer(checkpoint.parent / "tokenizer")
    model = build_model(build_config(tokenizer))
    state = put_weights(model, checkpoint)
    save_model(model, tokenizer, destination)
    build_processor(tokenizer).save_pretrained(destination)
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training -> {destination}")
    return destination


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint.safetensors of a training run")
    parser.add_argument("--output", type=Path, default=DESTINATION, help="default: the weights folder of the package")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.output)


if __name__ == "__main__":
    main()
