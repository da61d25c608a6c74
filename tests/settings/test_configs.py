"""Configurations: everything that ships composes and fits its class, and mistakes are answered with one line."""

from __future__ import annotations

import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from refusals import refused

from mmspec.commands.generate import GenerateSettings
from mmspec.compressors import VisualCompressor
from mmspec.drafters import Drafter
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import prepare_run
from mmspec.evaluation.sweep import parts_of
from mmspec.settings import configuration, options
from mmspec.settings.groups import FOLDER_GROUPS
from mmspec.trees import TreeBuilder
from mmspec.verifiers import Verifier

COMMANDS = sorted(file.stem for file in configuration.shipped_folder().glob("*.yaml"))
OPTIONS = [(group, option) for group, options in configuration.groups().items() for option in options]
NULL_OPTIONS = {("drafter", "none"), ("tree", "default"), ("compressor", "default"), ("verifier", "auto")}
WEIGHTLESS = {"tree": TreeBuilder, "compressor": VisualCompressor, "verifier": Verifier}
NO_KEY = {"experiment", "loss", "train/loss"}  # groups that set the keys of others
GIVEN_BY_THE_CALLER = {
    "drafter": {"target": object()},
    "engine": dict.fromkeys(("target", "drafter", "tree", "verifier", "sampling", "max_new_tokens")),
}


class Widget(Drafter):
    """Stands for a user's own class in a user's own package. Anything is a target to it."""

    @classmethod
    def expect_parts(cls, given):
        assert given

    def __init__(self, target, size: int, parts: list | None = None):
        super().__init__(target)
        self.size, self.parts = size, parts
        if size < 0:
            raise MMSpecError(f"size is {size} but must not be negative")


def node(**values):
    return OmegaConf.create({"_target_": f"{__name__}.Widget", **values})


def commands_with(group: str) -> list[tuple[str, str]]:
    """The commands that have a group, with what each of them calls it."""
    names = [(command, group.removeprefix(f"{command}/")) for command in COMMANDS]
    return [(command, name) for command, name in names if name in configuration.settings(command)[0]]


PREFERRED = ("generate", *(command for command in COMMANDS if command != "generate"))


@cache
def composed(command: str) -> dict[tuple[str, str], Any]:
    """What a command makes of each option of the groups that no earlier command has: the options of all groups at once,
    the first of each, then the second of each."""
    earlier = PREFERRED[: PREFERRED.index(command)]
    mine = {}
    for group, option in OPTIONS:
        names = dict(commands_with(group))
        if command in names and not any(other in names for other in earlier):
            mine.setdefault((group, names[command]), []).append(option)
    found = {}
    for place in range(max(map(len, mine.values()), default=0)):
        chosen = {pair: options[place] for pair, options in mine.items() if place < len(options)}
        config = configuration.compose(command, [f"{name}={option}" for (_, name), option in chosen.items()])
        found |= {(group, option): config.get(name) for (group, name), option in chosen.items()}
    return found


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_class(group, option):
    names = dict(commands_with(group))
    found = composed(next(command for command in PREFERRED if command in names))[group, option]
    if group in NO_KEY:
        return
    if (group, option) in NULL_OPTIONS:
        assert found is None
    elif "_target_" in found:
        values = OmegaConf.to_container(found, resolve=True)
        factory = pkgutil.resolve_name(values.pop("_target_"))
        inspect.signature(factory).bind(**values, **GIVEN_BY_THE_CALLER.get(group, {}))
    if group in WEIGHTLESS and found is not None:
        assert isinstance(configuration.build(found), WEIGHTLESS[group])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_with_an_option_of_each_of_its_groups(command):
    """The last of each, which is seldom the default; nothing in an option's file depends on the command."""
    last = {group: option for group, option in OPTIONS if group != "experiment"}
    chosen = [f"{name}={last[group]}" for group in last for other, name in commands_with(group) if other == command]
    assert configuration.compose(command, chosen)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_key_is_described(command):
    described = configuration.groups()
    assert all(summary for options in described.values() for summary in options.values())
    chosen, keys = configuration.settings(command)
    composed = configuration.compose(command)
    assert set(chosen) - NO_KEY | set(keys) == set(composed)
    assert all(comment for _, comment in (chosen | keys).values())
    for group, (default, _) in chosen.items():
        assert default in configuration.options_of(command, group, described)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_every_option_is_listed_and_described(command):
    """Listed is what composing finds, but for what only takes the value of a key, and for what groups set outside."""
    for group in configuration.settings(command)[0]:
        files = configuration.option_files(command, group)
        assert set(files) == set(configuration.options_of(command, group, configuration.groups()))
        for option in files:
            found = options.settings_of(files, option, group)
            assert [key for key, setting in found.items() if not setting.comment] == [], f"{group}={option}"
    if command == "train":  # the deepest of all
        config = configuration.compose(command, ["recipe=eagle1"])
        leaves = {key for key in configuration._keys(config) if key.startswith("recipe.")}
        leaves -= {key for key in leaves if any(other.startswith(f"{key}.") for other in leaves)}
        listed = options.settings_of(configuration.option_files(command, "recipe"), "eagle1", "recipe")
        assert {key for key, setting in listed.items() if setting.written} == leaves


MANY_PARTS = ("full", "design_card", "image_methods")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=[pytest.mark.slow] if option in MANY_PARTS else [])
        for group, option in OPTIONS
        if group == "experiment"
    ],
)
@pytest.mark.product
def test_every_experiment_lists_methods_that_compose(option):
    overrides = [f"experiment={option}", "drafter=ngram"] if option == "one" else [f"experiment={option}"]
    for run in parts_of(overrides).values() or [overrides]:
        _, _, methods = prepare_run(run)
        assert methods[0].label == "plain" and len(methods) > 1


def test_a_setting_of_another_option_says_whose_it_is():
    refused(lambda: configuration.compose("generate", ["tree=chain", "tree.depth=3"]), "tree=chain has none of this")


def test_overrides_reach_groups_and_keys():
    config = configuration.compose("generate", ["tree=chain", "tree.length=3", "dtype=bfloat16", "top_k=5"])
    assert config.tree.length == 3 and config.top_k == 5
    assert config.target.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drafter=draftmodel", "drafter 'draftmodel' is unknown. Did you mean"),
        ("drafter=mtp", "There is a recipe of this name: mmspec train recipe=mtp output=FOLDER trains one"),
        ("verifier=greedy,auto", "verifier 'greedy,auto' is unknown."),
        ("max_new_token=3", "setting 'max_new_token' is unknown. Did you mean"),
        ("drafter.nam=x", "setting 'drafter.nam' is unknown. Did you mean"),
        ("target=llava", "pretrained, tiny, tiny-video. Or name a folder, or a hub id"),
        ("tree.depth=3", "setting 'tree.depth' is unknown ... choose tree=best_first or"),
        ("drafter=/no/such folder", "drafter=/no/such folder: there is no such folder"),
        ("describe", "'describe' is not of the form key=value; text goes to --prompt"),
        ("temperature=[1", "no viable alternative"),
        ("top_k=${nothing}", "nothing"),
        ("temperature.low=1", "setting 'temperature.low' is unknown. Did you mean"),
        ("~tree.length", "setting 'tree.length' is unknown: tree=default has no settings"),
        ("experiment=x", "mmspec generate has no group 'experiment'. Available"),
    ],
)
def test_mistakes_are_one_line_that_names_the_way_out(override, message):
    refused(lambda: configuration.compose("generate", [override]), message)


@pytest.mark.parametrize(
    "name", ["plain", "with space", "a=b", "a,b", "it's", 'say "hi"', "${dtype}", "[x]", "ngram.d"]
)
def test_a_folder_stands_for_the_pretrained_option(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    for value in (tmp_path / name, f"./{name}"):
        monkeypatch.chdir(tmp_path)
        config = configuration.compose("generate", [f"{group}={value}" for group in FOLDER_GROUPS])
        for group in FOLDER_GROUPS:
            resolved = OmegaConf.to_container(config[group], resolve=True)
            assert resolved["_target_"] == f"mmspec.load_{group}"
            assert Path(resolved["name"]).resolve() == tmp_path / name


def test_an_option_wins_over_a_folder_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "ngram").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configuration.compose("generate", ["drafter=ngram"]).drafter._target_.endswith("NGramDrafter")
    assert configuration.compose("generate", ["drafter=./ngram"]).drafter.name == "ngram"


@pytest.mark.parametrize("name", ["tiny/draft_model", "some-org/Some.Model-7B"])
def test_a_hub_id_stands_for_the_pretrained_option(name):
    assert configuration.compose("generate", [f"drafter={name}"]).drafter.name == name


def test_a_path_is_taken_as_it_is_in_any_setting(tmp_path):
    folder = tmp_path / "a, b=c"
    folder.mkdir()
    config = configuration.compose("generate", ["target=pretrained", f"target.name={folder}"])
    assert config.target.name == str(folder)
    refused(lambda: configuration.compose("generate", [f"target.nam={folder}"]), "setting 'target.nam' is unknown")


@pytest.fixture
def own_commands(tmp_path, monkeypatch):
    """Configurations of a command `bake` with a group of its own, next to a group that all commands may have."""
    files = {
        "bake.yaml": "defaults:\n  - bake/recipe: bread # what\n  - oven: gas\n  - _self_\n\nseed: 0 # for luck\n",
        "boil.yaml": "defaults:\n  - bake/recipe@meal: bread # what\n  - _self_\n",
        "bake/recipe/bread.yaml": "# white\nflour: 500\n",
        "bake/recipe/old/rye.yaml": "# dark\nflour: 400\n",
        "bake/recipe/cake.yaml": "# @package _global_\n# sweet\nrecipe:\n  sugar: 100\n",
        "oven/gas.yaml": "# blue\nheat: 1\n",
        "recipe/none.yaml": "# nobody's\nflour: 0\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("mmspec.settings.groups.shipped_folder", lambda: tmp_path)


def test_a_group_of_one_command_needs_no_path(own_commands):
    assert configuration.groups()["bake/recipe"] == {"bread": "white", "cake": "sweet"}
    assert configuration.settings("bake")[0] == {"recipe": ("bread", "what"), "oven": ("gas", "")}
    assert configuration.settings("bake")[1] == {"seed": ("0", "for luck")}
    options = configuration.options_of("bake", "recipe", configuration.groups())
    assert options == {"bread": "white", "cake": "sweet", "old/rye": "dark"}
    assert configuration.compose("bake").bake.recipe.flour == 500
    for group in ("recipe", "bake/recipe"):
        assert configuration.compose("bake", [f"{group}=old/rye"]).bake.recipe.flour == 400
        config = configuration.compose("bake", [f"{group}=cake", "recipe.sugar=50", "oven.heat=3", "seed=1"])
        assert (config.recipe.sugar, config.oven.heat, config.seed) == (50, 3, 1)
    assert configuration.compose("boil", ["bake/recipe=old/rye", "meal.flour=1"]).meal.flour == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=pie", "recipe 'pie' is unknown. Available: bread, cake, old/rye"),
        ("recipe=none", "recipe 'none' is unknown."),
        ("bake.recipe.flower=1", "setting 'bake.recipe.flower' is unknown. Did you mean"),
        ("recip=bread", "setting 'recip' is unknown. Did you mean 'recipe'?"),
        ("seeds=1", "setting 'seeds' is unknown. Did you mean 'seed'?"),
    ],
)
def test_mistakes_in_a_group_of_one_command(override, message, own_commands):
    refused(lambda: configuration.compose("bake", [override]), message)


def test_a_group_that_a_command_lacks_is_named(own_commands):
    refused(lambda: configuration.compose("boil", ["oven=gas"]), "mmspec boil has no group 'oven'. Available")


@pytest.mark.parametrize("name", ["mine", "mine, and='yours'", "${x}"])
def test_config_dir_adds_options(name, tmp_path):
    own = tmp_path / name
    (own / "drafter" / "deep").mkdir(parents=True)
    (own / "drafter" / "widget.yaml").write_text(f"# a widget\n_target_: {__name__}.Widget\nsize: 2\n")
    (own / "drafter" / "deep" / "widget.yaml").write_text(f"_target_: {__name__}.Widget\nsize: 3\n")
    assert configuration.groups(own)["drafter"]["widget"] == "a widget"
    config = configuration.compose("generate", ["drafter=widget", "drafter.size=5"], own)
    assert configuration.build(config.drafter, target="t").size == 5
    assert configuration.compose("generate", ["drafter=deep/widget"], own).drafter.size == 3
    assert configuration.compose("generate", [], own).drafter._target_ == "mmspec.load_drafter"


def test_config_dir_must_exist_and_not_shadow(tmp_path):
    refused(lambda: configuration.compose("generate", [], tmp_path / "absent"), "there is no such folder")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "chain.yaml").write_text("length: 1\n")
    refused(lambda: configuration.compose("generate", [], tmp_path), "tree/chain.yaml exists in mmspec too")


def test_a_broken_file_of_the_users_is_one_line(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "broken.yaml").write_text("length: [1\n")
    refused(lambda: configuration.compose("generate", ["tree=broken"], tmp_path), "broken.yaml")


def test_composing_leaves_no_global_state():
    from hydra.core.global_hydra import GlobalHydra

    configuration.compose("generate")
    assert not GlobalHydra.instance().is_initialized()


def test_types_of_keys_are_checked():
    settings = configuration.typed(configuration.compose("generate", ["temperature=1", "top_k=null"]), GenerateSettings)
    assert settings.temperature == 1.0 and settings.top_k is None
    for override in ("max_new_tokens=abc", "max_new_tokens=3.5", "temperature=null", "top_k=[1]", "json=maybe"):
        with pytest.raises(MMSpecError, match="is not valid: it must be of type"):
            configuration.typed(configuration.compose("generate", [override]), GenerateSettings)


def test_build_passes_objects_through_and_builds_what_is_inside():
    target = object()
    built = configuration.build(node(size=1, parts=[{"_target_": "fractions.Fraction", "numerator": 3}]), target=target)
    assert built.target is target
    assert built.parts == [3] and type(built.parts) is list
    assert configuration.build(None) is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (node(size=-1), "size is -1 but must not be negative"),
        (node(size=1, parts=[{"_target_": f"{__name__}.Widget", "target": 0, "size": -2}]), "size is -2"),
        (node(size=1, parts=[{"_target_": "fractions.Nothing"}]), "fractions.Nothing"),
        (node(sizes=1), "does not take these settings: missing a required argument"),
        (node(size="???"), "needs a value for size"),
        (OmegaConf.create({"_target_": "fractions.Nothing"}), "_target_ 'fractions.Nothing' cannot be imported"),
        (
            OmegaConf.create({"_target_": "no_such_package.Thing"}),
            "_target_ 'no_such_package.Thing' cannot be imported",
        ),
        (OmegaConf.create({"size": 1}), "has no _target_"),
    ],
)
def test_build_explains_what_is_wrong(broken, message):
    refused(lambda: configuration.build(broken, target=0), message)


def test_arguments_of_the_caller_win():
    assert configuration.build(node(size="???"), target=0, size=3).size == 3
    assert configuration.build(node(size=2), target=0, size=3).size == 3
