"""On the command line errors name options; in Python they name classes."""

from __future__ import annotations

import pytest

from mmspec import MMSpecError, cli
from mmspec.settings import configuration
from mmspec.settings.wording import at_place, in_options
from mmspec.speed import AutoTree


def wrong(capsys, *argv: str) -> str:
    assert cli.main(list(argv)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mmspec: ") and shown.count("\n") == 1
    return shown.removeprefix("mmspec: ").rstrip("\n")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tree=auto", "tree.margin=-1"], "tree.margin=-1 must be a number of at least 0"),
        (["tree=chain", "tree.length=0"], "tree.length=0 must be a positive integer"),
        (["tree=dynamic", "+tree.deep=3"], "setting 'tree.deep' is unknown. Did you mean 'depth'? Available: depth"),
        (["tree=static", "tree.paths=bush"], "tree=static preset 'bush' is unknown."),
        (
            ["verifier=synthetic", "verifier.acceptance_rate=2"],
            "verifier.acceptance_rate=2 must be a number from 0 to 1",
        ),
        (
            ["verifier=greedy", "temperature=1"],
            "verifier=greedy verifies at temperature 0 only, not 1.0; use verifier=point_mass",
        ),
        (
            ["drafter=draft_model", "tree=dynamic", "verifier=rejection", "temperature=1"],
            "tree=dynamic keeps the likeliest nodes, so they are no longer draws from q and verifier=rejection would "
            "not be lossless; use verifier=point_mass, or tree=chain or tree=static",
        ),
        (["drafter=ngram", "drafter.min_ngram=9"], "drafter.min_ngram=9 is larger than drafter.max_ngram=4"),
        (["compressor=prune", "compressor.keep=2"], "compressor.keep=2 must be a number above 0"),
        (["drafter=none", "tree=chain"], "tree= shapes what a drafter proposes, but drafter=none: choose a drafter"),
        (["drafter=none", "compressor=hide"], "compressor= changes what a drafter sees, but drafter=none"),
        (["drafter=pretrained"], "drafter needs a value for drafter.name"),
        (["tree.length=3"], "setting 'tree.length' is unknown: tree=default has no settings; choose tree=chain for it"),
    ],
)
def test_what_is_wrong_is_called_what_was_typed(overrides, message, capsys):
    assert message in wrong(capsys, "generate", *overrides, "max_new_tokens=2")


def test_python_keeps_its_own_names():
    with pytest.raises(MMSpecError, match=r"^AutoTree: margin=-1 must be a number"):
        AutoTree(margin=-1)


def test_settings_deep_inside_a_configuration():
    config = configuration.compose("train", ["recipe=specvlm", "recipe.drafter.compressor.mode=x"])
    with pytest.raises(MMSpecError, match=r"^recipe\.drafter\.compressor\.mode='x' is unknown\. Available: conc"):
        configuration.build(config.recipe.drafter, target=None)
    values = {"_target_": "a.Outer", "size": 1, "dtype": "${dtype}", "parts": [{"_target_": "b.Inner", "size": 2}]}
    assert at_place("Outer: size=1 is odd", "group", values) == "group.size=1 is odd"
    assert at_place("Inner: size=2 is even", "group", values) == "group.parts.0.size=2 is even"
    assert at_place("the best size=1, dtype=x", "group", values) == "the best group.size=1, dtype=x"
    assert at_place("Outer: size=1 is odd", "", values) == "Outer: size=1 is odd"


def test_only_names_of_classes_are_replaced():
    classes = {"Chain": "tree=chain", "Greedy": "verifier=greedy", "AutoTree": "tree=auto"}
    said = "AutoTree(remember=True) needs Chain or mmspec.verifiers.Greedy(), leave json=False"
    assert in_options(said, classes) == "tree.remember=true needs tree=chain or verifier=greedy, leave json=false"
    for path in ("'Chain' is no folder", "/data/Chain/x", "a ChainSaw", "my.Chain"):
        assert in_options(path, classes) == path


def test_options_of_ones_own_are_known(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "bush.yaml").write_text("_target_: garden.Bush\nsize: 3 # of it\n")
    (tmp_path / "tree" / "broken.yaml").write_text("size: [1\n")
    assert configuration.class_names("generate", tmp_path)["Bush"] == "tree=bush"
    inside = configuration.chosen_settings("generate", ["tree=bush"], tmp_path)[("tree", "bush")]
    assert [(each.key, each.default, each.comment) for each in inside.values()] == [("tree.size", "3", "of it")]
