"""What every kind of drafter does for a target, to be compared with what it does for another copy of the target."""

from __future__ import annotations

from unittest import mock

import models
import tiny_drafters
import torch

import mmspec
from mmspec.drafters import as_drafter
from mmspec.rounds import ArmSelector, UpperConfidence
from mmspec.speed import AutoTree
from mmspec.trees import Chain, DynamicTree, StaticTree

TREES = {"static": StaticTree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]), "dynamic": DynamicTree(3, 2, 6)}


def arms(name: str, attention: str) -> ArmSelector:
    """A bandit over trees of a head, which would learn from the time that rounds take."""
    head = tiny_drafters.eagle_drafter(name, attention)
    return ArmSelector(head.target, head, [Chain(1), Chain(3), DynamicTree(3, 2, 6)], UpperConfidence())


BY_TIME = {"eagle, tree=auto": tiny_drafters.eagle_drafter, "arms": arms}
"""What chooses by the time that rounds take: what is accepted differs from run to run, and the greedy text does not."""


def found_with(target: mmspec.Target, whole: torch.nn.Module, name: str) -> dict[str, dict]:
    """Answer a ragged batch with static and dynamic trees, greedily and drawn.

    Args:
        target: the target, wherever its weights are.
        whole: the same model in one piece, of which the draft model is made.
        name: the family.

    Returns:
        By drafter, tree and temperature: the texts and how many drafted tokens they have (of those in `BY_TIME` the
        greedy texts alone), or why it is refused.
    """
    drafters = {key: build for key, build in tiny_drafters.TINY_DRAFTERS.items() if key != "own model"}
    drafters |= tiny_drafters.WITHOUT_WEIGHTS
    if name not in models.VISUAL:
        drafters = {key: build for key, build in drafters.items() if key not in tiny_drafters.NEED_PICTURES}
    pictures = [1, 0, 2] if name in models.VISUAL else [0, 0, 0]
    inputs = models.inputs_for(name, pictures, [9, 20, 5], 0)  # rows that differ in length and in pictures
    ask = {"inputs": inputs, "max_new_tokens": 10, "seed": 3}
    found: dict[str, dict] = {}
    with mock.patch.object(tiny_drafters, "target_of", lambda name, attention: target):
        for temperature in (0.0, 0.9):
            texts = mmspec.generate(target, None, temperature=temperature, **ask).token_ids
            found[f"none, {temperature}"] = {"texts": texts}
        for key, build in {"own model": lambda *_: as_drafter(target, models.blurred(whole)), **drafters}.items():
            try:
                torch.manual_seed(0)  # for what is drawn before the weights are drawn anew
                drafter = build(name, "sdpa")
                for label, tree in (TREES if drafter.tree is not None else {"own tree": None}).items():
                    for temperature in (0.0, 0.9):
                        out = mmspec.generate(target, drafter, tree=tree, temperature=temperature, **ask)
                        result = {"texts": out.token_ids, "accepted": out.stats.num_accepted_draft_tokens}
                        found[f"{key}, {label}, {temperature}"] = result
            except mmspec.MMSpecError as error:
                found[key] = {"refused": str(error)}
        for key, build in BY_TIME.items():
            drafter, tree = build(name, "sdpa"), AutoTree(remember=False) if "auto" in key else None
            found[f"{key}, 0.0"] = {"texts": mmspec.generate(target, drafter, tree=tree, **ask).token_ids}
    return found
