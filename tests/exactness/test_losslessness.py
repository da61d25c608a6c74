"""Losslessness by exact enumeration: over all random outcomes of a round, the law of the text is the target's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from covering import covering
from laws import Enumeration, draw_probability, processed, random_tables, sequence_law, zeroed

from mmspec.decoding.sampling import LogitsPipeline
from mmspec.outcome import Scores, Verdict
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree, Growth, StaticTree, TreeBuilder
from mmspec.verifiers import RejectionSampling, walk
from mmspec.verifiers.rules import Rejection

EXACT = 1e-9
WRONG = 1e-3

SHAPES = {
    "chain1": Chain(1),
    "chain2": Chain(2),
    "siblings2": StaticTree(["0", "1"]),
    "siblings3": StaticTree(["0", "1", "2"]),
    "two_levels": StaticTree(["0", "1", "00", "01", "10"]),
    "below_second": StaticTree(["0", "1", "10", "11"]),
}


def depth_of(shape: str) -> int:
    builder = SHAPES[shape]
    return builder.length if isinstance(builder, Chain) else max(map(len, builder.paths))


def models(kind: str, vocab: int, depth: int):
    """Tables of target and drafter in a situation that a rule might get wrong."""
    p, q = random_tables(vocab, depth, seed=1), random_tables(vocab, depth, seed=2)
    if kind == "equal":
        return p, p
    if kind == "equal_at_root_only":
        return p, [p[0], *q[1:]]
    if kind == "draft_lacks_a_token":
        return p, zeroed(q, [0])
    if kind == "draft_runs_dry":  # fewer tokens than siblings
        return p, zeroed(q, list(range(1, vocab)))
    if kind == "target_lacks_a_token":
        return zeroed(p, [vocab - 1]), q
    if kind == "disjoint":
        return zeroed(p, [0]), zeroed(q, list(range(1, vocab)))
    if kind == "disjoint_halves":
        return zeroed(p, [0, 1]), zeroed(q, list(range(2, vocab)))
    if kind == "certain_target":
        return zeroed(p, list(range(1, vocab))), q
    if kind == "nearly_equal":
        return p, [(0.999 * a + 0.001 * b) for a, b in zip(p, q, strict=True)]
    if kind == "close_calls":  # a second sibling may be refused too
        return [torch.tensor([0.05, 0.32, 0.23, 0.4]).double(), *p[1:]], [
            torch.tensor([0.4, 0.3, 0.2, 0.1]).double(),
            *q[1:],
        ]
    return p, q


KINDS = (
    "random",
    "equal",
    "equal_at_root_only",
    "draft_lacks_a_token",
    "draft_runs_dry",
    "target_lacks_a_token",
    "disjoint",
    "disjoint_halves",
    "certain_target",
    "nearly_equal",
)


@pytest.mark.parametrize(("kind", "shape", "vocab"), covering(KINDS, SHAPES, [3, 4]))
def test_rejection_sampling_is_lossless(kind, shape, vocab):
    target, draft = models(kind, vocab, depth_of(shape))
    assert Enumeration(RejectionSampling(), target, draft, SHAPES[shape]).error() < EXACT


@pytest.mark.parametrize("shape", ["siblings2", "siblings3", "two_levels"])
def test_rejection_sampling_is_lossless_where_several_siblings_are_refused(shape):
    target, draft = models("close_calls", 4, depth_of(shape))
    assert Enumeration(RejectionSampling(), target, draft, SHAPES[shape]).error() < EXACT


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 2}, {"top_p": 0.7, "temperature": 0.8}, {"min_p": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("shape", ["chain2", "siblings3", "two_levels"])
def test_rejection_sampling_behind_a_pipeline_follows_the_processed_law(options, shape):
    pipeline = LogitsPipeline(**{"temperature": 1.0, **options})
    target, draft = models("random", 4, depth_of(shape))
    outcome = Enumeration(RejectionSampling(), target, draft, SHAPES[shape], pipeline)
    assert outcome.error() < EXACT
    assert (outcome.law() - sequence_law(target)).abs().max() > WRONG, "the pipeline did nothing"


def test_equal_models_accept_everything_and_disjoint_ones_nothing():
    for kind, lengths in (("equal", {3}), ("disjoint", {1})):
        target, draft = models(kind, 3, 2)
        outcome = Enumeration(RejectionSampling(), target, draft, Chain(2))
        assert set(outcome.length[outcome.weight > 1e-12].tolist()) == lengths


def test_chain_acceptance_is_the_overlap_of_p_and_q():
    target, draft = models("random", 4, 1)
    outcome = Enumeration(RejectionSampling(), target, draft, Chain(1))
    accepted = outcome.weight[outcome.length == 2].sum()
    torch.testing.assert_close(accepted, torch.minimum(target[0], draft[0]).sum())


def test_siblings_raise_the_chance_of_acceptance():
    target, draft = models("random", 4, 1)
    chances = []
    for shape in ("chain1", "siblings2", "siblings3"):
        outcome = Enumeration(RejectionSampling(), target, draft, SHAPES[shape])
        chances.append(outcome.weight[outcome.length == 2].sum().item())
    assert chances[0] < chances[1] - WRONG and chances[1] < chances[2] - WRONG


def test_first_token_is_drawn_from_the_processed_law():
    logits = random_tables(5, 0, seed=3)[0].log()[None]
    pipeline = LogitsPipeline(temperature=0.7, top_k=3)
    context = SimpleNamespace(logits=logits, history=[[0]])
    verifier = RejectionSampling().fork_for(context, pipeline, seed=0)
    seen = []
    verifier._draw = lambda probs: seen.append(probs) or probs.argmax(-1)
    verifier.first_token(context)
    torch.testing.assert_close(seen[0], processed([logits[0].exp()], pipeline)[0][None])


# Negative controls: the same enumeration must find these wrong rules out.


@pytest.mark.parametrize("shape", ["chain1", "chain2", "siblings2"])
def test_control_residual_skipped(monkeypatch, shape):
    monkeypatch.setattr(Rejection, "residual", lambda self, p, q, token: p)
    target, draft = models("random", 3, depth_of(shape))
    assert Enumeration(RejectionSampling(), target, draft, SHAPES[shape]).error() > WRONG


@pytest.mark.parametrize("shape", ["siblings2", "siblings3", "two_levels"])
def test_control_q_not_renormalised_after_a_strike(monkeypatch, shape):
    monkeypatch.setattr(walk, "strike", lambda q, token: q.scatter(-1, token[:, None], 0.0))
    target, draft = models("close_calls", 4, depth_of(shape))
    assert Enumeration(RejectionSampling(), target, draft, SHAPES[shape]).error() > WRONG


@pytest.mark.parametrize("shape", ["siblings2", "siblings3", "two_levels"])
def test_control_siblings_judged_as_draws_with_replacement(monkeypatch, shape):
    monkeypatch.setattr(walk, "strike", lambda q, token: q)
    target, draft = models("close_calls", 4, depth_of(shape))
    assert Enumeration(RejectionSampling(), target, draft, SHAPES[shape]).error() > WRONG


class UnprocessedBonus(RejectionSampling):
    """The slip of EAGLE's v1 branch: after a path that was accepted to its end, raw logits give the bonus token."""

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        bonus = []
        draw, self._draw = self._draw, lambda probs: bonus.append(probs) or probs.argmax(-1)
        verdict = super().verify(tree, scores)
        last = verdict.path.gather(1, verdict.length[:, None] - 1)[:, 0]
        leaf = ~(tree.parents == last[:, None]).any(-1)
        raw = scores.logits[torch.arange(tree.batch_size), last].softmax(-1)
        verdict.bonus = draw(torch.where(leaf[:, None], raw, bonus[0]))
        return verdict


@pytest.mark.parametrize("shape", ["chain1", "siblings2"])
def test_control_bonus_from_unprocessed_logits(shape):
    target, draft = models("random", 4, depth_of(shape))
    wrong = Enumeration(UnprocessedBonus(), target, draft, SHAPES[shape], LogitsPipeline(0.6))
    assert wrong.error() > WRONG
    harmless = Enumeration(UnprocessedBonus(), target, draft, SHAPES[shape], LogitsPipeline(1.0))
    assert harmless.error() < EXACT


class KeepLikeliest(TreeBuilder):
    """Draws two children and keeps the likelier one: the shape depends on what was drawn."""

    value_independent = False

    def build(self, growth: Growth) -> DraftTree:
        children = growth.expand(growth.root, 2)
        best = growth.log_probs.gather(1, children).argmax(-1, keepdim=True)
        return growth.keep(torch.cat([growth.root, children.gather(1, best)], dim=1))


def test_control_trees_that_choose_among_draws_are_biased():
    """Why builders that are not `value_independent` are refused."""
    target, draft = models("random", 3, 1)
    assert Enumeration(RejectionSampling(), target, draft, KeepLikeliest()).error() > WRONG
    with pytest.raises(ValueError, match="KeepLikeliest.*not be lossless"):
        KeepLikeliest().check("sampled")
    with pytest.raises(ValueError, match=r"DynamicTree.*PointMassSampling"):
        DynamicTree().check("sampled")
    DynamicTree().check("point")


def test_the_enumeration_itself_weighs_draws_rightly():
    q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert draw_probability(q, torch.tensor([[1, 0]])).item() == pytest.approx(0.3 * 0.5 / 0.7)
    dry = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert draw_probability(dry, torch.tensor([[1, 0]])).item() == 1
    assert draw_probability(dry, torch.tensor([[1, 2]])).item() == 0
