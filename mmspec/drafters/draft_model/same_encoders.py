"""Finds out if a draft model's encoders are copies of its target's: then running them once serves both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...families import Family
from ...models.weights import is_plain

OF_NO_ENCODER = {"text_config", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"}
"""Entries of a model's configuration that say nothing of its encoders; neither do those that begin with `_`."""


class SameEncoders:
    """The answer for one pair of models, looked up anew once a weight of theirs was written or replaced.

    Copies are what `recipe=small_copy` begins with, and training leaves them as they are. Writes that torch does not
    count are not noticed: those through `weight.data`, and in inference mode to weights that were made in it.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] | None = None
        self._same = False

    def between(self, draft: Family, target: Family) -> bool:
        """Return True if both models are of one class, with encoders of the same settings and the same weights."""
        if type(draft.model) is not type(target.model):
            return False
        ours, theirs = encoder_weights(draft), encoder_weights(target)
        weights = [*ours.values(), *theirs.values()]
        if not all(map(_is_readable, weights)):  # quantised, divided among devices, or not in memory
            return False
        seen = [(weight.data_ptr(), _version(weight)) for weight in weights]
        if seen != self._seen:
            self._seen, self._same = seen, _equal(draft, target, ours, theirs)
        return self._same


def encoder_weights(family: Family) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model that belong to neither its decoder nor its head, by name."""
    head = family.model.get_output_embeddings()
    others = {id(weight) for part in (family.decoder, head) if part is not None for weight in _weights(part).values()}
    return {name: weight for name, weight in _weights(family.model).items() if id(weight) not in others}


def _weights(part: nn.Module) -> dict[str, Tensor]:
    return dict(part.named_parameters()) | dict(part.named_buffers())


def _version(weight: Tensor) -> int:
    """Return how often a tensor was written; those made in inference mode do not count, and cannot be trained."""
    return 0 if weight.is_inference() else weight._version


def _is_readable(weight: Tensor) -> bool:
    """Return True if a parameter or a buffer holds the numbers that it stands for."""
    return is_plain(weight) if isinstance(weight, nn.Parameter) else type(weight) is Tensor and not weight.is_meta


def _equal(draft: Family, target: Family, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    if not ours or list(ours) != list(theirs):
        return False
    if _settings(draft.model.config.to_dict()) != _settings(target.model.config.to_dict()):
        return False
    pairs = [(ours[name], theirs[name]) for name in ours]
    return all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in pairs)


def _settings(config: Any) -> Any:
    """Return what a configuration says of the encoders."""
    if not isinstance(config, dict):
        return config
    names = [name for name in config if name not in OF_NO_ENCODER and not str(name).startswith("_")]
    return {name: _settings(config[name]) for name in names}
