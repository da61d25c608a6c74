"""Writes drafters, and targets where need be, in the formats that servers read.

Heads are written in the format of `speculators`, whose fields of `config.json` and names of weights are those of
0.9.0; the library itself is not needed. Medusa and draft models have layouts of their own in vLLM.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...drafters import DFlashDrafter, Drafter, DraftModelDrafter, DSparkDrafter, Eagle3Drafter, MedusaDrafter
from ...errors import MMSpecError
from .block import DFlashWriter, DSparkWriter
from .draft_model import check_blind, write_draft_model
from .eagle3 import Eagle3Writer
from .medusa import write_medusa
from .target import needs_rewriting, write_target
from .writer import FORMAT, Writer, check_length, write_files

if TYPE_CHECKING:
    from ...target import Target

WRITERS: dict[type[Drafter], type[Writer]] = {
    Eagle3Drafter: Eagle3Writer,
    DFlashDrafter: DFlashWriter,
    DSparkDrafter: DSparkWriter,
}
"""The writer of every class that can be exported. A subclass is another method, and needs a writer of its own."""

NAMED = ("eagle-", "eagle3", "dflash", "dspark")
"""Parts of a path by which vLLM takes a drafter that lies there for one of that kind, whatever kind it is told."""

TARGET = "target"
"""Folder of an export that holds the target, where it had to be written."""

__all__ = [
    "FORMAT",
    "TARGET",
    "WRITERS",
    "Exported",
    "Writer",
    "check_length",
    "export_drafter",
    "export_speculators",
    "export_target",
    "exported",
]


@dataclass(frozen=True)
class Exported:
    """An export, as a server has to be told of it.

    Args:
        folder: folder of the drafter.
        method: name of its kind in vLLM.
        speculative_tokens: length of the chains that are drafted.
        target: name or folder by which the server finds the target.
        dtype: number format of the drafter, and of the target beside it, such as `"float32"`.
    """

    folder: Path
    method: str
    speculative_tokens: int
    target: str
    dtype: str

    @property
    def speculative_config(self) -> dict[str, Any]:
        """vLLM's `speculative_config`."""
        # Told that it is Medusa, vLLM 0.32 looks for the vocabulary's size at the top of the target's configuration,
        # where vision-language models have none. Not told, it finds the kind in the export's own configuration.
        method = {} if self.method == "medusa" else {"method": self.method}
        return method | {"model": str(self.folder.resolve()), "num_speculative_tokens": self.speculative_tokens}

    @property
    def command(self) -> str:
        """The command that serves the target with this drafter, in the number format that both were tried in here."""
        drafting = ["--speculative-config", json.dumps(self.speculative_config)]
        return shlex.join(["vllm", "serve", self.target, "--dtype", self.dtype, *drafting])


def export_drafter(
    drafter: Drafter,
    folder: str | Path,
    verifier_name: str | None = None,
    speculative_tokens: int | None = None,
    mask_token_id: int | None = None,
) -> Exported:
    """Write a drafter, and its target where that is in another layout than servers read, see `export_target`.

    Args:
        drafter: one that `export_speculators` writes, a `MedusaDrafter`, or a `TextOnlyDrafter`.
        folder: folder to write to, created if missing; the target goes into its folder `target`.
        verifier_name: the target's name on the serving machine. By default the folder of the target that was written,
            or else the name by which the target was loaded.
        speculative_tokens, mask_token_id: see `export_speculators`.

    Raises:
        MMSpecError: for a drafter that no server can run as it is, a folder whose path would have it taken for another
            kind, or a target without a name.
    """
    folder = Path(folder)
    writer = writer_of(drafter, mask_token_id)  # refused here, before anything is written
    if writer is None:
        _check_path(folder)
    check_length(speculative_tokens)
    length = None if writer is None else writer.length(speculative_tokens)
    written = export_target(drafter.target, folder / TARGET)
    target = _name_of_target(drafter, verifier_name or (None if written is None else str(written)))
    dtype = str(drafter.target.dtype).removeprefix("torch.")
    if isinstance(drafter, MedusaDrafter):
        return Exported(folder, "medusa", write_medusa(drafter, folder, speculative_tokens), target, dtype)
    if isinstance(drafter, DraftModelDrafter):
        return Exported(folder, "draft_model", write_draft_model(drafter, folder, speculative_tokens), target, dtype)
    assert writer is not None and length is not None
    write_files(folder, writer.config(target, length), writer.weights())
    return Exported(folder, writer.kind, length, target, dtype)


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
    config = writer.config(_name_of_target(drafter, verifier_name), length)
    folder = Path(folder)
    write_files(folder, config, writer.weights())
    return folder


def export_target(target: Target, output: Path) -> Path | None:
    """Write a target in the layout that servers read, if the folder that it was loaded from has another.

    Args:
        target: the target.
        output: folder to write to.

    Returns:
        The folder; None where the target was not loaded from a folder (the hub has published layouts), or that one can
        be served as it is.
    """
    name = target.model.config.name_or_path
    source = Path(name) if name else None
    if source is None or not source.is_dir() or not needs_rewriting(source):
        return None
    return write_target(source, output)


def writer_of(drafter: Drafter, mask_token_id: int | None = None) -> Writer | None:
    """Return the writer of a drafter; None for one with a layout of its own in vLLM.

    Raises:
        MMSpecError: for a drafter that no server can run as it is.
    """
    if type(drafter) in WRITERS:
        return WRITERS[type(drafter)](drafter, mask_token_id)
    if isinstance(drafter, DraftModelDrafter):
        check_blind(drafter)
        return None
    if type(drafter) is MedusaDrafter:
        return None
    raise MMSpecError(
        f"{type(drafter).__name__} has no counterpart in speculators {FORMAT}: {exported()} can be exported, and to "
        "vLLM also MedusaDrafter and TextOnlyDrafter"
    )


def _check_path(folder: Path) -> None:
    """Refuse a folder in which vLLM would take Medusa's heads, or a draft model, for a head of another kind."""
    path = str(folder.resolve())
    for part in NAMED:
        if part in path.lower():
            raise MMSpecError(
                f"vLLM goes by the name of a folder, and would take what lies in {path} for a drafter of another kind, "
                f"because of {part!r}: name another folder (output=)"
            )


def _name_of_target(drafter: Drafter, given: str | None) -> str:
    """Return the name by which a server finds the target."""
    model = drafter.target.model
    name = given or model.config.name_or_path
    if not name:
        raise MMSpecError(
            f"the {type(model).__name__} was not loaded by a name, so the export cannot say for which model it is: "
            "pass verifier_name, a hub id or a folder on the serving machine"
        )
    return name


def exported() -> str:
    """Return the names of the classes that can be exported, for a sentence."""
    *most, last = (cls.__name__ for cls in WRITERS)
    return f"{', '.join(most)} and {last}"
