"""What is remembered over requests is found wherever it is held, and put back where a question is asked again."""

from __future__ import annotations

from collections import defaultdict

from running import measure, questions, side, tiny
from torch import nn

from mmspec.drafters import Drafter, SuffixDrafter
from mmspec.evaluation.methods import PLAIN
from mmspec.memory import Memories, Memory, unchanged
from mmspec.per_request import PerRequest


class Notes(Memory):
    def __init__(self):
        self.lines = []

    def state(self):
        return list(self.lines)

    def restore(self, state):
        self.lines = list(state)


class Member(Drafter):
    """A drafter in a list of modules, beside which a list holds notes."""

    def __init__(self, notes):
        super().__init__(tiny())
        self.deep = {"a": [(notes, 1)]}


class Holder(PerRequest):
    def __init__(self, first, second):
        self.members, self.owner, self.twice = nn.ModuleList([Member(first)]), self, [second, second]


def test_memories_are_found_at_any_depth_and_put_back_as_often_as_one_likes():
    first, second, other = Notes(), Notes(), Notes()
    first.lines.append("before")
    holder = Holder(first, second)
    memories = Memories(holder, None, [other])
    for _ in range(2):
        for notes in (first, second, other):
            notes.lines.append("new")
        memories.restore()
        assert (first.lines, second.lines, other.lines) == (["before"], [], [])
    try:
        with unchanged(holder):
            second.lines.append("new")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert second.lines == []


def test_a_measured_repeat_finds_no_answer_of_the_one_before(tmp_path):
    """But those of the questions before it, as in service; and a warm-up teaches nothing."""
    target = tiny()
    drafter = SuffixDrafter(target)
    chosen = [side(PLAIN, target), side("suffix", target, drafter)]
    bundle = measure(tmp_path / "b", questions(100, 101), target, chosen, repeats=3, warmup=1)
    accepted = defaultdict(list)
    for entry in bundle.rounds:
        if entry["side"] == "suffix":
            accepted[entry["request"], entry["repeat"]].append(entry["accepted"])
    for request in range(2):
        assert accepted[request, 0] == accepted[request, 1] == accepted[request, 2]
    assert not any(map(any, accepted[0, 0])), "the first question meets an empty store"
    assert any(map(any, accepted[1, 0])), "and the second one the answer to the first"
