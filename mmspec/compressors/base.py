"""The interface of visual compressors: fewer entries for a picture in the drafter's prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import MMSpecError, shown
from ..families.vision import Grid
from ..per_request import PerRequest
from ..trust import named_class
from .token_assignment import Sources


@dataclass
class VisualSpan:
    """One picture, video or sound in a prompt.

    Args:
        embeds: `[tokens, hidden]` what the drafter would read of it.
        grid: times, rows and columns of its tokens, in reading order; None if the model does not say. A picture has one
            time, and a sound nothing but times.
        text: `[words, hidden]` embeddings of the prompt's text: what follows the picture, or all of it if nothing does.
        states: `[words, target hidden]` the target's last states there, which have seen the picture; None for drafters
            that read no states.
        attention: `[tokens]` what each token receives in the target's last layer, see
            `mmspec.attention.received_attention`; None unless the compressor `needs_attention`.
        kind: `"image"`, `"video"` or `"audio"`.
    """

    embeds: Tensor
    grid: Grid | None
    text: Tensor
    states: Tensor | None = None
    attention: Tensor | None = None
    kind: str = "image"

    def __len__(self) -> int:
        return len(self.embeds)


class Compressed(NamedTuple):
    """What is left of a picture.

    Args:
        embeds: `[kept, hidden]`.
        source: which tokens each entry stands for. The target's states and the positions of the entries follow by the
            same weights.
        summary: `[hidden]` a vector for the whole picture, for drafters that want one.
    """

    embeds: Tensor
    source: Sources
    summary: Tensor | None = None


class VisualCompressor(nn.Module, PerRequest):
    """Makes fewer entries of a picture's tokens. It changes what the drafter sees, nothing else: the target keeps all.

    A subclass implements `forward(span)`; one that learns creates its weights in `attach`. Constructor arguments are
    kept as attributes of the same names, listed in `settings`, so that a drafter can be saved with its compressor.
    """

    positions = "original"
    """Where entries stand: `"original"`, at the (mean) place of the tokens that they stand for; `"gap"`, at the last
    places of the picture; `"packed"`, right behind what is before them, and so is all that follows."""

    margin: tuple[int, int] = (0, 0)
    """Tokens of text right before and right after a picture that go with it, whatever is left of it."""

    settings: tuple[str, ...] = ()

    needs_attention = False
    """Whether it looks at `VisualSpan.attention`, for which the state that enters the last layer is needed."""

    def attach(self, hidden: int, state: int) -> None:
        """Create weights for embeddings of width `hidden` and target states of width `state`."""

    def forward(self, span: VisualSpan) -> Compressed:
        """Compress one picture.

        Raises:
            MMSpecError: if the picture does not have what is needed, such as a grid.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Plain values from which `compressor_of` makes it again, without its weights."""
        cls = type(self)
        return {"class": f"{cls.__module__}.{cls.__qualname__}"} | {name: getattr(self, name) for name in self.settings}


def compressor_of(config: dict[str, Any] | None) -> VisualCompressor | None:
    """The compressor that `VisualCompressor.config` describes; None for None.

    Args:
        config: with the path of a class that is mmspec's own or imported already, or with the class itself.

    Raises:
        MMSpecError: if its class may not be named (see `mmspec.trust`) or does not take the settings.
    """
    if config is None:
        return None
    if not isinstance(config, dict):
        raise MMSpecError(f"a compressor is an object with a class and its settings, not {shown(config)}")
    values = dict(config)
    cls = values.pop("class", None)
    if not (isinstance(cls, type) and issubclass(cls, VisualCompressor)):
        cls = named_class(cls, VisualCompressor, "the compressor of this saved drafter")
    try:
        return cls(**values)
    except MMSpecError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise MMSpecError(f"the compressor {cls.__name__} of this saved drafter cannot be made: {error}") from None


def grid_of(span: VisualSpan, name: str) -> Grid:
    """Times, rows and columns of a picture, for compressors that need them.

    Raises:
        MMSpecError: if they are not known.
    """
    if span.kind == "audio" or span.grid is None or math.prod(span.grid) != len(span):
        raise MMSpecError(
            f"{name} works on the frames, rows and columns of a picture or a video, but these {len(span)} tokens of "
            f"kind {span.kind} have none (they are no rectangle); use Prune, Resampler or Hide"
        )
    return span.grid
