"""Hidden states of a model's layers, as drafters and training read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import MMSpecError
from .hooks import Ear, listening

if TYPE_CHECKING:
    from ..families import Family

LAST = -1
"""Number of the feature after the final norm, which the head reads. Other features have the number of the layer they
enter."""


@contextmanager
def capture(family: Family, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep hidden states of the forward pass inside the block, as a dict from layer (or `LAST`) to `[batch, length,
    hidden]`.

    Passes of other threads over the same model are not recorded.

    Raises:
        MMSpecError: if a state was not observed, for example in a model that the caller has compiled.
    """
    layers = tuple(layers)
    features: dict[int, Tensor] = {}

    def ear(layer: int) -> Ear:
        if layer == LAST:
            return Ear(family.final_norm, after=lambda args, output: features.__setitem__(LAST, output))
        keep = partial(features.__setitem__, layer)
        return Ear(family.layers[layer], before=lambda args, kwargs: keep(args[0] if args else kwargs["hidden_states"]))

    with listening(map(ear, layers)):
        yield features
    if unheard := [layer for layer in layers if layer not in features]:
        raise MMSpecError(
            f"the hidden states {unheard} of {type(family.model).__name__} could not be read: a model that was "
            "compiled before does not show them; give the model as it is, with Target(model, compile=True) if need be"
        )
