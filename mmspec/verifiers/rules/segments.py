"""Segments: a rule that accepts or refuses groups of tokens as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ...errors import MMSpecError
from ...settings.arguments import whole_number
from .base import Judged, reached
from .distance import Binned


class Segments(Binned):
    """Accepts a segment of an answer as a whole if its bins are close enough to those that the target chose (HeiSD,
    arXiv 2603.17573).

    An action of a robot is a row of segments: where to move, how to turn, the gripper. A drafted segment is accepted if
    no token of it is more than `each` bins away from the target's choice, and all of them together no more than
    `total`; a public note of the paper gives 15 and 30, and none for the gripper. That "together" is the sum of the
    distances is our reading [OUR]. A segment that the tree does not draft to its end must match exactly, token by token
    [OUR].

    NOT lossless, except where all tolerances are 0. Needs no training.

    Args:
        lengths: number of tokens of each segment; the answer repeats the segments.
        each: per segment, the largest distance of a token, in bins.
        total: per segment, the largest sum of distances.
        bins: the first and the last token id that are bins, see `Distance`.

    Raises:
        MMSpecError: for a value out of range, and for bins that a target's vocabulary does not have.
    """

    def __init__(
        self,
        lengths: Sequence[int] = (3, 3, 1),
        each: Sequence[int] = (15, 15, 0),
        total: Sequence[int] = (30, 30, 0),
        bins: Sequence[int] | None = None,
    ):
        super().__init__(bins)
        if not len(lengths) == len(each) == len(total) > 0:
            raise MMSpecError(
                f"Segments: lengths={list(lengths)}, each={list(each)} and total={list(total)} must have an entry for "
                "every segment"
            )
        self.lengths = [whole_number(self, lowest=1, lengths=length) for length in lengths]
        self.each = [whole_number(self, lowest=0, each=bound) for bound in each]
        self.total = [whole_number(self, lowest=0, total=bound) for bound in total]

    @property
    def lossless(self) -> bool:
        """True where all tolerances are 0."""
        return all(min(bounds) == 0 for bounds in zip(self.each, self.total, strict=True))

    def allow(self, at: Judged) -> Tensor:
        """Allow paths on which every whole segment is close enough and every unfinished one is exact."""
        distance = self.distances(at)
        exact = distance == 0
        if self.lossless:
            return reached(at.tree, exact)
        segment, instance, last = self._places(at)
        each, total = (torch.tensor(bounds, device=segment.device)[segment] for bounds in (self.each, self.total))
        fellows = at.tree.ancestors & (instance[:, :, None] == instance[:, None])
        fellows &= (at.tree.depth > 0)[:, None]
        too_far = distance > each
        together = (fellows * distance[:, None]).sum(-1)
        close = ~(fellows & too_far[:, None]).any(-1) & (together <= total)
        # A whole segment on the path to a node is judged at its end, an unfinished one token by token.
        ends = at.tree.ancestors & last[:, None]
        whole = ~(ends & ~close[:, None]).any(-1)
        unfinished = fellows & ~last[..., None]
        open_exact = ~(unfinished & ~exact[:, None]).any(-1)
        return whole & open_exact & reached(at.tree, torch.ones_like(exact))  # no padding

    def _places(self, at: Judged) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each node, `[batch, nodes]`, the number of its segment, the serial number of that occurrence, and
        whether the segment ends there."""
        ends = list(accumulate(self.lengths))
        number = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor(self.lengths)).to(at.tokens.device)
        place = at.position % ends[-1]
        segment = number[place]
        last = (place + 1 == torch.tensor(ends, device=place.device)[segment]) & (at.tree.depth > 0)
        return segment, (at.position // ends[-1]) * len(ends) + segment, last
