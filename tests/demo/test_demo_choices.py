"""What the page offers: the options of the configuration groups, those of the command line, and nothing else."""

from __future__ import annotations

import pytest

from mmspec.demo.choices import Choices
from mmspec.errors import MMSpecError
from mmspec.settings import configuration

pytestmark = pytest.mark.product


def test_every_option_that_needs_no_value_is_offered():
    choices, found = Choices(), configuration.groups()
    assert list(choices.groups) == list(configuration.settings("demo")[0])
    for name, group in choices.groups.items():
        assert set(found[name]) - set(group.options) == ({"pretrained"} & set(found[name]))
        assert all(group.options.values()) and group.start in group.options


def test_what_the_command_line_chose_keeps_its_settings():
    choices = Choices(["tree=chain", "tree.length=3", "dtype=bfloat16"])
    assert choices.groups["tree"].start == "chain"
    assert choices.node("tree", "chain").length == 3
    # Settings of one option are none of another's, but the keys of the command are everybody's.
    assert choices.node("tree", "dynamic").depth == 5
    assert choices.node("target", "tiny").dtype == "bfloat16"
    assert choices.node("tree", "default") is None


def test_a_folder_of_the_command_line_is_an_option(tmp_path):
    choices = Choices([f"drafter={tmp_path}"])
    group = choices.groups["drafter"]
    assert group.start == str(tmp_path) and "pretrained" not in group.options
    assert choices.node("drafter", str(tmp_path)).name == str(tmp_path)
    assert choices.node("drafter", "ngram")._target_.endswith("NGramDrafter")
    choices.check({name: group.start for name, group in choices.groups.items()})


def test_options_of_ones_own_are_offered(tmp_path):
    (tmp_path / "drafter").mkdir()
    (tmp_path / "drafter" / "mine.yaml").write_text("# my own\n_target_: builtins.dict\n")
    (tmp_path / "drafter" / "open.yaml").write_text("# lacks a value\n_target_: builtins.dict\nname: ???\n")
    choices = Choices(config_dir=str(tmp_path))
    assert choices.groups["drafter"].options["mine"] == "my own"
    assert "open" not in choices.groups["drafter"].options
    assert choices.node("drafter", "mine")._target_ == "builtins.dict"


@pytest.mark.parametrize("option", ["pretrained", "/etc", "some-org/some-model", "egle3", "", None])
def test_the_page_cannot_say_what_is_loaded(option):
    choices = Choices()
    chosen = {name: group.start for name, group in choices.groups.items()} | {"drafter": option}
    with pytest.raises(MMSpecError, match=f"drafter {option!r} is not offered here"):
        choices.check(chosen)


def test_a_mistake_on_the_command_line_is_named():
    with pytest.raises(MMSpecError, match="tree 'chian' is unknown. Did you mean 'chain'"):
        Choices(["tree=chian"])
