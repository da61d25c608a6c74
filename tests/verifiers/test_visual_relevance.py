"""VisualRelevance: strict about what is seen, lenient about all else, and exact where there is nothing to see."""

from __future__ import annotations

import pytest
import torch
from full_recompute import recompute
from models import one_row
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_requests import RAGGED, case, interleaved, target_of

import mmspec
from mmspec.drafters import NGramDrafter
from mmspec.inputs import prepare
from mmspec.models.states import LAST
from mmspec.settings import configuration
from mmspec.tree import DraftTree
from mmspec.trees import Chain, StaticTree
from mmspec.verifiers import Gated, TreeWalk
from mmspec.verifiers.gates import Every
from mmspec.verifiers.rules import VisualRelevance
from mmspec.verifiers.rules.base import Judged

NEW = 16
SEES = [bool(count) for count in RAGGED[0]]


def written(rule: VisualRelevance, tree=None, drafter=None):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = drafter or blurred_drafter("llava", "sdpa")
    options = {"inputs": inputs, "max_new_tokens": NEW, "tree": tree or Chain(4)}
    return mmspec.generate(drafter.target, drafter, verifier=TreeWalk(rule), **options), expected


@pytest.mark.parametrize("tree", [Chain(4), StaticTree([[0], [1], [0, 0], [1, 0]])], ids=["chain", "static"])
def test_with_nothing_loosened_it_is_exact(tree):
    out, expected = written(VisualRelevance(loosened=0, shift=0), tree)
    assert out.token_ids == expected and out.stats.lossless
    assert VisualRelevance(loosened=0, shift=0).feature_layers(target_of("llava", "sdpa")) == ()


def test_all_loosened_lets_everything_pass_where_there_is_something_to_see():
    out, expected = written(VisualRelevance(loosened=1, floor=0, shift=0))
    assert not out.stats.lossless
    for row, sees in enumerate(SEES):
        refused_one = any(one.accepted[row] < one.drafted[row] for one in out.stats.rounds[:-1])
        assert (out.token_ids[row] == expected[row]) != sees and refused_one != sees


def test_relevance_is_the_mean_of_the_nearest_cosines():
    target, inputs = target_of("llava", "sdpa"), case("llava", "sdpa", *RAGGED, NEW)[0]
    request, found = prepare(target, inputs=inputs), []

    class Noting(VisualRelevance):
        def relevance(self, states):
            found.append(super().relevance(states))
            return found[-1]

    out, _ = written(Noting(loosened=1.0, floor=0, nearest=3))
    visual = target.family.is_visual(request.inputs["input_ids"])
    for row in [row for row, sees in enumerate(SEES) if sees]:
        single, answer = one_row(inputs, row), out.token_ids[row]
        length = request.lengths[row]
        hidden = recompute(target.model, single, [answer], output_hidden_states=True).hidden_states[-1][0]
        states = torch.nn.functional.normalize(hidden, dim=-1)
        cosines = states[length:] @ states[:length][visual[row, :length]].T
        expected = cosines.topk(3, dim=-1).values.mean(-1)
        first = int(out.stats.rounds[0].accepted[row])
        assert first and torch.allclose(found[0][row, 1 : first + 1], expected[1 : first + 1], atol=1e-5)
    assert found[0][SEES.index(False)].isnan().all()


def judged(tree: DraftTree, scores: torch.Tensor, states: torch.Tensor) -> Judged:
    return Judged(tree, scores, scores.argmax(-1), lambda: None, lambda: [0], states={LAST: states})


def started(rule: VisualRelevance, size: int = 4) -> VisualRelevance:
    """A rule in a request whose one visual token looks along the first axis."""
    rule._visual, rule._sees = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    rule._directions, rule._drafted = torch.eye(1, size)[None], torch.zeros(1, 0)
    return rule


def along(*cosines: float) -> torch.Tensor:
    """States with these cosines to the visual token; the root's is 0."""
    rows = [[0.0, 1.0, 0, 0], *([cosine, (1 - cosine**2) ** 0.5, 0, 0] for cosine in cosines)]
    return torch.tensor(rows)[None]


CHOICES = torch.tensor([[[0.0, 3.0, 2.9, -9.0], [0.0, 2.9, 3.0, -9.0], [3.0, 0.0, 0.0, -9.0], [0.0, 0.0, 0.0, 3.0]]])
"""Scores after four nodes: the target chooses 1, then 2, then 0, then 3."""


@pytest.mark.parametrize(
    ("settings", "cosines", "passing"),
    [
        # Tokens 2, 1, 3 are drafted where the target chooses 1, 2, 0: 2 and 1 are likely, 3 is not.
        ({"loosened": 1.0, "shift": 0}, (0.1, 0.2, 0.3), [True, True, False]),
        ({"loosened": 1.0, "shift": 0, "floor": 0.0}, (0.3, 0.2, 0.1), [True, True, True]),
        ({"loosened": 0.0, "shift": 0}, (0.1, 0.2, 0.3), [False, False, False]),
        ({"loosened": 0.0, "shift": 1}, (0.1, 0.2, 0.3), [True, True, True]),  # all a place away
        ({"loosened": 0.5, "shift": 0}, (0.9, 0.1, 0.5), [False, True, False]),
        ({"loosened": 0.5, "shift": 1}, (0.9, 0.1, 0.5), [True, True, True]),
        ({"loosened": 1.0, "shift": 0, "floor": 0.99}, (0.1, 0.2, 0.3), [False, False, False]),
    ],
)
def test_what_passes(settings, cosines, passing):
    tree = DraftTree.chain(torch.tensor([[0, 2, 1, 3]]))
    rule = started(VisualRelevance(**settings))
    assert rule.accept(judged(tree, CHOICES, along(*cosines)))[0, 1:].tolist() == passing


def test_a_place_nearby_is_one_on_the_same_path():
    tree = DraftTree(torch.tensor([[0, 2, 3, 1]]), torch.tensor([[-1, 0, 0, 1]]), 2)
    rule = started(VisualRelevance(loosened=0.0, shift=1))
    scores = torch.full((1, 4, 4), -1.0)
    scores[0, 0, 1] = scores[0, 1, 2] = scores[0, 3, 3] = scores[0, 2, 0] = 1.0
    # 2 is chosen below it, 1 above; 3 is chosen below the other branch alone.
    assert rule.accept(judged(tree, scores, along(0.1, 0.2, 0.3)))[0, 1:].tolist() == [True, False, True]


def test_strict_words_are_exact():
    tree = DraftTree.chain(torch.tensor([[0, 2, 1, 3]]))
    rule = started(VisualRelevance(loosened=1.0, shift=3, floor=0))
    rule._exact = [1]
    assert rule.accept(judged(tree, CHOICES, along(0.1, 0.2, 0.3)))[0, 1:].tolist() == [True, False, True]


def test_what_is_relevant_goes_by_all_that_was_drafted_so_far():
    rule, tree = started(VisualRelevance(loosened=0.5, shift=0, floor=0)), DraftTree.chain(torch.tensor([[0, 2, 1, 3]]))
    for cosines, passing in (((0.1, 0.2, 0.3), [True, True, False]), ((0.5, 0.6, 0.7), [False, False, False])):
        assert rule.accept(judged(tree, CHOICES, along(*cosines)))[0, 1:].tolist() == passing


def test_requests_in_turns_and_drafters_that_read_no_states():
    target, inputs = target_of("llava", "sdpa"), case("llava", "sdpa", *RAGGED, NEW)[0]
    verifier = TreeWalk(VisualRelevance(loosened=0.8))
    requests = [{"inputs": inputs, "max_new_tokens": NEW - n, "verifier": verifier, "tree": Chain(4)} for n in (0, 3)]
    drafter = blurred_drafter("llava", "sdpa")
    alone = [mmspec.generate(target, drafter, **request).token_ids for request in requests]
    assert [one.token_ids for one in interleaved(target, drafter, requests)] == alone
    gated = Gated(verifier, Every(rounds=3))
    assert gated.feature_layers(target) == (LAST,)
    assert mmspec.generate(target, NGramDrafter(target), inputs=inputs, max_new_tokens=NEW, verifier=gated).token_ids


def test_what_cannot_be_is_refused():
    refused(lambda: VisualRelevance(loosened=2), "VisualRelevance: loosened=2 must be a number from 0 to 1")
    refused(lambda: VisualRelevance(strict="not"), "VisualRelevance: strict='not' must be a list of texts")
    refused(lambda: VisualRelevance(nearest=0), "VisualRelevance: nearest=0 must be")
    embedded = mmspec.load_target("tiny")
    refused(
        lambda: VisualRelevance(strict=["red shape"]).check(embedded),
        "VisualRelevance: strict has 'red shape', which is",
    )
    assert isinstance(
        configuration.build(configuration.compose("generate", ["verifier=lvspec"]).verifier).rule, VisualRelevance
    )
