"""`mmspec export`: a drafter in the format that vLLM serves."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .. import configuration
from ..errors import MMSpecError


@dataclass
class Settings:
    """The top-level keys of `configs/export.yaml`, where their defaults and meanings are."""

    output: str
    verifier_name: str | None
    speculative_tokens: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec export`: it has none of its own."""
    parser.description = "Write an EAGLE-3 drafter in the format of speculators, which vLLM serves as a chain."


def run(arguments: argparse.Namespace) -> int:
    """Compose, load and write."""
    config = configuration.compose("export", arguments.overrides, arguments.config_dir)
    settings = configuration.typed(config, Settings)

    from ..export import export_speculators

    target = configuration.build(config.target)
    drafter = configuration.build(config.drafter, target=target)
    if drafter is None:
        raise MMSpecError("drafter=none leaves nothing to export; name a folder or hub id: drafter=runs/eagle3/best")
    folder = export_speculators(drafter, settings.output, settings.verifier_name, settings.speculative_tokens)
    print(f"wrote {folder}; serve it with: vllm serve {folder}")
    return 0
