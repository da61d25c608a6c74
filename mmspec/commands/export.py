"""`mmspec export`: write a drafter in the format that vLLM serves."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..errors import MMSpecError
from ..settings import configuration
from .generate import completed


@dataclass
class ExportSettings:
    """Top-level keys of `configs/export.yaml`, where their defaults and meanings are."""

    output: str
    verifier_name: str | None
    speculative_tokens: int | None
    mask_token_id: int | None
    check: bool
    python: str | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec export`."""
    parser.description = (
        "Write a drafter as vLLM serves it, as a chain: EAGLE-3, DFlash or DSpark in the format of speculators, "
        "Medusa, or a draft model; and the target, where its folder has another layout than servers read."
    )
    parser.add_argument("--check", action="store_true", help="let speculators and vLLM load it, the same as check=true")
    parser.add_argument("--output", metavar="FOLDER", help="the folder to write to, the same as output=FOLDER")


def run(arguments: argparse.Namespace) -> int:
    """Compose the configuration, load the drafter and write it."""
    config = configuration.compose("export", arguments.overrides, arguments.config_dir)
    if arguments.output is not None:
        configuration.put(config, "output", arguments.output)
    if arguments.check:
        configuration.put(config, "check", "true")
    settings = configuration.typed(config, ExportSettings)
    if completed(arguments.overrides) != arguments.overrides:
        raise MMSpecError("the drafter to export is not named, and eagle3 is for target=tiny: add drafter=FOLDER")
    if Path(settings.output).is_file():
        raise MMSpecError(f"output={settings.output} is a file; name a folder to write to")

    import transformers

    from ..formats.export import check_length, export_drafter

    transformers.utils.logging.disable_progress_bar()
    check_length(settings.speculative_tokens)

    target = configuration.build(config.target)
    drafter = configuration.build(config.drafter, target=target)
    if drafter is None:
        raise MMSpecError("drafter=none leaves nothing to export; name a folder or hub id: drafter=runs/eagle3/best")
    made = export_drafter(
        drafter, settings.output, settings.verifier_name, settings.speculative_tokens, settings.mask_token_id
    )
    print(f"wrote {made.folder}; serve it with: {made.command}")
    if settings.check:
        from ..serving.export_check import checked

        for line in checked(drafter, made, settings.python):
            print(line)
    return 0
