"""Layers that a drafter puts above the first ones of its target, in passes of the target's own decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..errors import MMSpecError, first_line
from .weights import is_plain

if TYPE_CHECKING:
    from ..families import Family

PLACE = "layer_idx"
"""Name that transformers' layers have for the number of their entries in a cache."""


class ResidualMLP(nn.Module):
    """`h + W_2 act(W_1 norm(h))`, in the place of a layer; it begins as the identity.

    Args:
        hidden: width of h.
        inner: width between the two maps.
        eps: what the norm adds to the variance.
    """

    def __init__(self, hidden: int, inner: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Return a tensor of the shape of the input, `[..., hidden]`; what a layer is told besides is of no use."""
        return hidden_states + self.down(nn.functional.silu(self.up(self.norm(hidden_states))))


def layer_like(family: Family, number: int, place: int) -> nn.Module:
    """Return a new layer of the class of a model's layer, which begins with that layer's weights, as far as these are
    stored as plain numbers.

    Args:
        family: where the model's layers are.
        number: number of its layer.
        place: number that the entries of the new one have in a cache.

    Raises:
        MMSpecError: for a layer that cannot be made from the configuration alone.
    """
    like = family.layers[number]
    try:
        layer = cast(Any, type(like))(family.decoder.config, number)
    except Exception as error:  # whatever a class of another shape stumbles over
        raise MMSpecError(
            f"no new {type(like).__name__} could be made from its configuration ({first_line(error)}): choose "
            "imitation='mlp'"
        ) from error
    for part in layer.modules():
        if hasattr(part, PLACE):
            setattr(part, PLACE, place)
    stored = dict(like.named_parameters())
    for name, parameter in layer.named_parameters():
        source = stored.get(name)
        if not parameter.is_meta and source is not None and is_plain(source) and source.shape == parameter.shape:
            parameter.data = source.detach().clone()
    return in_place_of(layer, number)


def in_place_of(layer: nn.Module, number: int) -> nn.Module:
    """Let passes give a layer the mask and the positions that the model's layer of that number gets; return it."""
    layer.kind_of_layer = number  # type: ignore[assignment]
    return layer


def kind_of(layer: nn.Module) -> int:
    """Return the number of the model's layer whose mask and positions a layer of `layer_like` gets."""
    return cast(int, layer.kind_of_layer)


def places_of(layers: Iterable[nn.Module]) -> list[int]:
    """Return the numbers that the entries of layers have in a cache, of those that have any; ascending."""
    found = {getattr(part, PLACE) for layer in layers for part in layer.modules() if hasattr(part, PLACE)}
    return sorted(found)
