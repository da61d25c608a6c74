"""Whatever has a config, or is exported by mmspec.drafters, reproduces the target: every drafter x tree x verifier.

Nothing here names a method. A new drafter enters by its YAML file; one whose weights do not ship with it by an entry in
`helpers.TINY_DRAFTERS`, which builds it with random weights for any target.
"""

from __future__ import annotations

import pkgutil
from functools import cache

import helpers
import models
import pytest
from helpers import RAGGED, case, target_of
from omegaconf import OmegaConf

import mmspec
from mmspec import configuration, drafters, loading, zoo
from mmspec.drafters import Drafter, FeatureDrafter, NoDrafter, SessionDrafter, StepDrafter
from mmspec.inputs import prepare
from mmspec.testing import watched
from mmspec.verifiers import Greedy

NEW = 14
ONE = ((1,), (9,))


@cache
def options(group: str) -> dict:
    """The options of a configuration group that build something: name to configuration."""
    nodes = {
        name: configuration.compose("generate", [f"{group}={name}"])[group] for name in configuration.groups()[group]
    }
    return {name: node for name, node in nodes.items() if node is not None}


def is_drafter(node) -> bool:
    target = pkgutil.resolve_name(node._target_)
    return isinstance(target, type) and issubclass(target, Drafter)


CONFIGURED = {f"drafter={name}": node for name, node in options("drafter").items() if is_drafter(node)}
# Options that load weights made for the embedded target. `drafter=pretrained` has no name of its own to load.
# Options that load weights made for the embedded target.
EMBEDDED = {
    name: node
    for name, node in options("drafter").items()
    if not OmegaConf.is_missing(node, "name") and str(node.get("name")).startswith(f"{loading.EMBEDDED_TARGET}/")
}
TREES = [None, *options("tree")]
EASY_AND_HARD = ("scenes", "documents")
RULES = {name: configuration.build(node) for name, node in options("verifier").items()}
VERIFIERS = {name: rule for name, rule in RULES.items() if rule.lossless and rule.proposal == "point"}
LABELS = [*CONFIGURED, *helpers.TINY_DRAFTERS]


@cache
def drafter_of(label: str, name: str, attention: str) -> Drafter:
    if label in CONFIGURED:
        return configuration.build(CONFIGURED[label], target=target_of(name, attention))
    return helpers.TINY_DRAFTERS[label](name, attention)


def builders(drafter: Drafter) -> list:
    """The configured trees that a drafter can grow, and its own; only its own if it proposes whole trees."""
    names = TREES if drafter.tree is not None else [None]
    return [configuration.build(options("tree")[name]) if name else None for name in names]


# All trees that there are, on few targets; tests/families tries few trees on all targets.
TARGETS = [*[(name, "sdpa") for name in ("llava", "qwen_vl", "mistral")], ("gemma3", "eager")]
CASES = [
    (name, attention, label)
    for name, attention in TARGETS
    for label in LABELS
    if (name in models.VISUAL or label not in helpers.NEED_PICTURES)
]


@pytest.mark.parametrize("rows", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize(("name", "attention", "label"), CASES)
def test_greedy_text_is_that_of_generate(name, attention, label, rows):
    inputs, expected = case(name, attention, *rows, NEW)
    drafter = drafter_of(label, name, attention)
    for tree in builders(drafter):
        out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected, tree
        assert out.stats.lossless


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_verifiers_whose_draws_are_tied_to_positions_give_one_text_with_every_drafter(verifier, label):
    """So sampled text can be compared token by token too; other rules are exact in law (tests/test_losslessness.py)."""
    rule, name = VERIFIERS[verifier], models.VISUAL[0]
    drafter = drafter_of(label, name, "sdpa")
    settings = {
        "inputs": case(name, "sdpa", *RAGGED, NEW)[0],
        "max_new_tokens": NEW,
        "verifier": rule,
        "temperature": 0.0 if isinstance(rule, Greedy) else 0.7,
        "seed": 3,
    }
    plain = mmspec.generate(drafter.target, **settings)
    for tree in builders(drafter):
        assert mmspec.generate(drafter.target, drafter, tree=tree, **settings).token_ids == plain.token_ids, tree


@pytest.mark.parametrize("label", LABELS)
def test_trees_are_well_formed_and_rooted_in_the_newest_token(label):
    name = models.VISUAL[0]
    drafter = watched(drafter_of(label, name, "sdpa"))
    inputs, _ = case(name, "sdpa", *RAGGED, NEW)
    for tree in builders(drafter):
        assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=6, tree=tree).stats.rounds


SHOWN = ("eagle3", "hivis", "draft_model")
"""Of each kind one; tests/test_embedded.py asks all of them."""


@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=[] if name in SHOWN else [pytest.mark.slow]) for name in EMBEDDED]
)
def test_options_with_weights_reproduce_the_embedded_target(option):
    target = _embedded_target()
    drafter = configuration.build(EMBEDDED[option], target=target)
    pictures = [zoo.sample(task, "test", 7) for task in EASY_AND_HARD]
    for sample, expected in zip(pictures, _embedded_text(), strict=True):
        for tree in builders(drafter):
            out = mmspec.generate(target, drafter, sample.prompt, [sample.image], max_new_tokens=24, tree=tree)
            assert out.token_ids == expected


@cache
def _embedded_target():
    return mmspec.load_target(loading.EMBEDDED_TARGET)


@cache
def _embedded_text() -> list:
    target = _embedded_target()
    texts = []
    for task in EASY_AND_HARD:
        sample = zoo.sample(task, "test", 7)
        inputs = prepare(target, sample.prompt, [sample.image]).inputs
        ids = target.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        texts.append([ids[0, inputs["input_ids"].shape[1] :].tolist()])
    return texts


def test_every_exported_drafter_is_in_this_suite():
    exported = {value for value in vars(drafters).values() if isinstance(value, type) and issubclass(value, Drafter)}
    interfaces = {Drafter, FeatureDrafter, SessionDrafter, StepDrafter, NoDrafter}
    tested = {type(drafter_of(label, models.VISUAL[0], "sdpa")) for label in LABELS}
    missing = sorted(cls.__name__ for cls in exported - interfaces - tested)
    assert tested and not missing, f"add a config, or an entry in helpers.TINY_DRAFTERS, for {missing}"
