"""The target on a few of its own visual entries as drafter: Sparse-to-Dense (STD)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import reduce
from torch import Tensor

from ..errors import MMSpecError
from ..models.attention import cached_attention
from ..models.entries import ChosenEntries
from ..models.session import ModelSession
from ..models.transfer import to_device
from ..settings.arguments import number, positive
from ..trees import Chain, TreeBuilder
from .head import HeadSettings
from .own_layers import OwnLayersDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class SparseSettings(HeadSettings):
    """The settings of a `SparseToDenseDrafter`.

    Args:
        keep: the share of a row's visual entries that is kept, above 0 and at most 1; one at least.
        budget: entries of a prompt that are kept in all, those of text included; null for `keep`. The paper has 1024.
    """

    keep: float = 0.1
    budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, above=0, highest=1, keep=self.keep)
        if self.budget is not None:
            positive(self, budget=self.budget)

    def count(self, visual: int, text: int) -> int:
        """Return how many visual entries are kept of a prompt.

        Args:
            visual, text: the numbers of its visual entries and of all others.
        """
        wanted = round(self.keep * visual) if self.budget is None else self.budget - text
        return min(max(wanted, 1), visual)


class SparseToDenseDrafter(OwnLayersDrafter):
    """A drafter that is the target itself, attending to all text and to the few visual entries that matter. Nothing is
    trained (Sparse-to-Dense, STD, arXiv 2505.19155).

    What costs time in a long video is to read keys and values. After the prompt, every layer and every head with keys
    of its own keeps the visual entries to which the text behind the last picture or video pays most attention; a copy
    of these and of all text is what is drafted with. What the target has accepted, it has read densely: those entries
    are copied from its cache, so the draft's own last one round.

    Faithful: all layers; text kept whole; a score per layer and head, the mean over the text's tokens and the sum over
    the heads that share keys; one choice, after the prompt; the chain of nine. Ours: scores come of one more pass over
    the text behind the picture, so nothing but its own rows of attention is ever in memory; a share instead of 1024
    entries by default.

    Lossless with every lossless verifier. With `keep=1` every guess is right.

    Args:
        target: the model to draft for, and with.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of nine.
        settings: fields of `SparseSettings`.

    Raises:
        MMSpecError: for targets with sliding windows, whose distances are counted in entries, for those whose layers
            attend to an encoder, and for settings out of range.
    """

    Settings = SparseSettings
    settings: SparseSettings
    in_targets_cache = False

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        super().__init__(target, tree=tree, **settings)
        if any(window is not None for window in target.windows.values()) or target.family.cross_attends:
            kind = "attend to an encoder" if target.family.cross_attends else "have sliding windows"
            raise MMSpecError(
                f"{type(self).__name__} leaves out entries of a picture, and layers of {type(target.model).__name__} "
                f"{kind}: use EarlyExitDrafter or SkippingDrafter, which draft with the target too"
            )

    def native_tree(self) -> TreeBuilder:
        """Return a chain of nine."""
        return Chain(9)

    def start(self, context: Context) -> None:
        """Choose the visual entries, and copy them and those of text."""
        super().start(context)
        self.session = context.branch(entries=self._chosen(context))

    def expand_root(self, root: Tensor) -> Tensor:
        """Take over what the target has read since the last draft, and read the rest, the root last."""
        self.session.catch_up(self.context)
        return super().expand_root(root)

    @torch.inference_mode()
    def _chosen(self, context: Context) -> ChosenEntries:
        """Return all entries of text, and of the visual ones those that matter to each head."""
        visual = context.target.family.is_visual(context.request.inputs["input_ids"])
        ends, columns = context.request.lengths, torch.arange(visual.shape[1], device=visual.device)
        beyond = columns >= to_device(ends, visual.device)[:, None]
        visual &= ~beyond
        seen = list(zip(visual.sum(1).tolist(), ends, strict=True))
        lengths = [end - count + self.settings.count(count, end - count) for count, end in seen]
        left_out = columns >= to_device(lengths, visual.device)[:, None, None]
        layers: list[Tensor] = []
        for scores in self._scores(context, visual):
            # Text stands before all else, then what is visual, by its score.
            scores = scores.masked_fill(~visual[:, None], float("inf")).masked_fill(beyond[:, None], float("-inf"))
            order = scores.sort(dim=-1, descending=True, stable=True).indices
            chosen = order.masked_fill(left_out, len(columns)).sort(dim=-1).values
            layers.append(chosen[..., : max(lengths)].clamp(max=len(columns) - 1))
        return ChosenEntries(layers, lengths)

    def _scores(self, context: Context, visual: Tensor) -> Iterator[Tensor]:
        """Yield, for each layer of the cache, `[batch, heads, length]` the attention of the text behind the last
        picture, for each head with keys of its own."""
        ends = context.request.lengths
        last = [max((place for place, seen in enumerate(row) if seen), default=-1) for row in visual.tolist()]
        counts = [max(end - place - 1, 1) if place >= 0 else 1 for place, end in zip(last, ends, strict=True)]
        states, entries = _read_again(context, counts)
        real = torch.arange(entries.shape[1], device=entries.device) < to_device(counts, entries.device)[:, None]
        family = self.target.family
        for layer, shape in enumerate(self.target.cache_shapes):
            readers = (reader for reader in range(len(family.layers)) if family.keys_layer(reader) == layer)
            weights = [cached_attention(self.target, one, states[one], entries, context) for one in readers]
            received = sum((each * real[:, None, :, None]).sum(2) for each in weights)
            assert isinstance(received, Tensor), "somebody reads every layer's keys"
            received = received[..., : visual.shape[1]]
            yield reduce(received, "batch (heads group) length -> batch heads length", "sum", heads=shape[0].heads)


def _read_again(context: Context, counts: list[int]) -> tuple[dict[int, Tensor], Tensor]:
    """Read the last tokens of each prompt once more.

    Args:
        context: the request, whose prompt has been read.
        counts: tokens per row.

    Returns:
        states: layer to `[batch, count, hidden]`, the states that enter it; shorter rows are right-padded.
        entries: `[batch, count]` the entries of these tokens.
    """
    lengths, width = context.request.lengths, max(counts)
    before: ModelSession = context.branch(
        entries=[list(range(end - count)) for end, count in zip(lengths, counts, strict=True)]
    )
    before.feature_layers = tuple(range(len(context.target.family.layers)))
    rows = context.request.token_ids()
    rows = [[*row[-count:], *[0] * (width - count)] for row, count in zip(rows, counts, strict=True)]
    tokens = to_device(rows, context.cache.lengths.device)
    steps = torch.arange(width, device=tokens.device)
    depth = steps - to_device(counts, tokens.device)[:, None]  # so many before what follows the prompt
    visible = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril().expand(len(rows), -1, -1)
    states = before.read(tokens, visible, depth, logits=False).features
    entries = to_device(lengths, tokens.device)[:, None] + depth
    return states, entries.clamp(min=0).minimum(to_device(lengths, tokens.device)[:, None] - 1)
