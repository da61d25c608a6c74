"""The first answers of another engine are held against the target before they become a data set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny_training
from fake_server import serving
from refusals import refused
from tiny_training import lines

import mmspec
from mmspec.commands.distill import summary_line
from mmspec.decoding.sampling import Sampling
from mmspec.evaluation.engines import Answer, Engine
from mmspec.exactness import departures
from mmspec.inputs import prepare
from mmspec.training.distill import distill

NEW = 6


@dataclass(eq=False)
class Writing(Engine):
    """Another engine: it writes what a model writes, but for one token of one answer."""

    model: mmspec.Target | None = None
    wrong: tuple[int, int] | None = None

    def answer(self, request, seed):
        ids = mmspec.generate(self.model or self.target, inputs=request, max_new_tokens=NEW, seed=seed).token_ids
        if self.wrong is not None:
            row, place = self.wrong
            ids[row][place] = (ids[row][place] + 1) % 400
        return Answer(ids, ["length"] * len(ids), 0.0, {}, [1] * len(ids), 0)


def writing(**settings) -> Writing:
    return Writing(tiny_training.target(), None, None, None, Sampling(), NEW, **settings)


def distilled(folder, engine, **options):
    given = {"batch_size": 2, "max_new_tokens": NEW, "engine": engine} | options
    return distill(tiny_training.target(), tiny_training.SOURCE, folder, **given)


def test_its_own_text_passes_and_is_counted(tmp_path):
    result = distilled(tmp_path / "it", writing(), compared=3)
    assert (result.compared, result.near_ties) == (3, 0)
    assert "3 answers held against the target: its own, 0 near-ties" in summary_line(result, "it")
    assert distilled(tmp_path / "other", writing()).compared == min(8, len(tiny_training.SOURCE))


def test_one_wrong_token_is_found_wherever_it_stands(tmp_path):
    for place in (0, NEW - 1):
        engine, folder = writing(wrong=(1, place)), tmp_path / str(place)
        refused(
            lambda engine=engine, folder=folder: distilled(folder, engine),
            f"at new token {place} it wrote",
        )
        assert not lines(folder), "no answer of the batch was written"
        assert distilled(folder, engine, compared=0).answers == len(tiny_training.SOURCE), "and it goes on from there"


def test_only_the_first_and_only_greedy_ones_are_compared(tmp_path):
    assert distilled(tmp_path / "first", writing(wrong=(1, 2)), compared=1).compared == 1
    drawn = distilled(tmp_path / "drawn", writing(wrong=(1, 2)), temperature=1.0)
    assert (drawn.compared, summary_line(drawn, "it").count("held")) == (0, 0)
    assert distilled(tmp_path / "ours", None).compared == 0


def test_a_near_tie_is_counted(tmp_path, monkeypatch):
    whole = departures
    monkeypatch.setattr("mmspec.training.own_text.departures", lambda *given: whole(*given, tie=float("inf")))
    result = distilled(tmp_path / "it", writing(wrong=(0, NEW - 1)), compared=1)
    assert (result.compared, result.near_ties) == (1, 1)
    assert "1 near-tie |" in summary_line(result, "it")


def test_a_server_of_another_model_that_was_not_probed_is_found_out(tmp_path):
    from mmspec.serving.server_engine import ServerEngine

    other = mmspec.Target(*tiny_training.small_model(seed=1))
    with serving(other) as how:
        engine = ServerEngine(tiny_training.target(), None, None, None, Sampling(), NEW, url=how.url, probe=False)
        refused(lambda: distilled(tmp_path / "it", engine), "ServerEngine does not write what this target does")
    assert not lines(tmp_path / "it")


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_departures_are_where_another_text_was_written(name):
    """By hand: after each prefix of the text, what plain decoding would write next."""
    from tiny_requests import one_picture, target_of

    target = target_of(name, "sdpa")
    request = prepare(target, inputs=one_picture(name))
    (own,) = mmspec.generate(target, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
    assert not list(departures(target, request, own))
    changed = [*own[:2], (own[2] + 1) % 50, *own[3:]]
    found = {one["position"]: one for one in departures(target, request, changed)}
    for place in range(NEW):
        longer = prepare(target, inputs=one_picture(name))
        forced = mmspec.inputs.append(longer, [changed[:place]])
        (then,) = mmspec.generate(target, inputs=forced, max_new_tokens=1, eos_token_id=[]).token_ids
        assert (place in found) == (then[0] != changed[place])
        if place in found:
            assert (found[place]["token"], found[place]["plain"]) == (changed[place], then[0])
            assert found[place]["margin"] > 0 and not found[place]["tie"]
    assert 2 in found
