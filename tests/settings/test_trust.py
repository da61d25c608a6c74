"""Code of others: a folder may name what is mmspec's, what the caller names and what is imported, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from models import llava
from omegaconf import OmegaConf
from refusals import refused

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compressors import Pool, Prune
from mmspec.drafters import Drafter, EagleDrafter
from mmspec.settings import configuration
from mmspec.settings.trust import named_class, permission, shipped_targets, unshipped

MODULE = """
from pathlib import Path

from mmspec.compressors import Prune
from mmspec.drafters import EagleDrafter

Path(__file__).with_name("ran").touch()


class Head(EagleDrafter):
    pass


class View(Prune):
    pass
"""


@pytest.fixture(scope="module")
def target():
    return Target(llava())


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Writes a module that leaves a mark when it is run into a folder on Python's path; says whether it has run."""

    def write(folder, name="others_code"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(MODULE)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return (folder / "ran").exists

    yield write
    sys.modules.pop("others_code", None)


def saved(target, folder, drafter="others_code.Head", compressor=None):
    """A folder with an EAGLE head that says it is of another class."""
    EagleDrafter(target, compressor=Prune(0.5)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"mmspec_drafter": drafter}
    config["compressor"] |= {"class": compressor or config["compressor"]["class"]}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    "names", [{}, {"drafter": EagleDrafter.__module__ + ".EagleDrafter", "compressor": "others_code.View"}]
)
@pytest.mark.parametrize("place", ["drafter", ".", "elsewhere"])
def test_a_folder_alone_runs_no_code(target, tmp_path, code, place, names):
    ran = code(tmp_path / place)
    name = saved(target, tmp_path / "drafter", **names)
    with pytest.raises(MMSpecError, match=r"could run anybody's code: .*drafter\.trusted=\[others_code\]") as error:
        mmspec.load_drafter(name, target)
    assert not ran() and "others_code" not in sys.modules and "\n" not in str(error.value)


def test_what_the_caller_trusts_is_imported_and_made(target, tmp_path, code):
    ran = code(tmp_path / "elsewhere")
    name = saved(target, tmp_path / "drafter", compressor="others_code.View")
    refused(lambda: mmspec.load_drafter(name, target, trusted=["others", "others_code.sub", ""]), "anybody's code")
    drafter = mmspec.load_drafter(name, target, trusted="others_code")
    assert ran() and type(drafter).__name__ == "Head" and type(drafter.compressor).__name__ == "View"
    assert torch.equal(drafter.fc.weight, mmspec.load_drafter(name, target).fc.weight)  # it is imported now


@pytest.mark.parametrize("place", ["drafter", "drafter/deeper", "."])
def test_not_even_a_trusted_name_is_taken_from_in_or_beside_the_folder(target, tmp_path, code, place):
    ran = code(tmp_path / place)
    name = saved(target, tmp_path / "drafter")
    refused(lambda: mmspec.load_drafter(name, target, trusted=["others_code"]), "lies in or beside ... pass")
    assert not ran()
    module = importlib.import_module("others_code")  # the caller's own doing
    assert type(mmspec.load_drafter(name, target)) is module.Head


def test_a_package_beside_the_folder_is_not_imported(target, tmp_path, code, monkeypatch):
    ran = code(tmp_path / "others_code", "__init__")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MMSpecError, match="lies in or beside"):
        mmspec.load_drafter(saved(target, tmp_path / "drafter"), target, trusted=["others_code"])
    assert not ran()


def test_a_class_of_ones_own_is_loaded_from_the_command_line_by_the_words_of_the_docs(target, tmp_path, code):
    ran = code(tmp_path / "elsewhere")
    name = saved(target, tmp_path / "drafter", compressor="others_code.View")

    def built(*settings):
        config = configuration.compose("generate", [f"drafter={name}", *settings])
        return configuration.build_drafter(config, target)

    refused(lambda: built(), "drafter.trusted=[others_code] on the command line")
    assert not ran()
    drafter = built("drafter.trusted=[others_code]")
    assert type(drafter).__module__ == "others_code"
    assert permission(drafter, drafter.compressor) == "drafter.trusted=[others_code]"
    assert permission(EagleDrafter(target), None) == ""


def test_classes_of_a_function_or_a_script_are_passed(target, tmp_path):
    class Head(EagleDrafter):
        pass

    Head(target).save_pretrained(tmp_path)
    with pytest.raises(MMSpecError, match="no importable path of a Drafter"):  # its path has `<locals>`
        mmspec.load_drafter(str(tmp_path), target)
    assert type(mmspec.load_drafter(str(tmp_path), target, classes=[Pool, Head])) is Head
    assert named_class("__main__.Head", Drafter, "it", classes=[Head]) is Head


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("os.system", "no Drafter"),
        ("mmspec.drafters.layer.nn.Linear", "no Drafter"),
        ("mmspec.load_drafter", "anybody's code"),
        ("mmspec.__main__.Drafter", "anybody's code"),
        ("antigravity.Drafter", "anybody's code"),
        ("os; system.Drafter", "no importable path"),
        ("a." * 10**6 + "Drafter", "no importable path"),
        (["os", "system"], "no importable path"),
    ],
)
def test_only_drafters_are_drafters(path, reason):
    refused(lambda: named_class(path, Drafter, "config.json"), reason)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("group", "path", "message"),
    [
        ("drafter", "os.system", "drafter._target_=os.system is no Drafter, and does not"),
        ("drafter", "mmspec.trees.Chain", "is no Drafter, and does not build one"),
        ("drafter", "mmspec.errors.listed", "made a str, which is no Drafter"),
        ("tree", "mmspec.verifiers.Greedy", "is no TreeBuilder, and does not build one"),
        ("verifier", "builtins.print", "is no Verifier, and does not build one"),
        ("compressor", "builtins.dict", "is no VisualCompressor, and does not build one"),
    ],
)
def test_what_is_built_is_what_the_group_is_for(group, path, message):
    node = OmegaConf.create({group: {"_target_": path} | ({"names": []} if "listed" in path else {})})
    refused(lambda: configuration.build(node[group]), message)


def test_a_configuration_from_elsewhere_may_have_built_what_mmspec_ships():
    node = {"drafter": {"_target_": "mmspec.load_drafter", "name": "tiny/eagle", "trusted": []}}
    assert unshipped(node) == [] and "mmspec.trees.DynamicTree" in shipped_targets()
    node["tree"] = [{"_target_": "os.system", "command": "true"}, {"a": {"_target_": "mine.Tree"}}]
    assert unshipped(node) == ["os.system", "mine.Tree"] and unshipped(node, "mine") == ["os.system"]
    for name in ("mmspec.settings.configuration.pkgutil.resolve_name", "mmspec.files.checkpoints.fill"):
        assert unshipped({"_target_": name}) == [name]
    node = {"_target_": "mmspec.load_target", "name": "a/b", "trust_remote_code": True}
    assert unshipped(node) == ["trust_remote_code=True"]
