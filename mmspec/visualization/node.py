"""Node: one token of a tree that was kept to be looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Node:
    """One token of a tree.

    Args:
        token: its id.
        text: what it says; its number without a tokenizer.
        parent: the number of the node before it; -1 for the root.
        depth: levels below the root.
        drafter: the drafter's probability of it after its parent, as it was proposed: where children are drawn, that is
            after temperature and the like. None for the root, and where nobody knows.
        target: the target's own probability of it after its parent, at temperature 1; None for the root.
        accepted: whether it was kept. The root is what the last round ended with.
        bonus: whether the target supplied it.
    """

    token: int
    text: str
    parent: int
    depth: int
    drafter: float | None = None
    target: float | None = None
    accepted: bool = False
    bonus: bool = False
