"""Whatever has a config, or is exported by mmspec.drafters, reproduces the target: every drafter x tree x verifier.

Nothing here names a method. A new drafter enters by its YAML file; one whose weights do not ship with it by an entry in
`TINY_DRAFTERS`, which builds it with random weights for any target.
"""

from __future__ import annotations

import pkgutil
from functools import cache

import models
import pytest
from omegaconf import OmegaConf
from tiny_drafters import NEED_NO_WINDOWS, NEED_PICTURES, OF_ONE_TARGET, TINY_DRAFTERS
from tiny_requests import RAGGED, case, target_of, windowed

import mmspec
from mmspec import drafters, loading, zoo
from mmspec.drafters import (
    BlockDrafter,
    CaptionedDrafter,
    Drafter,
    DraftModelDrafter,
    FeatureDrafter,
    HeadDrafter,
    LayerDrafter,
    NoDrafter,
    ParallelDrafter,
    SessionDrafter,
    SharedEncoderDrafter,
    StepDrafter,
)
from mmspec.inputs import prepare
from mmspec.settings import configuration
from mmspec.testing import watched
from mmspec.verifiers import Greedy

NEW = 10
ONE = ((1,), (9,))


GROUPS = ("drafter", "tree", "verifier")


@cache
def composed() -> dict[str, dict]:
    """Of each group its options as configurations; the first of all groups are composed at once, then the second."""
    names = {group: list(configuration.groups()[group]) for group in GROUPS}
    nodes = {group: {} for group in GROUPS}
    for place in range(max(map(len, names.values()))):
        chosen = {group: options[place] for group, options in names.items() if place < len(options)}
        config = configuration.compose("generate", [f"{group}={option}" for group, option in chosen.items()])
        for group, option in chosen.items():
            nodes[group][option] = config[group]
    return nodes


def options(group: str) -> dict:
    """The options of a configuration group that build something: name to configuration."""
    return {name: node for name, node in composed()[group].items() if node is not None}


def is_drafter(node) -> bool:
    target = pkgutil.resolve_name(node._target_)
    return isinstance(target, type) and issubclass(target, Drafter)


CONFIGURED = {f"drafter={name}": node for name, node in options("drafter").items() if is_drafter(node)}
# Options that load weights made for the embedded target. `drafter=pretrained` has no name of its own to load.
EMBEDDED = {
    name: node
    for name, node in options("drafter").items()
    if not OmegaConf.is_missing(node, "name") and str(node.get("name")).startswith(f"{loading.EMBEDDED_TARGET}/")
}
TREES = [None, *options("tree")]
RULES = {name: configuration.build(node) for name, node in options("verifier").items()}
VERIFIERS = {name: rule for name, rule in RULES.items() if rule.lossless and rule.proposal == "point"}
LABELS = [*CONFIGURED, *TINY_DRAFTERS]


@cache
def drafter_of(label: str, name: str, attention: str) -> Drafter:
    if label in CONFIGURED:
        return configuration.build(CONFIGURED[label], target=target_of(name, attention))
    make = TINY_DRAFTERS[label] if label in TINY_DRAFTERS else OF_ONE_TARGET[label][0]
    return make(name, attention)


def builders(drafter: Drafter, turn: int | None = None) -> list:
    """The configured trees that a drafter can grow, and its own; only its own if it proposes whole trees.

    Args:
        drafter: to grow them.
        turn: take only the tree whose turn it is. As many neighbours as there are trees then have all.
    """
    names = TREES if drafter.tree is not None else [None]
    names = names if turn is None else [names[turn % len(names)]]
    return [configuration.build(options("tree")[name]) if name else None for name in names]


# All trees that there are, on few targets; tests/families tries few trees on all targets.
TARGETS = [*[(name, "sdpa") for name in ("llava", "qwen_vl", "mistral")], ("gemma3", "eager")]
CASES = [
    (name, attention, label)
    for name, attention in TARGETS
    for label in LABELS
    if (name in models.VISUAL or label not in NEED_PICTURES)
    and not (label in NEED_NO_WINDOWS and windowed(name, attention))
]


def same_text(name: str, attention: str, label: str, rows: tuple, tree) -> None:
    """The trees are well formed, rooted in the newest token, and change nothing."""
    inputs, expected = case(name, attention, *rows, NEW)
    drafter = watched(drafter_of(label, name, attention))
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected, (name, attention, rows, tree)
    assert out.stats.lossless and out.stats.rounds


@pytest.mark.parametrize("label", LABELS)
def test_greedy_text_is_that_of_generate(label):
    """Every drafter meets every tree, and every target alone and in a ragged batch; so does every tree."""
    targets, turn = [one[:2] for one in CASES if one[2] == label], LABELS.index(label)
    trees = builders(drafter_of(label, *targets[0]))
    for place in range(max(len(trees), 2 * len(targets))):
        rows = (ONE, RAGGED)[(turn + place + place // len(targets)) % 2]
        same_text(*targets[(turn + place) % len(targets)], label, rows, trees[place % len(trees)])


@pytest.mark.parametrize("rows", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("label", OF_ONE_TARGET)
def test_a_drafter_of_one_kind_of_target_reproduces_it_with_every_tree(label, rows):
    _, cls, name = OF_ONE_TARGET[label]
    assert type(drafter_of(label, name, "sdpa")) is cls
    same_text(name, "sdpa", label, rows, None)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize(("name", "attention", "label"), CASES)
def test_every_drafter_with_every_tree_on_every_target(name, attention, label, rows):
    for tree in builders(drafter_of(label, name, attention)):
        same_text(name, attention, label, rows, tree)


SAMPLED = {name: rule for name, rule in VERIFIERS.items() if not isinstance(rule, Greedy)}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("verifier", SAMPLED)
def test_verifiers_whose_draws_are_tied_to_positions_give_one_text_with_every_drafter(verifier, label):
    """So sampled text can be compared token by token too; other rules are exact in law
    (`test_losslessness.py`)."""
    rule, name = SAMPLED[verifier], models.VISUAL[0]
    drafter = drafter_of(label, name, "sdpa")
    settings = {
        "inputs": case(name, "sdpa", *RAGGED, NEW)[0],
        "max_new_tokens": NEW,
        "verifier": rule,
        "temperature": 0.7,
        "seed": 3,
    }
    plain = mmspec.generate(drafter.target, **settings)
    for tree in builders(drafter, LABELS.index(label)):
        assert mmspec.generate(drafter.target, drafter, tree=tree, **settings).token_ids == plain.token_ids, tree


def same_embedded_text(option: str, turn: int | None) -> None:
    target = _embedded_target()
    drafter = configuration.build(EMBEDDED[option], target=target)
    samples = _pictures()
    request = {"prompt": [one.prompt for one in samples], "images": [one.image for one in samples]}
    for tree in builders(drafter, turn):
        assert mmspec.generate(target, drafter, max_new_tokens=24, tree=tree, **request).token_ids == _embedded_text()


@pytest.mark.parametrize("option", EMBEDDED)
def test_options_with_weights_reproduce_the_embedded_target(option):
    """The trees take turns."""
    same_embedded_text(option, list(EMBEDDED).index(option))


@pytest.mark.slow
@pytest.mark.parametrize("option", EMBEDDED)
def test_options_with_weights_reproduce_the_embedded_target_with_every_tree(option):
    same_embedded_text(option, None)


def _pictures() -> list:
    """An easy and a hard one."""
    return [zoo.sample(task, "test", 7) for task in ("scenes", "documents")]


@cache
def _embedded_target():
    return mmspec.load_target(loading.EMBEDDED_TARGET)


@cache
def _embedded_text() -> list[list[int]]:
    target, texts = _embedded_target(), []
    for one in _pictures():
        inputs = prepare(target, one.prompt, [one.image]).inputs
        ids = target.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        texts.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return texts


def test_every_exported_drafter_is_in_this_suite():
    exported = {value for value in vars(drafters).values() if isinstance(value, type) and issubclass(value, Drafter)}
    interfaces = {Drafter, DraftModelDrafter, FeatureDrafter, HeadDrafter, SessionDrafter, StepDrafter, NoDrafter}
    interfaces |= {BlockDrafter, LayerDrafter}
    interfaces |= {SharedEncoderDrafter}  # for models that attend to sound: tests/families/test_whisper.py
    interfaces |= {ParallelDrafter}  # it grows no trees: tests/drafters/test_parallel_drafting.py
    interfaces |= {CaptionedDrafter}  # for requests that bring captions: tests/drafters/test_mixture.py
    tested = {type(drafter_of(label, models.VISUAL[0], "sdpa")) for label in LABELS}
    tested |= {cls for _, cls, *_ in OF_ONE_TARGET.values()}
    missing = sorted(cls.__name__ for cls in exported - interfaces - tested)
    assert tested and not missing, f"add a config, or an entry in TINY_DRAFTERS, for {missing}"
