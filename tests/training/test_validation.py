"""Validation: simulated acceptance against loops over chains, greedily and at a temperature; the real run beside it."""

from __future__ import annotations

import math

import models
import pytest
from refusals import refused
from test_objective import ANSWERS, FEW, scripted, taught
from tiny_training import Rule, eagle3, settings, trainer

import mmspec
from mmspec.training import Objective, losses
from mmspec.training.validation import SimulatedAcceptance
from mmspec.verifiers import RejectionSampling

DEPTH = 3


def chains_of(drafter, lesson, vocabulary, temperature: float) -> tuple[list[float], list[float]]:
    """How many chains get to each place, and how many get through it: a loop over roots."""
    known = list(range(models.VOCAB)) if vocabulary is None else vocabulary.tolist()
    tried, right, first = [0.0] * DEPTH, [0.0] * DEPTH, 0
    for answer in lesson.answers:
        for root in range(len(answer) - 1):
            reached = 1.0
            for step in range(min(DEPTH, len(answer) - 1 - root)):
                place = first + root + 1 + step
                logits = drafter.script[step, place]
                token = int(lesson.tokens[place])
                if temperature == 0:
                    accepted = passed = float(known[int(logits.argmax())] == token)
                else:
                    p = (lesson.logits[place] / temperature).softmax(-1)
                    q = (logits / temperature).softmax(-1)
                    accepted = sum(min(p[k].item(), q[i].item()) for i, k in enumerate(known))
                    passed = min(1.0, (q[known.index(token)] / p[token]).item()) if token in known else 0.0
                tried[step] += reached
                right[step] += reached * accepted
                reached *= passed
        first += len(answer)
    return tried, right


@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_acceptance_is_that_of_chains_from_every_token(vocabulary, temperature):
    lesson = taught()
    drafter = scripted(lesson, DEPTH, vocabulary=vocabulary, error=1.0)
    acceptance = SimulatedAcceptance(DEPTH, temperature)
    acceptance.add(drafter, lesson)
    tried, right = chains_of(drafter, lesson, vocabulary, temperature)
    assert acceptance.tried[""].tolist() == pytest.approx(tried, rel=1e-4)
    assert acceptance.right[""].tolist() == pytest.approx(right, rel=1e-4)
    assert temperature == 0 or 0 < right[-1] < tried[-1] < tried[0] == sum(n - 1 for n in ANSWERS)
    chances = [now / was if was else 0.0 for was, now in zip(tried, right, strict=True)]
    summary = acceptance.summary()
    assert summary["acceptance_by_position"] == pytest.approx(chances, abs=1e-3)
    length = 1 + sum(math.prod(chances[: step + 1]) for step in range(DEPTH))
    assert summary["mean_acceptance_length"] == pytest.approx(length, abs=2e-3)


def test_a_drafter_that_is_the_target_is_always_accepted_when_it_draws():
    """And greedily only where the target wrote what it finds likeliest."""
    lesson = taught()
    drafter = scripted(lesson, DEPTH, error=0.0)
    lengths = []
    for temperature in (1.0, 0.0):
        acceptance = SimulatedAcceptance(DEPTH, temperature)
        acceptance.add(drafter, lesson)
        lengths.append(acceptance.summary()["mean_acceptance_length"])
    assert lengths[0] == 1 + DEPTH > lengths[1], "its answers here are random"


def test_a_training_is_validated_at_its_temperature(tmp_path, monkeypatch):
    asked = []

    def counted(*arguments, **options):
        asked.append((options["temperature"], type(options["verifier"])))
        return mmspec.generate(*arguments, **options)

    monkeypatch.setattr("mmspec.training.validation.generate", counted)
    reports = []
    for temperature in (0.0, 1.0):
        aim = Objective([losses.AcceptedLength()], steps=2)
        changes = {"steps": 1, "validate_every": 1, "measured_prompts": 1, "temperature": temperature}
        reports.append(trainer(tmp_path / str(temperature), eagle3, Rule(), objective=aim, **changes).run())
    assert asked == [(0.0, type(None)), (1.0, RejectionSampling)]
    greedy, drawn = (report["simulated"]["mean_acceptance_length"] for report in reports)
    assert greedy != drawn and all(report["measured"]["mean_acceptance_length"] >= 1 for report in reports)
    refused(lambda: settings(temperature=-1.0), "temperature=-1.0 must not be negative")
