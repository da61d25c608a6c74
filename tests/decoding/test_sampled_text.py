"""Sampled texts of whole runs against the exact law of a toy model, and wrong rules that the same test finds out."""

from __future__ import annotations

import pytest
from laws import g_test
from models import redraw
from toy_law import ALPHA, exact_law, sample, toy
from toys import PrefixRule
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import mmspec
from mmspec import Target
from mmspec.drafters import MedusaDrafter, NGramDrafter, TextOnlyDrafter
from mmspec.trees import BestFirstTree, Chain, DynamicTree, StaticTree
from mmspec.verifiers import PointMassSampling, RejectionSampling, walk
from mmspec.verifiers.rules import Rejection


@pytest.fixture(scope="module")
def toys():
    target = Target(toy(0))
    heads = redraw(MedusaDrafter(target, heads=2), seed=3).eval()
    return target, TextOnlyDrafter(target, toy(1)), NGramDrafter(target, max_ngram=2, length=3), heads


TWO_LEVELS = StaticTree(["0", "1", "2", "00", "01", "10"])
COMBINATIONS = {
    "plain": (None, None, None),
    "rejection-chain": ("model", Chain(2), RejectionSampling()),
    "rejection-static": ("model", TWO_LEVELS, RejectionSampling()),
    "rejection-ngram": ("ngram", None, RejectionSampling()),
    "point-ngram": ("ngram", None, PointMassSampling()),
    "point-static": ("model", TWO_LEVELS, PointMassSampling()),
    "rejection-marginals": ("heads", Chain(2), RejectionSampling()),
    "point-marginals": ("heads", BestFirstTree(7), PointMassSampling()),
    "point-dynamic": ("model", DynamicTree(depth=2, top_k=3, total=8), PointMassSampling()),
}


def _pick(toys, name):
    target, model, ngram, heads = toys
    return target, {None: None, "model": model, "ngram": ngram, "heads": heads}[name]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_sampled_text_follows_the_exact_law(toys, name):
    which, tree, verifier = COMBINATIONS[name]
    target, drafter = _pick(toys, which)
    assert g_test(sample(target, drafter, tree, verifier=verifier, seed=11), exact_law(target.model)) > ALPHA


FILTERS = {
    "temperature": ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
    "top_k": ({"top_k": 2}, [TopKLogitsWarper(2)]),
    "top_p": ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
    "min_p": ({"min_p": 0.3, "temperature": 1.5}, [TemperatureLogitsWarper(1.5), MinPLogitsWarper(0.3)]),
    "penalty": ({"repetition_penalty": 1.8}, [RepetitionPenaltyLogitsProcessor(1.8)]),
    "prefix": ({"logits_processor": [PrefixRule()]}, [PrefixRule()]),
}


# Processors that look at the prefix behind both rules, the others in turns.
BOTH = ("penalty", "prefix")
BEHIND = [
    pytest.param(name, filters, marks=[] if filters in BOTH or (rule + turn) % 2 == 0 else [pytest.mark.slow])
    for rule, name in enumerate(("rejection-static", "point-dynamic"))
    for turn, filters in enumerate(FILTERS)
]


@pytest.mark.parametrize(("name", "filters"), BEHIND)
def test_sampled_text_follows_the_law_behind_processors(toys, name, filters):
    """`g_test` is 0 if a single token lies outside the allowed set."""
    which, tree, verifier = COMBINATIONS[name]
    target, drafter = _pick(toys, which)
    options, processors = FILTERS[filters]
    samples = sample(target, drafter, tree, verifier=verifier, seed=12, **options)
    assert g_test(samples, exact_law(target.model, *processors)) > ALPHA
    assert g_test(samples, exact_law(target.model)) < ALPHA, "the processors change nothing here"


class OneNoiseForAll(PointMassSampling):
    """Wrong: every position of a row uses the same noise."""

    def start(self, seed):
        super().start(seed)
        first = self.noise.peek(1)
        self.noise.peek = lambda count: first.expand(-1, count, -1)
        self.noise.consume = lambda counts: None


@pytest.mark.parametrize("wrong", ["residual", "strike", "noise", "drafter_temperature"])
def test_control_wrong_verifiers_fail_the_same_test(toys, monkeypatch, wrong):
    target, model, *_ = toys
    verifier, tree, options = RejectionSampling(), TWO_LEVELS, {}
    if wrong == "residual":
        monkeypatch.setattr(Rejection, "residual", lambda self, p, q, token: p)
    elif wrong == "strike":
        monkeypatch.setattr(walk, "strike", lambda q, token: q)
    elif wrong == "noise":
        verifier = OneNoiseForAll()
    else:  # q reported without the temperature that it was drawn with
        choose = mmspec.trees.Proposals.choose

        def without_temperature(self, logits, *others):
            return choose(self, logits, *others)._replace(probs=logits.softmax(-1))

        monkeypatch.setattr(mmspec.trees.Proposals, "choose", without_temperature)
        options = {"temperature": 0.5}
    law = exact_law(target.model, *([TemperatureLogitsWarper(0.5)] if options else []))
    assert g_test(sample(target, model, tree, verifier=verifier, seed=11, **options), law) < ALPHA
