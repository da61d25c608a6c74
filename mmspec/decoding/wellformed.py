"""Checks that a drafter's proposal is a tree that the target can score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..tree import DraftTree, ancestor_mask

SLACK = 1e-2
"""Largest excess of a distribution's sum over one that rounding may cause, in half precision too."""


def refuse_malformed(tree: DraftTree, root: Tensor, active: list[bool], vocabulary: int, own: str) -> None:
    """Refuse a tree that would crash a pass or change the text.

    All checks that read the tensors run on the device and are read in one transfer.

    Args:
        tree: the drafted tree.
        root: `[batch]` newest tokens.
        active: per row, False once it has finished: its root does not matter.
        vocabulary: size of the target's vocabulary.
        own: name of the drafter in a message.

    Raises:
        MMSpecError: naming the first row and node that break a rule in `DraftTree`.
    """
    if not isinstance(tree, DraftTree):
        raise MMSpecError(f"{own}.draft returned a {type(tree).__name__}; it must return a DraftTree")
    _refuse_shapes(tree, root, own)
    number = torch.arange(tree.num_nodes, device=root.device)
    is_root, valid = number == 0, torch.ones_like(tree.tokens, dtype=torch.bool) if tree.valid is None else tree.valid
    inside = tree.parents.clamp(min=-1, max=tree.num_nodes - 1)
    going = torch.tensor(active, device=root.device)[:, None]
    ancestors = tree.known("ancestors", lambda: ancestor_mask(inside, tree.max_depth))  # which the pass needs too
    last = vocabulary - 1
    rules = {
        "must be the root (parent -1), its parent is {parent}": is_root & (tree.parents != -1),
        "has parent {parent}, which does not stand before it": ~is_root & ((tree.parents < 0) | (inside >= number)),
        f"is token {{token}}, but tokens go from 0 to {last}": (tree.tokens < 0) | (tree.tokens > last),
        "is token {token}, but the newest token, its root, is {root}": going & is_root & (tree.tokens != root[:, None]),
        f"lies deeper than max_depth {tree.max_depth}": ~ancestors[..., 0],
        "is valid, but its parent is not": valid & ~valid.gather(1, inside.clamp(min=0)),
        "is valid, but a node before it is padding": valid & ~valid.roll(1, 1) & ~is_root,
        "is no valid root": ~valid & is_root,
        "is not below the node before it, though is_chain says so": valid & (inside != number - 1) & tree.is_chain,
    }
    if tree.draft_probs is not None and tree.expansion is not None:
        total, low = tree.draft_probs.sum(-1), tree.draft_probs.amin(-1)  # both are NaN where one entry is
        rules["was expanded to draft_probs that are no distribution"] = _at_nodes(
            tree.expansion, ~((low >= 0) & (total <= 1 + SLACK))
        )
    wrong = torch.stack(list(rules.values()))
    if not wrong.any():
        return
    kind, row, node = wrong.nonzero()[0].tolist()
    token, parent = int(tree.tokens[row, node]), int(tree.parents[row, node])
    what = list(rules)[kind].format(token=token, parent=parent, root=int(root[row]))
    raise MMSpecError(f"{own} drafted an invalid tree: in row {row} node {node} {what}")


def _refuse_shapes(tree: DraftTree, root: Tensor, own: str) -> None:
    """Refuse wrong shapes and types, which show without reading the tensors."""
    batch, shape = len(root), tuple(tree.tokens.shape)
    if len(shape) != 2 or shape[0] != batch or not shape[1]:
        raise MMSpecError(
            f"{own} drafted tokens of shape {shape}, but the batch has {batch} rows: they must be [{batch}, nodes]"
        )
    rows = {"parents": tree.parents, "valid": tree.valid, "expansion": tree.expansion}
    for name, part in rows.items():
        if part is not None and tuple(part.shape) != shape:
            raise MMSpecError(f"{own} drafted {name} of shape {tuple(part.shape)}, but tokens of shape {shape}")
    for name, part in {"tokens": tree.tokens, **rows}.items():
        wanted = torch.bool if name == "valid" else torch.long
        if part is not None and (part.dtype != wanted or part.device != root.device):
            raise MMSpecError(
                f"{own} drafted {name} of {part.dtype} on {part.device}; they must be {wanted} on {root.device}"
            )
    if tree.draft_probs is not None and (tree.draft_probs.ndim != 3 or tree.expansion is None):
        raise MMSpecError(f"{own} drafted draft_probs, which must be [batch, expansions, vocab] and need expansion")


def _at_nodes(expansion: Tensor, wrong: Tensor) -> Tensor:
    """Return True at nodes, `[batch, nodes]`, whose expansion is wrong, `[batch, expansions]`, or out of range."""
    last = wrong.shape[1] - 1
    return (expansion > last) | ((expansion >= 0) & wrong.gather(1, expansion.clamp(min=0, max=last)))
