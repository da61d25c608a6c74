"""Metrics from hand-made records, identities that hold for every run, and time that is accounted for."""

from __future__ import annotations

import json
import time

import pytest
import torch
from models import inputs_for, llama, llava
from toys import Scripted

import mmspec
from mmspec import Target, loop
from mmspec.compressors import Pool
from mmspec.decoding import clock
from mmspec.decoding.clock import PHASES, PROMPT_PHASES, HostTime, PhaseClock
from mmspec.decoding.draining import drain
from mmspec.decoding.stats import Round, Stats, speed_in_words, tokens_by_origin
from mmspec.drafters import EagleDrafter, NGramDrafter, OwnEncoderDrafter, TextOnlyDrafter
from mmspec.trees import Chain, DynamicTree


def test_metrics_of_hand_made_records():
    """Two rows; row 1 ends in the second round, whose last token was accepted (no bonus: cut)."""
    record = Stats(
        rounds=[
            Round(drafted=[3, 5], accepted=[2, 0], emitted=[3, 1], depth=3),
            Round(drafted=[3, 5], accepted=[0, 2], emitted=[1, 2], depth=3),
            Round(drafted=[3, 0], accepted=[3, 0], emitted=[4, 0], depth=3),
        ],
        prompt_tokens=[10, 7],
        new_tokens=[9, 4],
        seconds={"vision": 1.0, "prefill": 2.0, "draft": 3.0, "score": 4.0, "other": 1.0},
    )
    assert record.num_spec_steps == 5
    assert record.num_draft_tokens == 19 and record.num_accepted_draft_tokens == 7
    assert record.mean_acceptance_length == pytest.approx(11 / 5)
    assert record.mean_accepted_draft_tokens == pytest.approx(7 / 5)
    assert record.draft_acceptance_rate == pytest.approx(7 / 19)
    assert record.acceptance_rate_per_position == pytest.approx([3 / 5, 3 / 5, 1 / 5])
    assert record.acceptance_histogram == {0: 2, 2: 2, 3: 1}
    assert record.total_seconds == 11.0 and record.decode_seconds == 8.0
    assert record.tokens_per_second == pytest.approx(11 / 8)
    assert record.tokens_per_second_end_to_end == pytest.approx(13 / 11)
    summary = json.loads(json.dumps(record.summary()))
    assert summary["rounds"] == 3 and summary["prompt_tokens"] == [10, 7] and summary["lossless"] is True
    assert summary["acceptance_histogram"] == {"0": 2, "2": 2, "3": 1}
    for name in ("mean_acceptance_length", "draft_acceptance_rate", "num_spec_steps", "tokens_per_second"):
        assert summary[name] == getattr(record, name)


def test_records_of_nothing_divide_nothing_by_zero():
    assert json.dumps(Stats().summary())
    assert Stats().acceptance_rate_per_position == [] and Stats().tokens_per_second == 0.0
    assert Stats().mean_acceptance_length == 1.0, "its least value, as without drafts"


def test_known_drafts_give_known_figures():
    target = Target(llama())
    inputs = inputs_for("llama", [0])
    text = mmspec.generate(target, inputs=inputs, max_new_tokens=13).token_ids
    drafter = Scripted(target, text, right=2, length=5, siblings=1)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=13)  # the first token, then 4 rounds of 3
    assert [(r.drafted, r.accepted, r.emitted, r.depth) for r in out.stats.rounds] == [([10], [2], [3], 5)] * 4
    assert out.stats.mean_acceptance_length == 3.0
    assert out.stats.acceptance_rate_per_position == [1.0, 1.0, 0.0, 0.0, 0.0]
    cut = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=12)  # the last bonus does not fit
    assert cut.stats.rounds[-1].accepted == [2] and cut.stats.rounds[-1].emitted == [2]
    assert cut.stats.mean_acceptance_length == pytest.approx(11 / 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_drafter_every_pass_emits_one_token(temperature):
    target = Target(llama())
    inputs = inputs_for("llama", [0, 0], [9, 4])
    out = mmspec.generate(target, inputs=inputs, max_new_tokens=8, temperature=temperature)
    assert out.stats.mean_acceptance_length == 1.0 and out.stats.mean_accepted_draft_tokens == 0.0
    assert out.stats.num_draft_tokens == 0 and out.stats.draft_acceptance_rate == 0.0
    assert out.stats.num_spec_steps == 14 and len(out.stats.rounds) == 7
    assert out.stats.prompt_tokens == [9, 4] and out.stats.acceptance_histogram == {0: 14}
    assert not any(map(any, out.drafted))


RUNS = {
    "ngram": lambda target: NGramDrafter(target, length=4),
    "chain": lambda target: TextOnlyDrafter(target, target.model, tree=Chain(3)),
    "dynamic": lambda target: TextOnlyDrafter(target, llama(seed=1), tree=DynamicTree(3, 3, 10)),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", RUNS)
def test_identities(name, temperature):
    target = Target(llama())
    options = {"inputs": inputs_for("llama", [0, 0, 0], [9, 4, 12]), "max_new_tokens": 15, "temperature": temperature}
    plain = mmspec.generate(target, **options)
    out = mmspec.generate(target, RUNS[name](target), eos_token_id=[plain.token_ids[1][6]], **options)
    record = out.stats
    steps = [(d, a, e) for r in record.rounds for d, a, e in zip(r.drafted, r.accepted, r.emitted, strict=True) if e]
    truncated = sum(e == a for _, a, e in steps)
    assert sum(e for *_, e in steps) == record.num_accepted_draft_tokens + len(steps) - truncated
    assert 0 <= truncated <= 3, "only the last round of a row can lack its bonus"
    assert record.num_spec_steps == len(steps)
    assert sum(record.new_tokens) == 3 + sum(e for *_, e in steps)
    assert record.new_tokens == list(map(len, out.token_ids)) == list(map(len, out.drafted))
    assert sum(map(sum, out.drafted)) == record.num_accepted_draft_tokens
    rates = record.acceptance_rate_per_position
    assert rates == sorted(rates, reverse=True) and all(0 <= rate <= 1 for rate in rates)
    assert sum(rates) == pytest.approx(record.mean_accepted_draft_tokens)
    histogram = record.acceptance_histogram
    assert sum(histogram.values()) == len(steps)
    assert sum(k * n for k, n in histogram.items()) == record.num_accepted_draft_tokens
    assert all(a <= d for d, a, _ in steps)
    if name == "chain" and not temperature:  # the target drafts for itself: all accepted until the end
        assert all(a == 3 or e == a for _, a, e in steps)
    json.dumps(record.summary())


# Time.


class Ticks:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_phase_clock_has_no_gaps(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(clock.time, "perf_counter", ticks)
    watch = PhaseClock()
    for phase, seconds in (("vision", 2.0), ("draft", 0.5), ("score", 1.0), ("draft", 0.25)):
        ticks.now += seconds
        before = watch.seconds[phase]
        watch.lap(phase)
        assert watch.seconds[phase] - before == seconds
    ticks.now += 50.0  # a consumer of the stream takes its time
    watch.resume()
    of_round = watch.begin_round()
    ticks.now += 4.0
    watch.lap("other")
    want = {**dict.fromkeys(PHASES, 0.0), "vision": 2.0, "draft": 0.75, "score": 1.0, "other": 4.0}
    assert watch.seconds == want and watch.total == sum(want.values()) == 7.75
    assert of_round == {**dict.fromkeys(PHASES, 0.0), "other": 4.0}


class Queue:
    """A device that works behind the host: what it is asked takes it a second a mark, and nobody sees that a mark has
    passed before the host has waited for something behind it."""

    def __init__(self):
        self.now = self.done = self.waits = 0

    def catch_up(self) -> None:
        self.waits += 1
        self.done = self.now

    def mark(self) -> int:
        self.now += 1
        return self.now

    def passed(self, mark: int) -> bool:
        return mark <= self.done

    def wait(self, mark: int) -> None:
        self.catch_up()

    between = HostTime.between


@pytest.mark.parametrize("tree", [Chain(3), DynamicTree(3, 3, 10)])
def test_the_device_is_waited_for_once_a_round_and_its_time_is_booked_later(monkeypatch, tree):
    """The host waits where it reads the verdict, and nowhere else: passes can be queued one behind the other."""
    target, queue, seen = Target(llama()), Queue(), []
    monkeypatch.setattr(loop, "time_of", lambda device: queue)
    drafter = EagleDrafter(target, tree=tree)
    stream = mmspec.stream(target, drafter, inputs=inputs_for("llama", [0, 0], [9, 4]), max_new_tokens=12)
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: queue.catch_up() or tolist(tensor))
    plain = loop.Run.round

    def counted(run):
        before = queue.waits
        pieces = plain(run)
        seen.append((queue.waits - before, dict(run.transcript.stats.rounds[-1].seconds)))
        return pieces

    monkeypatch.setattr(loop.Run, "round", counted)
    record = drain(stream).stats
    assert len(seen) > 2 and [waits for waits, _ in seen] == [1] * len(seen)
    # What lies behind the verdict is not over when a round's pieces are handed out, and is booked later.
    laps = {"draft": 1, "score": 1, "verify": 2, "commit": 1, "observe": 1, "other": 1}
    for (_, then), of_round in zip(seen, record.rounds, strict=True):
        assert of_round.seconds == {**dict.fromkeys(PHASES, 0.0), **laps}
        assert then == {**dict.fromkeys(PHASES, 0.0), "draft": 1, "score": 1, "verify": 2}
    assert record.seconds == {
        **{name: n * len(seen) for name, n in laps.items()},
        **{"vision": 1, "prefill": 2, "draft_prefill": 2},  # what the drafter does before the target's pass is apart
        "prune": 0,
        "other": len(seen) + 1,
    }


def test_time_is_accounted_for():
    """The phases add up to the total, and the total is the time that a caller measures (best of three: others use this
    machine too)."""
    target = Target(llava())
    drafter = OwnEncoderDrafter(target, llava(seed=1), tree=Chain(3)).with_compressor(Pool(2))
    inputs = inputs_for("llava", [1, 2])
    missing = []
    for _ in range(3):
        start = time.perf_counter()
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=16)
        wall = time.perf_counter() - start
        record = out.stats
        assert record.total_seconds <= wall
        missing.append(wall - record.total_seconds - 0.02 * wall)
        assert set(record.seconds) == set(PHASES) and all(seconds > 0 for seconds in record.seconds.values())
        assert record.total_seconds == pytest.approx(sum(record.seconds.values()))
        decoding = sum(sum(r.seconds.values()) for r in record.rounds)
        prompt = sum(record.seconds[phase] for phase in PROMPT_PHASES)
        assert decoding <= record.decode_seconds + 1e-9, "a round counts time of the prompt"
        assert record.total_seconds - decoding - prompt < 0.05 * wall + 0.005, "the rounds miss time"
        assert all(r.seconds[phase] == 0.0 for r in record.rounds for phase in PROMPT_PHASES)
    assert min(missing) < 0.005


def test_pruning_is_told_from_reading():
    """The choice of what a drafter sees, and what it then reads, are phases of their own; caches are counted apart."""
    target = Target(llava())

    class Slow(Pool):
        def forward(self, span):
            time.sleep(0.05)
            return super().forward(span)

    whole = OwnEncoderDrafter(target, llava(seed=1), tree=Chain(3))
    held = {}
    for name, drafter in {"plain": None, "whole": whole, "pruned": whole.with_compressor(Slow(2))}.items():
        record = mmspec.generate(target, drafter, inputs=inputs_for("llava", [1, 2]), max_new_tokens=9).stats
        seconds, held[name] = record.seconds, record.cache_bytes
        assert (seconds["prune"] > 0) == (name == "pruned")
    assert seconds["prune"] > 0.15 > max(seconds["prefill"], seconds["draft_prefill"])  # three pictures
    assert held["plain"]["drafter"] == 0 < held["plain"]["target"]
    assert 0 < held["pruned"]["drafter"] < held["whole"]["drafter"], held


def test_time_of_the_consumer_is_not_counted():
    target = Target(llama())
    stream = mmspec.stream(target, inputs=inputs_for("llama", [0, 0]), max_new_tokens=4)
    waits = []

    def wait(_) -> None:
        before = time.perf_counter()
        time.sleep(0.05)
        waits.append(time.perf_counter() - before)

    start = time.perf_counter()
    record = drain(stream, wait).stats
    assert sum(waits) > 0.3
    assert record.total_seconds <= time.perf_counter() - start - sum(waits) + 1e-3


def test_first_token_alone_has_no_rounds():
    """The metrics are then those of decoding without drafts."""
    target = Target(llama())
    inputs = {"input_ids": torch.tensor([[1, 2]])}
    out = mmspec.generate(target, NGramDrafter(target), inputs=inputs, max_new_tokens=1)
    assert out.stats.rounds == [] and out.stats.new_tokens == [1] and out.stats.num_spec_steps == 0
    plain = mmspec.generate(target, inputs=inputs, max_new_tokens=4)
    ours, theirs = (json.loads(json.dumps(o.stats.summary(), allow_nan=False)) for o in (out, plain))
    for name in ("mean_acceptance_length", "mean_accepted_draft_tokens", "draft_acceptance_rate"):
        assert ours[name] == theirs[name]
    assert ours["mean_acceptance_length"] == 1.0 and ours["tokens_per_second"] == 0.0
    assert ours["acceptance_rate_per_position"] == [] and ours["acceptance_histogram"] == {}


def test_printed_numbers_add_up_and_multiply():
    assert tokens_by_origin(127, 22) == "127 tokens = 1 from the prompt + 5.73 tokens per pass x 22 passes"
    assert tokens_by_origin(2, 1) == "2 tokens = 1 from the prompt + 1.00 tokens per pass x 1 pass"
    assert tokens_by_origin(1, 0) == "1 token = 1 from the prompt"
    # Two rows: the first wrote 1 + 3 + 1 tokens, the second 1 + 2.
    record = Stats([Round([4, 4], [2, 1], [3, 2], 4), Round([4, 0], [0, 0], [1, 0], 4)], [9, 5], [5, 3])
    assert record.origin == "8 tokens = 2 from the prompt + 2.00 tokens per pass x 3 passes"
    assert record.mean_acceptance_length == 2.0


def test_a_speed_that_cannot_be_measured_is_not_called_zero():
    assert speed_in_words(48.25) == "48.2 tokens/s, decoding"
    assert "0.0" not in speed_in_words(Stats().tokens_per_second) and "n/a" in speed_in_words(0.0)
