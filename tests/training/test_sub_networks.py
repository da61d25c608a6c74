"""SubNetworks: each pass of an elastic training is one of a part of the drafter, the same one when it is repeated."""

from __future__ import annotations

import pytest
import torch
from heads import build, lesson_of
from refusals import refused
from tiny_requests import target_of

from mmspec.drafters import DreamDrafter, EagleDrafter
from mmspec.settings import configuration
from mmspec.training.losses import KullbackLeibler
from mmspec.training.objective import Objective, drawing
from mmspec.training.sub_networks import SubNetworks

SHARES, KEEPS = (0.5, 1.0), (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def drafter() -> DreamDrafter:
    return build(target_of("llava", "sdpa"), "dream")


def test_all_pairs_are_drawn_apart_and_none_before_its_time(drafter):
    parts = SubNetworks(SHARES, KEEPS, after=0.25)
    assert parts(drafter, 0.0) is drafter and parts(drafter, 0.24) is drafter
    with drawing("a seed", torch.device("cpu")):
        drawn = [parts(drafter, 0.25) for _ in range(60)]
    found = [(one.settings.head_share, one.compressor.keep) for one in drawn]
    assert set(found) == {(share, keep) for share in SHARES for keep in KEEPS}
    assert all(ours is theirs for ours, theirs in zip(drawn[0].parameters(), drafter.parameters(), strict=True))
    assert drafter.settings.head_share == 1, "the drafter itself stays whole"


def test_the_loss_is_that_of_the_part_that_is_drawn(drafter):
    """By the seed of the pass alone: repeated, it is the same part, and of two parts the losses differ."""
    lesson, losses = lesson_of("llava"), [KullbackLeibler()]
    pairs = [(share, keep) for share in SHARES for keep in KEEPS]
    with torch.no_grad():
        wanted = [Objective(losses)(drafter.sub_network(*pair), lesson)[0].item() for pair in pairs]
        assert len({round(loss, 4) for loss in wanted}) == len(pairs)
        elastic = Objective(losses, part=SubNetworks(SHARES, KEEPS))
        found = [elastic(drafter, lesson, f"step {number}")[0].item() for number in range(12)]
        again = [elastic(drafter, lesson, f"step {number}")[0].item() for number in range(12)]
    assert found == again and set(found) <= set(wanted) and len(set(found)) > 2


def test_the_recipe_teaches_small_parts():
    """After some steps a quarter of the heads guesses better than it did, with few of the visual tokens."""
    recipe = configuration.compose("train", ["recipe=dream_s", "recipe.intermediate_layer=2"]).recipe
    target, lesson = target_of("llava", "sdpa"), lesson_of("llava")
    torch.manual_seed(0)
    trained, objective = configuration.build(recipe.drafter, target=target), configuration.build(recipe.objective)
    assert objective.part.after == 0.05 and len(objective.part.keeps) == 8 and len(objective.part.head_shares) == 4
    plain = Objective(objective.losses)
    with torch.no_grad():
        before = plain(trained.sub_network(0.25, 0.3), lesson)[0].item()
    optimizer = configuration.build(recipe.optimizer, params=trained.parameters())
    for step in range(25):
        loss, _ = objective(trained, lesson, str(step), progress=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert plain(trained.sub_network(0.25, 0.3), lesson)[0].item() < 0.8 * before


def test_other_drafters_and_bad_shares_are_refused(drafter):
    refused(lambda: SubNetworks(keeps=[0.5, 1.5]), "SubNetworks: keeps.1=1.5 must be a number above 0")
    refused(lambda: SubNetworks(head_shares=[]), "SubNetworks: head_shares=[] must be a list of shares")
    refused(lambda: SubNetworks(keeps=0.5), "SubNetworks: keeps=0.5 must be a list of shares")
    refused(lambda: Objective([KullbackLeibler()], part=5), "part=5 must be a function such as SubNetworks()")
    eagle = EagleDrafter(target_of("llava", "sdpa"))
    refused(lambda: SubNetworks()(eagle, 1.0), "EagleDrafter has no sub-networks ... leave recipe.objective.part out")
