"""Weights of losses that change in the course of a training."""

from __future__ import annotations

import pytest
from refusals import refused

from mmspec.training.losses import CrossEntropy, Ramp, weight_at


def test_a_ramp_is_a_straight_line_between_its_ends():
    ramp = Ramp(2.0, 1.0, begin=0.2, end=0.6)
    places = {0.0: 2.0, 0.1: 2.0, 0.2: 2.0, 0.3: 1.75, 0.5: 1.25, 0.6: 1.0, 1.0: 1.0}
    assert {place: ramp.at(place) for place in places} == pytest.approx(places)
    assert [Ramp(1.0, 0.0).at(step / 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_ramp_without_length_is_a_switch():
    for place in (0.0, 0.5, 1.0):
        ramp = Ramp(0.0, 3.0, begin=place, end=place)
        assert [ramp.at(progress) for progress in (place - 0.01, place, place + 0.01)] == [0.0, 3.0, 3.0]


def test_a_number_is_a_weight_that_stays():
    assert [weight_at(0.5, progress) for progress in (0.0, 0.9)] == [0.5, 0.5]
    assert weight_at(CrossEntropy(Ramp(0.0, 1.0)).weight, 0.25) == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end": 2}, "Ramp: begin=0.0 and end=2 are shares of a training: 0 <= begin <= end <= 1"),
        ({"begin": 0.5, "end": 0.2}, "Ramp: begin=0.5 and end=0.2 are shares"),
        ({"begin": "half"}, "Ramp: begin='half' must be a number"),
    ],
)
def test_a_ramp_that_cannot_be_walked_is_refused(arguments, message):
    refused(lambda: Ramp(1.0, 0.0, **arguments), message)
