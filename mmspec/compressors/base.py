"""Base class of visual compressors: they leave fewer entries for a picture in the drafter's prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from ..errors import MMSpecError, shown
from ..families.vision import Grid
from ..models.attention import attention_weights, layers_of_attention, received_attention
from ..models.newest import NewestLook, deepest
from ..per_request import PerRequest
from ..settings.calls import Named
from ..settings.trust import named_class
from .token_assignment import Sources
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target
    from .layout import Layout


@dataclass
class VisualSpan:
    """A picture, a video or a sound in a prompt.

    Args:
        embeds: `[tokens, hidden]` embeddings that the drafter would read without a compressor.
        grid: number of frames, rows and columns of the tokens, in reading order; None if the model does not say. A
            picture has one frame, and a sound has frames only.
        text: `[words, hidden]` embeddings of the prompt's text: the text after the picture, or all of it if nothing
            follows.
        states: `[words, target hidden]` the target's last hidden states at that text, which have seen the picture; None
            for drafters that read no states.
        attention: `[tokens]` attention that each token receives, or what else `VisualCompressor.token_scores` says of
            it; None unless the compressor sets `needs_attention`.
        kind: `"image"`, `"video"` or `"audio"`.
        features: `[tokens, target hidden]` the target's last hidden states at the picture's tokens; None for drafters
            that read no states.
    """

    embeds: Tensor
    grid: Grid | None
    text: Tensor
    states: Tensor | None = None
    attention: Tensor | None = None
    kind: str = "image"
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)


class Compressed(NamedTuple):
    """The entries that are left of a picture.

    Args:
        embeds: `[kept, hidden]` embeddings of the entries.
        source: the tokens that each entry stands for, with weights. The target's states and the positions of the
            entries are averaged with the same weights.
        summary: `[hidden]` a vector for the whole picture, for drafters that read one.
    """

    embeds: Tensor
    source: Sources
    summary: Tensor | None = None


class VisualCompressor(nn.Module, Named, PerRequest):
    """A module that turns the tokens of a picture into fewer entries. It changes only what the drafter sees: the target
    keeps all tokens.

    A subclass implements `forward(span)`; one that learns creates its weights in `attach`. Constructor arguments are
    kept as attributes of the same names, listed in `settings`, so that a drafter can be saved with its compressor.
    """

    positions = "original"
    """Positions of the entries: `"original"`, the (mean) position of the tokens that they stand for; `"gap"`, the last
    positions of the picture; `"packed"`, directly behind what comes before them, and everything that follows moves up
    as well."""

    margin: tuple[int, int] = (0, 0)
    """Numbers of text tokens directly before and after a picture that are removed with it, whatever is left of the
    picture."""

    settings: tuple[str, ...] = ()

    needs_attention = False
    """True if the compressor reads `VisualSpan.attention`, and so asks for `token_scores`, for which the states of
    `layers_seen` are needed."""

    blind = False
    """True if nothing that an encoder made is left, so that nobody need make it for the drafter."""

    routes = False
    """True if it leaves all tokens in the prompt, and says before every round which of them are seen, see `route`. The
    states of `layers_seen` are then needed."""

    anew = True
    """False if one that routes keeps its first choice."""

    def meet(self, target: Target) -> None:
        """Look up what is needed of the target that is drafted for, before `attach`; does nothing by default.

        Raises:
            MMSpecError: if the target has nothing of the kind.
        """

    def layers_seen(self, target: Target) -> list[int]:
        """Return the layers of the target whose entering states it looks at, beside the last states: by default what
        the attention of the last layer needs, if it `needs_attention` or `routes`, and none otherwise."""
        return layers_of_attention(target, deepest(target)) if self.needs_attention or self.routes else []

    def attention(self, target: Target, view: TargetView, words: Tensor) -> Tensor:
        """Return the attention that every token receives, `[batch, length]`, asked if it `needs_attention`: by default
        that of the target's last layer, averaged over the heads and the prompt's text.

        Args:
            target: the model.
            view: the text.
            words: `[batch, length]` True at the text of the prompt.
        """
        return received_attention(target, deepest(target), view.features, view.request.inputs, words)

    def token_scores(self, target: Target, view: TargetView, layout: Layout) -> Tensor:
        """Return what `VisualSpan.attention` is to hold of every token, `[batch, length]`, asked if it
        `needs_attention`: by default the `attention`.

        Args:
            target: the model.
            view: the text.
            layout: the places of its pictures and of the prompt's text.
        """
        return self.attention(target, view, layout.words)

    def attach(self, hidden: int, state: int) -> None:
        """Create weights for embeddings of width `hidden` and target states of width `state`."""

    def forward(self, span: VisualSpan) -> Compressed:
        """Compress one picture.

        Raises:
            MMSpecError: if the picture lacks something that the compressor needs, such as a grid.
        """
        raise NotImplementedError

    asks: int | None = None
    """If it routes, the layer that the newest state enters by which it chooses, see `NewestLook`; None for the last
    one."""

    def relevance(self, look: NewestLook) -> Tensor:
        """Return how much each token of the prompt matters now, `[batch, length]`; asked before every round if it
        `routes`. By default this is the attention of the newest token that the target has read, in the last layer,
        averaged over the heads."""
        return look.on_media()

    def relevance_at(self, target: Target, view: TargetView, places: Tensor) -> Tensor:
        """Return what `relevance` is in rounds of a text that is known, `[batch, count, length]`, for training.

        Args:
            target: the model.
            view: the text.
            places: `[batch, count]` the newest token that the target has read, in each of these rounds.
        """
        last = deepest(target)
        return attention_weights(target, last, view.features, view.request.inputs, places).float().mean(1)

    def route(self, relevance: Tensor, visual: Tensor) -> Tensor:
        """Return which visual tokens the drafter sees in the coming round, `[..., length]`; asked if it `routes`.

        Args:
            relevance: `[..., length]` how much each token of the prompt matters.
            visual: `[..., length]` True at the tokens of pictures, videos and sounds.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return plain values from which `compressor_of` builds the compressor again, without its weights."""
        cls = type(self)
        return {"class": f"{cls.__module__}.{cls.__qualname__}"} | {name: getattr(self, name) for name in self.settings}


def compressor_of(config: dict[str, Any] | None) -> VisualCompressor | None:
    """Build the compressor that `VisualCompressor.config` describes; None gives None.

    Args:
        config: settings, and under `class` the path of a class that belongs to mmspec or is imported already, or the
            class itself.

    Raises:
        MMSpecError: if the class may not be named (see `mmspec.settings.trust`) or does not take the settings.
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
    """Return the numbers of frames, rows and columns of a picture, for compressors that need them.

    Raises:
        MMSpecError: if they are not known.
    """
    if span.kind == "audio" or span.grid is None or math.prod(span.grid) != len(span):
        raise MMSpecError(
            f"{name} works on the frames, rows and columns of a picture or a video, but these {len(span)} tokens of "
            f"kind {span.kind} have none (they do not form a rectangle); use Prune, Resampler or Hide"
        )
    return span.grid


def whole_frames(grid: Grid | None, count: int, kind: str, name: str) -> Grid:
    """Return the numbers of frames, rows and columns of a picture or a video, behind which a video may have one token
    more, the line break of LLaVA-OneVision.

    Args:
        grid: what is known of it.
        count: its tokens.
        kind: `"image"`, `"video"` or `"audio"`.
        name: who asks.

    Raises:
        MMSpecError: if the tokens are arranged in another way, or it is not known how.
    """
    ends = (0, 1) if kind == "video" else (0,)
    if kind == "audio" or grid is None or count - math.prod(grid) not in ends:
        raise MMSpecError(
            f"{name} works on the frames, rows and columns of a picture or a video, but these {count} tokens of "
            f"kind {kind} have none (they do not form a rectangle); use Prune, TopPUniform or Hide"
        )
    return grid
