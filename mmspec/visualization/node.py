"""Node: one token of a tree in a trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Node:
    """One token of a tree in a trace.

    Args:
        token: token id.
        text: decoded token; the token id in digits where there is no tokenizer.
        parent: index of the parent node; -1 for the root.
        depth: number of levels below the root.
        drafter: the drafter's probability of the token after its parent, as it was proposed; where children are drawn,
            this is after temperature and the like. None for the root, and where it is not known.
        target: the target's probability of the token after its parent, at temperature 1; None for the root.
        accepted: True if the token was kept. The root is the token with which the last round ended.
        bonus: True if the target supplied the token.
    """

    token: int
    text: str
    parent: int
    depth: int
    drafter: float | None = None
    target: float | None = None
    accepted: bool = False
    bonus: bool = False
