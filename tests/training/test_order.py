"""Which examples a step learns from: all of them equally often, or text first."""

from __future__ import annotations

import pytest
from refusals import refused
from tiny_training import Answered, settings

from mmspec.training.curriculum import LEAST, MOST, Curriculum, Order, order_of

TEXT, PICTURES = list(range(0, 30)), list(range(30, 70))


def curriculum(**changes) -> Curriculum:
    return Curriculum(TEXT, PICTURES, **{"batch_size": 10, "seed": 3, "steps": 100, "text_steps": 20} | changes)


def seeing(order: Curriculum, step: int) -> int:
    return sum(number in PICTURES for number in order.step(step))


def test_every_epoch_has_every_example_once():
    order = Order(TEXT, 10, seed=1)
    epochs = [sorted(order.step(3 * n) + order.step(3 * n + 1) + order.step(3 * n + 2)) for n in range(4)]
    assert epochs == [TEXT] * 4 and order.step(0) != order.step(3)


def test_text_then_both_then_pictures():
    order = curriculum(picture_steps=10)
    shares = [seeing(order, step) for step in range(100)]
    assert shares[:20] == [0] * 20 and shares[90:] == [10] * 10
    assert order.chance(20) == LEAST and order.chance(89) == pytest.approx(MOST)
    thirds = [sum(shares[start : start + 23]) / 230 for start in (20, 43, 66)]
    assert thirds == pytest.approx([0.20, 0.50, 0.80], abs=0.09)


def test_it_follows_from_the_number_of_the_step():
    """A resumed training, or another process, sees the same."""
    steps = [curriculum().step(number) for number in range(100)]
    assert [curriculum().step(number) for number in reversed(range(100))] == steps[::-1]
    assert curriculum(seed=4).step(50) != steps[50]


def test_each_kind_is_seen_equally_often():
    order = curriculum()
    seen = [number for step in range(100) for number in order.step(step)]
    for kind in (TEXT, PICTURES):
        counts = [seen.count(number) for number in kind]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": []}, "text_steps=20: ... none of the examples is without pictures"),
        ({"pictures": []}, "none of the examples is with pictures"),
        ({"picture_steps": 81}, "text_steps=20 and picture_steps=81 are more than steps=100"),
    ],
)
def test_what_cannot_be_a_curriculum(changes, message):
    values = {"text": TEXT, "pictures": PICTURES, "batch_size": 10, "seed": 3, "steps": 100, "text_steps": 20}
    refused(lambda: Curriculum(**(values | changes)), message)


def test_settings_choose_the_order():
    class Mixed(Answered):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return (
                type(example)(example.id, example.prompt, (), answer_ids=example.answer_ids) if index % 2 else example
            )

    numbers = list(range(len(Mixed())))
    assert type(order_of(Mixed(), numbers, settings())) is Order
    order = order_of(Mixed(), numbers, settings(text_steps=2))
    assert all(number % 2 for step in range(2) for number in order.step(step))
    assert order.pools == [numbers[1::2], numbers[::2]]
    refused(lambda: settings(text_steps=-1), "text_steps=-1 must not be negative")
