"""Writes drafters in the format of `speculators`, which vLLM serves.

The fields of `config.json` and the names of the weights are those of speculators 0.9.0; the library itself is not
needed.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from ...drafters import DFlashDrafter, Drafter, DSparkDrafter, Eagle3Drafter
from ...errors import MMSpecError
from ...files.checkpoints import CONFIG, WEIGHTS
from .block import DFlashWriter, DSparkWriter
from .eagle3 import Eagle3Writer
from .writer import FORMAT, Writer

WRITERS: dict[type[Drafter], type[Writer]] = {
    Eagle3Drafter: Eagle3Writer,
    DFlashDrafter: DFlashWriter,
    DSparkDrafter: DSparkWriter,
}
"""The writer of every class that can be exported. A subclass is another method, and needs a writer of its own."""

__all__ = ["FORMAT", "WRITERS", "Writer", "check_length", "export_speculators", "exported"]


def export_speculators(
    drafter: Drafter,
    folder: str | Path,
    verifier_name: str | None = None,
    speculative_tokens: int | None = None,
    mask_token_id: int | None = None,
) -> Path:
    """Write a drafter as speculators and vLLM read it: `config.json` and `model.safetensors`.

    The files draft the same chains as the drafter; the format has no trees.

    Args:
        drafter: an `Eagle3Drafter`, `DFlashDrafter` or `DSparkDrafter`.
        folder: folder to write to, created if missing.
        verifier_name: the target's name on the serving machine: a hub id or a folder there. By default the name by
            which the target was loaded.
        speculative_tokens: length of the chain that vLLM drafts by default; None for 5 tokens of EAGLE-3, and for all
            that a block guesses.
        mask_token_id: for a block drafter whose mask is a vector of its own, which the format cannot hold: the token
            whose row of the drafter's embedding becomes that vector, one that the target never writes. None to take the
            last row that the tokenizer has no token for, or else the placeholder of pictures.

    Returns:
        The folder.

    Raises:
        MMSpecError: for a drafter that the format cannot express, or a target without a name.
    """
    name = type(drafter).__name__
    if type(drafter) not in WRITERS:
        raise MMSpecError(f"{name} has no counterpart in speculators {FORMAT}: {exported()} can be exported")
    check_length(speculative_tokens)
    writer = WRITERS[type(drafter)](drafter, mask_token_id)
    length = writer.length(speculative_tokens)
    model = drafter.target.model
    verifier_name = verifier_name or model.config.name_or_path
    if not verifier_name:
        raise MMSpecError(
            f"the {type(model).__name__} was not loaded by a name, so the export cannot say for which model it is: "
            "pass verifier_name, a hub id or a folder on the serving machine"
        )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in writer.weights().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(writer.config(verifier_name, length), indent=2) + "\n")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def exported() -> str:
    """Return the names of the classes that can be exported, for a sentence."""
    *most, last = (cls.__name__ for cls in WRITERS)
    return f"{', '.join(most)} and {last}"


def check_length(speculative_tokens: int | None) -> None:
    """Refuse a value that is not the length of a chain.

    Raises:
        MMSpecError: for such a value.
    """
    if speculative_tokens is None:
        return
    if not isinstance(speculative_tokens, int) or isinstance(speculative_tokens, bool) or speculative_tokens < 1:
        raise MMSpecError(f"speculative_tokens={speculative_tokens!r} must be a positive integer")
