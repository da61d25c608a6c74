"""Settings of heads: said once in a dataclass, from which signatures, checks, `--help` and folders follow."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from omegaconf import OmegaConf
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import target_of

from mmspec import MMSpecError, drafters
from mmspec.drafters import BlockDrafter, EagleDrafter, EagleSettings, FeatureDrafter, LayerDrafter
from mmspec.drafters.head import HeadDrafter
from mmspec.settings import configuration, options
from mmspec.settings.building import build
from mmspec.settings.source import stated_settings

FRAMES = (HeadDrafter, LayerDrafter, FeatureDrafter, BlockDrafter)
EXPORTED = [cls for cls in map(vars(drafters).get, drafters.__all__) if isinstance(cls, type)]
HEADS = [cls for cls in EXPORTED if issubclass(cls, FRAMES) and cls not in FRAMES]
NAMES = [(cls, field.name) for cls in HEADS for field in fields(cls.Settings)]


def made(cls, **settings):
    return cls(target_of("llama", "sdpa"), **settings)


def refused(call, *words: str) -> None:
    with pytest.raises(MMSpecError, match=".*".join(words)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", HEADS)
def test_what_the_settings_say_is_what_one_sees_and_what_is_saved(cls):
    names = [field.name for field in fields(cls.Settings)]
    others = ["target", "tree", *(["compressor"] if issubclass(cls, LayerDrafter) else [])]
    shown = inspect.signature(cls).parameters
    assert list(shown) == [*others, *names]
    defaults = vars(cls.Settings())
    assert {name: shown[name].default for name in names} == defaults
    stated = stated_settings(f"mmspec.drafters.{cls.__name__}")
    assert list(stated) == names and all(setting.description for setting in stated.values())
    assert {name: setting.default for name, setting in stated.items()} == {
        name: json.dumps(default).strip('"') for name, default in defaults.items()
    }
    config = made(cls).config()
    assert set(config) - {"compressor"} == set(names)
    for lacking in [set(), *({name} for name in names if name != "head")]:  # as older folders lack some
        kept = json.loads(json.dumps({name: value for name, value in config.items() if name not in lacking}))
        assert cls.from_config(kept, target_of("llama", "sdpa")).config() == config


@pytest.mark.parametrize(
    "recipe",
    [
        "eagle1",
        "eagle2",
        "eagle3",
        "msd",
        "hivis1",
        "specvlm",
        "vispec",
        "dream",
        "medusa",
        "v5e0",
        "mtp",
        "peagle",
        "dflash",
        "dspark",
        "domino",
        "lilicorr",
    ],
)
def test_a_recipe_lists_and_takes_every_setting(recipe):
    """Also those that its file leaves to the class."""
    config = configuration.compose("train", [f"recipe={recipe}"])
    cls = getattr(drafters, config.recipe.drafter._target_.rpartition(".")[2])
    listed = options.settings_of(configuration.option_files("train", "recipe"), recipe, "recipe")
    names = [field.name for field in fields(cls.Settings)]
    assert {f"recipe.drafter.{name}" for name in names} <= set(listed)
    changed = configuration.compose("train", [f"recipe={recipe}", f"recipe.drafter.{names[-1]}=null"])
    assert changed.recipe.drafter[names[-1]] is None


def test_settings_inside_a_setting_and_unknown_ones_on_the_command_line():
    deep = "recipe.drafter.head.num_key_value_heads=2"
    assert configuration.compose("train", ["recipe=eagle3", deep]).recipe.drafter.head == {"num_key_value_heads": 2}
    refused(
        lambda: configuration.compose("train", ["recipe=eagle2", "recipe.drafter.input_nrom=true"]),
        "setting 'recipe.drafter.input_nrom' is unknown",
        "'recipe.drafter.input_norm'",
    )


@pytest.mark.parametrize(("cls", "name"), NAMES)
def test_a_value_of_another_type_is_refused_by_name(cls, name):
    kinds = {field.name: str(field.type) for field in fields(cls.Settings)}
    wrong = "x" if "float" in kinds[name] else 2.5
    refused(lambda: made(cls, **{name: wrong}), f"^{cls.__name__}: {name}={wrong!r} must be (a |true|settings|'|None)")


@pytest.mark.parametrize("cls", HEADS)
def test_an_unknown_setting_is_refused_with_those_that_there_are(cls):
    known = fields(cls.Settings)[-1].name
    refused(lambda: made(cls, **{f"{known}s": 1}), f"{cls.__name__} has no argument '{known}s'", f"'{known}'")
    node = OmegaConf.create({"drafter": {"_target_": f"mmspec.drafters.{cls.__name__}", f"{known}s": 1}}).drafter
    refused(lambda: build(node, target=target_of("llama", "sdpa")), f"setting 'drafter.{known}s' is unknown", known)


def test_choices_are_refused_with_the_nearest():
    refused(lambda: made(drafters.Eagle3Drafter, rope="mropes"), "Eagle3Drafter: rope='mropes' is unknown", "'mrope'")
    refused(lambda: made(drafters.DreamDrafter, first_token="men"), "first_token='men' is unknown", "'mean'")


# Of a mixture the members are saved, each by itself.
@pytest.mark.parametrize("label", [label for label in TINY_DRAFTERS if label != "mixture"])
def test_every_drafter_that_is_saved_is_made_again_of_its_configuration(label):
    drafter = TINY_DRAFTERS[label]("llava", "sdpa")
    again = type(drafter).from_config(json.loads(json.dumps(drafter.config())), drafter.target)
    config = json.loads(json.dumps(again.config()))  # of a model, with what transformers adds to a configuration
    assert json.loads(json.dumps(type(drafter).from_config(config, drafter.target).config())) == config
    assert again.state_dict().keys() == drafter.state_dict().keys()


# One's own.


@dataclass(frozen=True, kw_only=True)
class ScaledSettings(EagleSettings):
    """Settings of an inventor."""

    scale: float = 0.5
    mode: Literal["up", "down"] = "up"


class Scaled(EagleDrafter):
    """One field and one method."""

    Settings = ScaledSettings

    def head_input(self, output):
        return output * self.settings.scale


class Named(Scaled):
    """With a constructor that passes on what it does not know."""

    def __init__(self, target, label: str = "mine", **others):
        super().__init__(target, **others)
        self.label = label


def test_a_setting_of_ones_own_is_one_field():
    drafter = made(Scaled, scale=2, mode="down", bias=False)
    assert drafter.config().items() >= {"scale": 2, "mode": "down", "bias": False}.items()
    assert Scaled.from_config(drafter.config(), drafter.target).config() == drafter.config()
    refused(lambda: made(Scaled, scale="x"), r"Scaled: scale='x' must be a number")
    refused(lambda: made(Scaled, mode="upp"), r"Scaled: mode='upp' is unknown.*Did you mean 'up'")
    shown = inspect.signature(Named).parameters
    assert list(shown)[:4] == ["target", "label", "tree", "compressor"] and {"scale", "mode", "bias"} < set(shown)
    assert made(Named, label="yours", scale=3.0).settings.scale == 3.0


def test_settings_without_the_decorator_are_refused():
    class Forgotten(EagleSettings):
        scale: float = 0.5

    with pytest.raises(TypeError, match=re.escape("Forgotten: ['scale'] are no fields: write @dataclass(frozen=True")):
        type("Lost", (EagleDrafter,), {"Settings": Forgotten})
