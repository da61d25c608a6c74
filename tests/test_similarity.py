"""The edit distance, held against the table of all prefixes that defines it."""

from __future__ import annotations

import random

import pytest

from mmspec.similarity import edit_distance, similarity


def by_table(first, second) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("AB\nC", "AB C", 1), ("abc", "abc", 0)],
)
def test_known_distances(first, second, distance):
    assert edit_distance(first, second) == distance == edit_distance(second, first)


def test_random_sequences_have_the_distance_of_the_table():
    rng = random.Random(0)
    for size in [3] * 400 + [12] * 200 + [90] * 5:  # short ones of few tokens, and longer than a machine's word
        first, second = ([rng.randrange(3) for _ in range(rng.randrange(size))] for _ in range(2))
        assert edit_distance(first, second) == by_table(first, second)


def test_similarity_is_the_share_that_stays():
    assert similarity([], []) == similarity([1, 2], [1, 2]) == 1.0
    assert similarity([1, 2, 3, 4], [1, 9, 3, 4]) == similarity("abcd", "abc") == 0.75
    assert similarity("ab", "cd") == similarity("", "abc") == 0.0
