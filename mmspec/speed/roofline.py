"""Seconds of a pass of a big model, computed by the roofline, and the sizes of models and devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import MMSpecError, did_you_mean


@dataclass(frozen=True)
class Device:
    """The peak performance of a device.

    Args:
        bandwidth: bandwidth of its memory, in GB/s.
        compute: dense 16-bit matrix products with 32-bit sums, in TFLOP/s.
        memory: size of its memory, in GB.
    """

    bandwidth: float
    compute: float
    memory: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise MMSpecError(f"a device's {name}={value!r} must be above 0")

    def times(self, count: int) -> Device:
        """Return `count` such devices as one: they share every pass evenly and communicate at no cost, which real ones
        do not."""
        return Device(*(value * count for value in vars(self).values()))


# Makers' data sheets, without sparsity.
DEVICES = {
    "t4": Device(320, 65, 16),
    "l4": Device(300, 121, 24),
    "a10": Device(600, 125, 24),
    "l40s": Device(864, 362, 48),
    "rtx3090": Device(936, 71, 24),
    "rtx4090": Device(1008, 165, 24),
    "a100-40gb": Device(1555, 312, 40),
    "a100-80gb": Device(2039, 312, 80),
    "h100-pcie": Device(2000, 756, 80),
    "h100": Device(3350, 989, 80),
    "h200": Device(4800, 989, 141),
    "b200": Device(8000, 2250, 180),
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder with gated MLPs, as far as the cost of a pass depends on them.

    Args:
        hidden, intermediate: widths of the layers and of their MLPs.
        layers: number of layers; not always whole, for a drafter whose weights are a fraction of a layer's.
        heads, key_value_heads, head_dim: sizes of the attention.
        vocabulary: rows of the vocabulary head.
        share: factor of the weights, sums and cache entries, for a small model of the same form.
    """

    hidden: int
    layers: float
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: float
    share: float = 1.0

    @property
    def layer_parameters(self) -> float:
        """Number of weights of one layer: `2 h (q + k) + 3 h m`, with q and k the widths of queries and of keys."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        return self.hidden * (2 * queries + 2 * keys + 3 * self.intermediate)

    @property
    def head_parameters(self) -> float:
        """Number of weights of the vocabulary head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> float:
        """Number of weights that every pass reads: the layers and the vocabulary head. Embeddings are looked up, not
        read."""
        return self.share * (self.layers * self.layer_parameters + self.head_parameters)

    @property
    def cached(self) -> float:
        """Number of values that the cache holds per token."""
        return self.share * 2 * self.layers * self.key_value_heads * self.head_dim


# LLaVA-1.5 (Vicuna) and Qwen2.5-VL, from their configurations.
MODELS = {
    "7b": Architecture(4096, 32, 11008, 32, 32, 128, 32064),
    "13b": Architecture(5120, 40, 13824, 40, 40, 128, 32064),
    "qwen-7b": Architecture(3584, 28, 18944, 28, 4, 128, 152064),
    "72b": Architecture(8192, 80, 29568, 64, 8, 128, 152064),
}


def device_of(name: str, bandwidth: float | None = None, compute: float | None = None, count: int = 1) -> Device:
    """Return a device by its name, with other numbers where they are given.

    Raises:
        MMSpecError: if the name is unknown, or a number is not positive.
    """
    if name not in DEVICES:
        raise MMSpecError(
            f"device {name!r} is unknown.{did_you_mean(name, DEVICES)} For another one give bandwidth= in GB/s and "
            "compute= in TFLOP/s beside the nearest of these"
        )
    if count < 1:
        raise MMSpecError(f"gpus={count} must be 1 or more")
    given = {name: value for name, value in (("bandwidth", bandwidth), ("compute", compute)) if value is not None}
    return replace(DEVICES[name], **given).times(count)


def model_of(name: str) -> Architecture:
    """Return a model's sizes by name.

    Raises:
        MMSpecError: if the name is unknown.
    """
    if name not in MODELS:
        raise MMSpecError(f"model {name!r} is unknown.{did_you_mean(name, MODELS)}")
    return MODELS[name]


def pass_seconds(
    model: Architecture,
    device: Device,
    nodes: float,
    *,
    prefix: int,
    batch: int = 1,
    width: float = 2,
    launch: float = 0.0,
) -> float:
    """Return the seconds of one pass: `max(bytes / bandwidth, sums / compute) + layers * launch`.

    The bytes are all weights once and the cache of every row. A weight takes two operations per node and row, and
    attention four per node, cached token and unit of the queries' width.

    Args:
        model, device: sizes and peaks.
        nodes: number of tokens per row that the pass reads.
        prefix: number of cached tokens per row.
        batch: number of rows.
        width: bytes per weight and cache entry.
        launch: seconds per layer that do not depend on its size: the launching of kernels.
    """
    moved = width * (model.parameters + batch * prefix * model.cached)
    attended = model.share * model.layers * model.heads * model.head_dim * prefix
    sums = batch * nodes * (2 * model.parameters + 4 * attended)
    return bound(device, moved, sums) + model.layers * launch


def bound(device: Device, moved: float, sums: float) -> float:
    """Return the seconds that so many bytes and operations take at the device's peaks, whichever of the two is
    slower."""
    return max(moved / (device.bandwidth * 1e9), sums / (device.compute * 1e12))
