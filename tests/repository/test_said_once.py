"""Small things that several rooms need: what differs between settings, seeds from words, the end of a generator."""

from __future__ import annotations

import pytest
import torch

from mmspec.decoding.draining import drain
from mmspec.files.identity import content_hash, differences
from mmspec.files.storage import json_lines, replace_folder, restore_folder
from mmspec.models.slots import pick, pick_numbers
from mmspec.seeds import random_stream, seed_from


def test_differences_name_every_value_by_its_path():
    then = {"seed": 1, "target": {"dtype": "float32", "weights": "a"}, "gone": 2, "same": [1]}
    now = {"seed": 1, "target": {"dtype": "bfloat16", "weights": "a"}, "new": {"x": 1}, "same": [1]}
    assert differences(then, now) == [
        "target.dtype was 'float32', now 'bfloat16'",
        "gone was 2, now None",
        "new was None, now {'x': 1}",
    ]
    assert differences(then, then) == []
    (long,) = differences({"a": "x" * 100_000}, {"a": 1})
    assert len(long) < 500


def test_seeds_and_hashes_depend_on_all_words_and_on_nothing_else():
    assert seed_from("0 noise of row 1") == 6472237144992109312
    assert content_hash(b"mmspec") == "90223ee60d42f81b"
    assert len({seed_from(f"{seed} {purpose}") for seed in range(20) for purpose in "ab"}) == 40
    cpu = torch.device("cpu")
    assert random_stream(cpu, 0, "a").initial_seed() == seed_from("0 a")


def test_a_generator_is_drained_for_what_it_returns():
    def numbers():
        yield from (1, 2, 3)
        return "end"

    seen = []
    assert drain(numbers(), seen.append) == "end" and seen == [1, 2, 3]
    begun = numbers()
    next(begun)
    assert drain(begun) == "end" and drain(begun) is None  # a second time there is nothing left

    def stops(_):
        raise StopIteration("the callback's own")

    with pytest.raises(StopIteration, match="the callback's own"):
        drain(numbers(), stops)


def test_lines_of_json_hold_one_record_each():
    assert json_lines([{"a": 1}, {"b": "x\ny"}]) == b'{"a":1}\n{"b":"x\\ny"}\n'


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "best"

    def writing(text, error=None):
        def write(path):
            path.mkdir()
            (path / "a").write_text(text)
            if error is not None:
                raise error

        return write

    replace_folder(folder, writing("1"))
    replace_folder(folder, writing("2"))
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            replace_folder(folder, writing("half", error))
    assert (folder / "a").read_text() == "2" and [path.name for path in tmp_path.iterdir()] == ["best"]
    folder.rename(tmp_path / "best.old")  # killed between the two renames
    restore_folder(folder)
    assert (folder / "a").read_text() == "2"


def test_slots_are_picked_of_every_row():
    states = torch.arange(24).view(2, 4, 3)
    slots = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(pick(states, slots), torch.stack([states[0, [3, 0]], states[1, [1, 1]]]))
    numbers = torch.arange(24).view(3, 2, 4)  # axes before the batch
    wanted = torch.stack([numbers[:, 0, [3, 0]], numbers[:, 1, [1, 1]]], dim=1)
    assert torch.equal(pick_numbers(numbers, slots), wanted) and torch.equal(pick_numbers(numbers[0], slots), wanted[0])
