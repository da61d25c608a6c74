"""The conditions that methods are projected to: a device, what its memory holds, and what every pass costs beside."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MMSpecError
from .roofline import Architecture, Device, pass_seconds


@dataclass(frozen=True)
class Deployment:
    """Conditions to project to.

    Args:
        device: peaks of the device.
        prefix: number of cached tokens per row.
        batch: number of rows.
        width: bytes per weight and cache entry.
        launch: seconds per layer and pass.
        overhead: seconds per round, and per token of plain decoding, besides the passes.
    """

    device: Device
    prefix: int = 1024
    batch: int = 1
    width: float = 2
    launch: float = 1e-5
    overhead: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in (("prefix", 0), ("batch", 1), ("launch", 0), ("overhead", 0)):
            if getattr(self, name) < least:
                raise MMSpecError(f"{name}={getattr(self, name)} must be {least} or more")
        if not self.width > 0:
            raise MMSpecError(f"bytes={self.width} must be above 0, such as 2 for 16-bit weights")

    def seconds(self, model: Architecture, nodes: float) -> float:
        """Return the seconds of a pass."""
        return pass_seconds(
            model,
            self.device,
            nodes,
            prefix=self.prefix,
            batch=self.batch,
            width=self.width,
            launch=self.launch,
        )

    def gigabytes(self, model: Architecture) -> float:
        """Return the gigabytes of the weights (the embeddings included) and the cache."""
        weights = model.parameters + model.hidden * model.vocabulary
        return self.width * (weights + self.batch * self.prefix * model.cached) / 1e9
