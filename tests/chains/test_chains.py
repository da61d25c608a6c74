"""Chains of Gaussian transitions in the loop: their law is that of the target's own sampler."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import refused
from torch import Tensor

from mmspec import chains
from mmspec.chains import AncestralChain, ChainDrafter, FrozenDrafter, GaussianChain, Reflection, StateDrafter
from mmspec.chains.reflection import acceptance, reflected
from mmspec.loop import Run

STEPS, ROWS = 12, 1000
BETAS = torch.linspace(0.02, 0.6, STEPS)
WELLS = torch.tensor([[-2.0, 0.0], [2.0, 0.5]])


def noise_of_two_wells(states: Tensor, times: Tensor) -> Tensor:
    """The noise that an ideal model sees in samples of two narrow normal distributions, in 2 dimensions."""
    alpha_bar = (1 - BETAS).cumprod(0)[times][:, None]
    means = alpha_bar.sqrt()[..., None] * WELLS
    variance = 1 - alpha_bar + 0.05 * alpha_bar
    apart = states[:, None] - means
    weight = (-(apart**2).sum(-1) / (2 * variance)).softmax(-1)[..., None]
    return (1 - alpha_bar).sqrt() * (weight * apart).sum(1) / variance


class Pull(GaussianChain):
    """Every step moves a part of the way to a point that its states know, with noise that changes."""

    def __init__(self, towards: float, dim: int = 3, steps: int = 9, quiet: bool = False):
        super().__init__((dim,), steps)
        self.towards, self.quiet, self.asked = towards, quiet, []

    def predict(self, states, steps):
        self.asked.append(len(states))
        return self.towards - states.tanh()

    def mean(self, states, steps, prediction):
        return states + 0.4 * prediction

    def std(self, steps):
        return torch.zeros(len(steps)) if self.quiet else 0.3 + 0.05 * steps


@pytest.fixture(scope="module")
def wells() -> AncestralChain:
    return AncestralChain(noise_of_two_wells, BETAS, (2,))


class Cheaper(AncestralChain):
    """The same sampler with a model that is a little wrong."""

    def predict(self, states, steps):
        return 0.8 * super().predict(states, steps) + 0.1


DRAFTERS = {
    "frozen": lambda: FrozenDrafter(4),
    "frozen, asked anew": lambda: FrozenDrafter(4, fresh=True),
    "another chain": lambda: ChainDrafter(Cheaper(noise_of_two_wells, BETAS, (2,)), 4),
}


class Redrawn(Reflection):
    """A slip: what is refused is drawn anew from the target, as if the refusal said nothing about it."""

    lossless = False

    def replacement(self, z, d, fresh):
        return fresh


def farthest_apart(one: Tensor, other: Tensor) -> float:
    """The two-sample Kolmogorov-Smirnov statistic in units in which 1.95 is exceeded once in a thousand times."""
    values = torch.cat([one, other])
    order = values.argsort()
    step = torch.cat([torch.full_like(one, 1 / len(one)), torch.full_like(other, -1 / len(other))])[order]
    return float(step.cumsum(0).abs().max()) * math.sqrt(len(one) * len(other) / (len(one) + len(other)))


def apart(one: Tensor, other: Tensor) -> float:
    """The same of states in 2 dimensions, seen from the side from which they differ most."""

    def sides(states: Tensor) -> list[Tensor]:
        x, y = states.unbind(-1)
        return [x, y, x + y, x - 2 * y, x.abs(), x * y]

    return max(farthest_apart(*pair) for pair in zip(sides(one), sides(other), strict=True))


# The coupling, in algebra.


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_kept_and_mirrored_states_together_have_the_targets_density(dim):
    """q(y) a(y) + q(y') (1 - a(y')) = p(y) for every state y, where y' is the one whose mirror image is y."""
    generator = torch.Generator().manual_seed(dim)
    ours, theirs = (torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(2))
    states, std = torch.randn(500, dim, generator=generator, dtype=torch.float64) * 2, 0.7
    d = ((ours - theirs) / std).expand(500, dim)

    def density(mean: Tensor, at: Tensor) -> Tensor:
        return (-(((at - mean) / std) ** 2).sum(-1) / 2).exp()

    before = ours + std * reflected((states - theirs) / std, d)  # mirroring twice changes nothing
    torch.testing.assert_close(theirs + std * reflected((before - ours) / std, d), states)
    kept = density(ours, states) * acceptance((states - ours) / std, d)
    mirrored = density(ours, before) * (1 - acceptance((before - ours) / std, d))
    torch.testing.assert_close(kept + mirrored, density(theirs, states), rtol=1e-9, atol=1e-12)
    assert torch.equal(reflected(states, torch.zeros_like(states)), states)


@pytest.mark.parametrize("dim", [1, 3])
def test_a_drafted_state_is_kept_as_often_as_can_be(dim):
    """One transition, so that a draft of one is judged: rate, mean and spread of what comes out."""
    target, drafter = Pull(0.5, dim, 2), ChainDrafter(Pull(1.2, dim, 2), 1)
    rows = 3000
    out = chains.sample(target, drafter, first=torch.zeros(rows, dim))
    apart = 0.4 * 0.7 / 0.3 * math.sqrt(dim)
    rate = math.erfc(apart / 2 / math.sqrt(2))  # 2 Phi(-|d| / 2)
    kept = sum(drafted[1] for drafted in out.drafted) / rows
    assert abs(kept - rate) < 4 * math.sqrt(rate * (1 - rate) / rows)
    states = out.path[:, 1]
    law = 0.2 + 0.3 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))
    assert max(farthest_apart(*pair) for pair in zip(states.unbind(1), law.unbind(1), strict=True)) < 1.95
    spread = torch.cov(states.T).view(dim, dim)
    torch.testing.assert_close(spread, 0.09 * torch.eye(dim), atol=0.01, rtol=0)


# Whole chains.


def test_chains_end_in_the_law_of_plain_sampling(wells):
    plain = chains.sample(wells, batch_size=ROWS, seed=1)
    assert plain.calls == STEPS and not any(map(any, plain.drafted))
    assert 0.4 < (plain.states[:, 0] > 0).float().mean() < 0.6
    for name, make in DRAFTERS.items():
        out = chains.sample(wells, make(), ROWS, seed=2)
        assert out.stats.lossless and out.stats.mean_acceptance_length > 1.3, name
        for steps in (3, STEPS):  # on the way, and at the end
            assert apart(out.path[:, steps], plain.path[:, steps]) < 1.95, (name, steps)


@pytest.mark.parametrize("verifier", [Reflection(), Redrawn()], ids=["mirrored", "drawn anew"])
def test_only_with_the_mirror_a_biased_draft_leaves_the_law_alone(verifier):
    target = Pull(0.5, 2)
    plain = chains.sample(target, batch_size=ROWS, seed=1)
    out = chains.sample(target, ChainDrafter(Pull(1.3, 2), 4), ROWS, verifier=verifier, seed=2)
    assert out.stats.lossless == verifier.lossless
    distance = apart(out.states, plain.states)
    assert distance < 1.95 if verifier.lossless else distance > 3


def test_the_target_as_its_own_drafter_is_always_right():
    target = Pull(0.5, steps=13)
    out = chains.sample(target, ChainDrafter(target, 4), 5)
    assert out.calls == len(out.stats.rounds) == math.ceil(13 / 5) and out.stats.mean_acceptance_length == 13 / 3
    assert out.stats.draft_acceptance_rate == 1
    assert out.path.shape == (5, 14, 3) and torch.equal(out.path[:, -1], out.states)
    assert [sum(row) for row in out.drafted] == [10] * 5


def test_a_frozen_prediction_that_holds_is_always_right():
    """Where the target says the same of every state, its last word is its next one."""

    class Steady(Pull):
        def predict(self, states, steps):
            return torch.full_like(states, self.towards)

    out = chains.sample(Steady(0.5, steps=13), FrozenDrafter(3), 2)
    assert [record.emitted[0] for record in out.stats.rounds] == [1, 4, 4, 4]
    fresh = chains.sample(Steady(0.5, steps=13), FrozenDrafter(3, fresh=True), 2)
    assert [record.emitted[0] for record in fresh.stats.rounds] == [4, 4, 4, 1]
    assert fresh.calls == 4 + 3  # nothing is drafted for the last step


def test_every_chain_goes_its_own_way_and_by_its_own_draws():
    target, drafter = Pull(0.5), ChainDrafter(Pull(0.9), 3)
    out = chains.sample(target, drafter, 6, seed=3)
    lengths = {len(record.emitted) for record in out.stats.rounds}
    assert lengths == {6} and any(len(set(record.emitted)) > 1 for record in out.stats.rounds)
    assert all(sum(record.emitted[row] for record in out.stats.rounds) == 9 for row in range(6))
    again = chains.sample(target, drafter, 6, seed=3)
    assert torch.equal(out.path, again.path) and out.drafted == again.drafted
    fewer = chains.sample(target, drafter, 2, seed=3)
    torch.testing.assert_close(fewer.path, out.path[:2])
    assert fewer.drafted == out.drafted[:2]
    assert not torch.equal(out.path, chains.sample(target, drafter, 6, seed=4).path)


def test_the_target_is_asked_about_nothing_that_cannot_be_used():
    target = Pull(0.5)
    out = chains.sample(target, ChainDrafter(Pull(0.9), 3), 6, seed=3)
    assert len(target.asked) == out.calls == len(out.stats.rounds)
    wanted = [sum(record.drafted) + sum(map(bool, record.emitted)) for record in out.stats.rounds]
    assert target.asked == wanted and target.asked[-1] < target.asked[0]


def test_where_the_target_is_certain_its_mean_is_the_state():
    target = Pull(0.5, quiet=True)
    start = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    plain = chains.sample(target, first=start)
    out = chains.sample(target, ChainDrafter(Pull(0.9, quiet=True), 3), first=start)
    assert torch.equal(out.path, plain.path) and out.stats.num_accepted_draft_tokens == 0
    alike = chains.sample(target, ChainDrafter(Pull(0.5, quiet=True), 3), first=start)
    assert torch.equal(alike.path, plain.path) and alike.stats.draft_acceptance_rate == 1


def test_it_is_the_loop_of_tokens(monkeypatch):
    rounds, whole = [], Run.round
    monkeypatch.setattr(Run, "round", lambda self: rounds.append(self) or whole(self))
    out = chains.sample(Pull(0.5), FrozenDrafter(3), 2)
    assert len(rounds) == len(out.stats.rounds) > 0
    seconds = out.stats.seconds
    assert {"draft", "score", "verify", "commit"} <= {phase for phase, spent in seconds.items() if spent}


class Crooked(StateDrafter):
    def draft(self, root):
        draft = super().chain_below(root, 0)
        draft.states = draft.states[:, :, :1]
        return draft


def test_what_is_wrong_is_said_in_a_line():
    target = Pull(0.5)

    class Short(Pull):
        def std(self, steps):
            return torch.ones(1)

    class Broken(Pull):
        def predict(self, states, steps):
            return states.log()

    for call, message in [
        (lambda: chains.sample(len), "chains.sample takes a GaussianChain, and this is a builtin_function"),
        (lambda: chains.sample(target, Reflection()), "drafter is a Reflection; of chains it must be a StateDrafter"),
        (lambda: chains.sample(target, seed=0.5), "seed=0.5 must be an integer"),
        (lambda: chains.sample(target, batch_size=0), "batch_size=0 must be a positive integer"),
        (lambda: chains.sample(target, first=torch.zeros(2, 4)), "first has shape (2, 4); it must be [batch, 3]"),
        (lambda: chains.sample(target, ChainDrafter(Pull(1.0, 2))), "shape [2] and 9 steps, and the target [3]"),
        (lambda: chains.sample(target, Crooked()), "Crooked drafted states of shape (1, 1, 1); they must be"),
        (lambda: chains.sample(Short(0.5), batch_size=2), "deviations of shape (1,); they must be ... [2]"),
        (
            lambda: chains.sample(Broken(0.5), first=-torch.ones(1, 3)),
            "Broken: a mean in row 0 is NaN or infinite, 0 steps",
        ),
        (lambda: FrozenDrafter(0), "FrozenDrafter: length=0 must be a positive integer"),
        (lambda: Pull(0.5, steps=0), "Pull: steps=0 must be a positive integer"),
        (lambda: AncestralChain(len, [0.1, 1.5], (2,)), "AncestralChain: betas hold 1.5; each must lie"),
    ]:
        refused(call, message)
