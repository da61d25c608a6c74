"""Reader: what is needed of a target to make requests for it."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Reader(Protocol):
    """A `Target`, as far as requests are concerned. Named here so that whoever reads a request need not know targets.

    Attributes:
        model: the Hugging Face model.
        processor: its processor or tokenizer, or None.
        tokenizer: its tokenizer, or None.
        family: see `mmspec.families.Family`.
        device: where its inputs are.
        eos_token_ids: at which its own `generate` stops.
    """

    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor if it is one."""

    @property
    def family(self) -> Any:
        """The family of the model."""

    @property
    def device(self) -> torch.device:
        """The device of its inputs."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens at which its own `generate` stops."""
