"""Which cases of a product are run by default; the others are slow ones.

    @pytest.mark.parametrize(("name", "tree", "rows"), covering(NAMES, TREES, ROWS))

A fault in what two parameters do together shows with any value of the third, so a set in which every pair of values
occurs finds it with far fewer cases.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def covering(
    *axes: Iterable[Any],
    strength: int = 2,
    fits: Callable[..., bool] = lambda *case: True,
    always: Callable[..., bool] = lambda *case: False,
) -> list:
    """Return all cases of a product as parameters of a test, of which those outside a covering set are slow.

    Args:
        axes: values of each parameter.
        strength: how many parameters' values occur in every combination; with 1 each value occurs with some others,
            with 0 nothing is chosen but what is `always` run.
        fits: whether a case exists.
        always: whether a case is run by default whatever it covers.
    """
    axes = tuple(map(list, axes))
    cases = {}  # by the places of their values, which need not be hashable
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        case = [axis[place] for axis, place in zip(axes, places, strict=True)]
        if fits(*case):
            cases[places] = case
    chosen = _covering(list(cases), strength, {places for places, case in cases.items() if always(*case)})
    return [pytest.param(*case, marks=[] if places in chosen else [pytest.mark.slow]) for places, case in cases.items()]


def _covering(cases: list[tuple[int, ...]], strength: int, chosen: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Add cases to the chosen ones until all combinations that occur are covered, the case with most news first; of
    cases with as many, one whose values have had fewest turns."""
    covers = {case: set(itertools.combinations(enumerate(case), strength)) for case in cases}
    missing = set().union(*covers.values()).difference(*(covers[case] for case in chosen))
    turns = collections.Counter()

    def worth(case: tuple[int, ...]) -> tuple[int, int]:
        return len(covers[case] & missing), -sum(turns[value] for value in enumerate(case))

    while missing:
        best = max(cases, key=worth)
        missing -= covers[best]
        chosen = chosen | {best}
        turns.update(enumerate(best))
    return chosen
