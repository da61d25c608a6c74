"""The waiting line: order, places, and its end."""

from __future__ import annotations

import threading

import pytest

from mmspec.demo.line import WaitingLine
from mmspec.errors import MMSpecError

pytestmark = pytest.mark.product


def test_places_move_up():
    line = WaitingLine(at_once=1, waiting=2)
    first, second, third = (line.place() for _ in range(3))
    a, b, c = first.__enter__(), second.__enter__(), third.__enter__()
    assert [place.before for place in (a, b, c)] == [0, 1, 2] and len(line) == 3
    second.__exit__(None, None, None)  # one who waits may leave
    assert [a.before, c.before] == [0, 1]
    first.__exit__(None, None, None)
    assert c.before == 0 and not c.shared
    third.__exit__(None, None, None)
    assert len(line) == 0


def test_a_full_line_says_so():
    line = WaitingLine(at_once=1, waiting=0)
    with line.place(), pytest.raises(MMSpecError, match="0 questions are waiting already"), line.place():
        pass
    with line.place() as place:
        assert place.before == 0


def test_those_who_are_served_together_know_it():
    line = WaitingLine(at_once=2, waiting=1)
    with line.place() as a:
        assert not a.shared
        with line.place() as b, line.place() as c:
            assert (a.before, b.before, c.before) == (0, 0, 1)
            assert a.shared and b.shared and not c.shared


def test_waiting_ends_when_it_is_ones_turn():
    line = WaitingLine()
    first = line.place()
    first.__enter__()
    with line.place() as place:
        threading.Timer(0.05, first.__exit__, (None, None, None)).start()
        place.wait(60)
        assert place.before == 0
        place.wait(60)  # whose turn it is waits no longer


@pytest.mark.parametrize("values", [{"at_once": 0}, {"waiting": -1}])
def test_nonsense_is_refused(values):
    with pytest.raises(MMSpecError, match="must be"):
        WaitingLine(**values)
