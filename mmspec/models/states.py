"""Hidden states of a model's layers, as drafters and training read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import MMSpecError
from .hooks import Ear, listening

if TYPE_CHECKING:
    from ..families import Family

LAST = -1
"""Number of the feature after the final norm, which the head reads. Other features have the number of the layer they
enter, or a number below this one, see `left`."""

END = 1 << 20
"""Stands for the number of layers: the feature of this number enters the final norm, that of `END - 1` the last layer,
and so on."""


def numbered(feature: int, count: int) -> int:
    """Return a feature's number in a model of `count` layers, where it may be counted from `END`."""
    return feature - END + count if feature > END // 2 else feature


def left(layer: int) -> int:
    """Return the number of the feature that leaves a layer, before anything else is added to it.

    It is the one that enters the next layer, but where visual features join the states between layers (DeepStack).
    """
    return LAST - 1 - layer


def layer_entered(feature: int) -> int:
    """Return the layer that a feature enters where nothing joins it on the way; `LAST` for itself."""
    return LAST - feature if feature < LAST else feature


def before_joining(features: Iterable[int], joined: int) -> tuple[int, ...]:
    """Return features, with those that visual features join on the way as they are before that.

    Args:
        features: layers that are entered, or `LAST`.
        joined: number of first layers behind which visual features join, see `Family.joined_layers`.
    """
    return tuple(left(layer - 1) if 0 < layer <= joined else layer for layer in features)


@contextmanager
def capture(family: Family, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep hidden states of the forward pass inside the block, as a dict from layer (or `LAST`, or `left` of a layer)
    to `[batch, length, hidden]`.

    Passes of other threads over the same model are not recorded.

    Raises:
        MMSpecError: if a state was not observed, for example in a model that the caller has compiled.
    """
    layers = tuple(layers)
    features: dict[int, Tensor] = {}

    def ear(layer: int) -> Ear:
        if layer == LAST:
            return Ear(family.final_norm, after=lambda args, output: features.__setitem__(LAST, output))
        number = numbered(layer, len(family.layers))
        keep = partial(features.__setitem__, layer)
        if number < LAST:
            module = family.layers[layer_entered(number) - 1]
            return Ear(module, after=lambda args, output: keep(output[0] if isinstance(output, tuple) else output))
        module = family.final_norm if number == len(family.layers) else family.layers[number]
        return Ear(module, before=lambda args, kwargs: keep(args[0] if args else kwargs["hidden_states"]))

    with listening(map(ear, layers)):
        yield features
    if unheard := [layer for layer in layers if layer not in features]:
        raise MMSpecError(
            f"the hidden states {unheard} of {type(family.model).__name__} could not be read: a model that was "
            "compiled before does not show them; give the model as it is, with Target(model, compile=True) if need be"
        )


@contextmanager
def entering(layer: nn.Module, states: Tensor) -> Iterator[None]:
    """Let `[batch, length, hidden]` states enter a layer, in place of those that the passes inside the block bring."""

    def exchange(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    with listening([Ear(layer, before=exchange)]):
        yield
