"""ReadAhead: what the first layers of a model have already computed of the pass that comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .transfer import to_device

if TYPE_CHECKING:
    from .reading import ReadingSession


class ReadAhead(NamedTuple):
    """The entries that a branch of the first layers (`ModelSession.branch`) has read of a tree, and its states: the
    pass that scores the tree goes on from them.

    Args:
        branch: the branch; what it has read of the round so far stands in its entries, one behind the other.
        entries: `[batch, nodes]` number of each node's entry, -1 for a node that it has not read.
        trunk: True if the first entries of each row are those of its tokens that were emitted unread, if any, and of
            the root. Otherwise it has read none of these tokens but those in `entries`.
        missing: how many nodes of every row it has not read, if that is known without looking at the tensors.
        ordered: True if the nodes that it has read are known to be its entries, in their order.
    """

    branch: ReadingSession
    entries: Tensor
    trunk: bool = True
    missing: int | None = None
    ordered: bool = False

    def behind(self, unread: Sequence[int]) -> ReadAhead:
        """Return the same about a block that has the unread tokens, right-aligned, before the tree.

        Args:
            unread: numbers of unread tokens per row.
        """
        count = max(unread)
        if not count:
            return self
        # What pads a shorter row is seen by nobody: any entry will do.
        rows = [[max(place - count + own, 0) for place in range(count)] for own in unread]
        before = to_device(rows, self.entries.device)
        if not self.trunk:
            before = torch.full_like(before, -1)
        missing = self.missing if self.trunk or self.missing is None else self.missing + count
        return self._replace(entries=torch.cat([before, self.entries], 1), missing=missing, ordered=False)


def missing_block(ahead: ReadAhead, visible: Tensor, written: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Find the nodes that are still to be read by the first layers.

    Args:
        ahead: what was read already.
        visible: `[batch, nodes, nodes]` what each node sees, itself included.
        written: entries that the branch has.

    Returns:
        The nodes `[batch, new]`; which entries each of them sees, `[batch, new, written + new]`; and the entries of all
        nodes, `[batch, nodes]`, once these have been read. Rows that miss fewer read some once more. None if nothing
        is missing.
    """
    held = ahead.entries >= 0
    count = int((~held).sum(1).max()) if ahead.missing is None else ahead.missing  # the host waits for it
    if not count:
        return None
    nodes = held.long().argsort(dim=1, stable=True)[:, :count]
    own = torch.arange(written, written + count, device=nodes.device).expand_as(nodes)
    before = ahead.entries.gather(1, nodes)
    entries = ahead.entries.scatter(1, nodes, torch.where(before < 0, own, before))
    sees = visible.gather(1, nodes[..., None].expand(-1, -1, visible.shape[2])).to(torch.int8)
    there = torch.zeros(*nodes.shape, written + count, dtype=torch.int8, device=nodes.device)
    there.scatter_add_(2, entries[:, None].expand_as(sees), sees)
    return nodes, there > 0, entries
