"""`mmspec train` from the command line, on a few answers of the embedded model."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import mmspec
from mmspec import cli
from mmspec.commands import progress
from mmspec.data import EmbeddedSource
from mmspec.models import precision
from mmspec.settings import configuration
from mmspec.training.distill import distill

pytestmark = [pytest.mark.product, pytest.mark.usefixtures("fresh_accelerator")]
FEW = ["steps=2", "batch_size=4", "rows=2", "held_out=2", "validate_every=2", "measured_prompts=0", "device=cpu"]
ELSEWHERE = {"gemma4_assistant"}  # for a Gemma 4, see tests/drafters/test_gemma4_assistant.py
RECIPES = sorted(set(configuration.groups()["train/recipe"]) - ELSEWHERE)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    target = mmspec.load_target("tiny")
    distill(target, EmbeddedSource(count=3), folder, max_new_tokens=12)
    return folder


QUICK = ("dflash", "eagle3", "medusa", "small_vlm")
"""Recipes of every kind; the others differ from these in settings."""


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RECIPES]
)
def test_every_recipe_trains_a_drafter_that_generates(recipe, answers, tmp_path, capsys):
    measured = int(recipe == "eagle3")  # with the real loop, over as many prompts
    out, settings = tmp_path / recipe, [f"recipe={recipe}", *FEW, f"measured_prompts={measured}", "json=true"]
    if recipe == "hivis":  # begins with a drafter of the first stage
        assert cli.main(["train", "--data", str(answers), "--output", str(tmp_path / "1"), "recipe=hivis1", *FEW]) == 0
        settings.append(f"recipe.drafter.name={tmp_path / '1' / 'best'}")
    assert cli.main(["train", "--data", str(answers), "--output", str(out), *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["simulated"]["mean_acceptance_length"] >= 1
    assert not measured or report["measured"]["mean_acceptance_length"] >= 1
    assert f"mmspec generate drafter={out}/best" in lines
    target = mmspec.load_target("tiny")
    drafter = mmspec.load_drafter(str(out / "best"), target)
    image, prompt, _ = mmspec.zoo.sample("charts", "test", 3)
    plain = mmspec.generate(target, None, prompt, [image], max_new_tokens=10)
    assert mmspec.generate(target, drafter, prompt, [image], max_new_tokens=10).token_ids == plain.token_ids


def test_the_last_line_can_be_typed(answers, tmp_path, capsys):
    folder = tmp_path / "a target"
    shutil.copytree(Path(mmspec.zoo.__file__).parent / "weights" / "tiny" / "target", folder)
    out = tmp_path / "run"
    chosen = [f"target={folder}", "target.device=null", "+target.device_map=cpu"]
    argv = ["train", *chosen, "recipe=eagle2", "--data", str(answers), "--output", str(out), *FEW]
    assert cli.main(argv) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last) == ["mmspec", "generate", *chosen, f"drafter={out / 'best'}"]


def test_it_says_what_was_trained(answers, tmp_path, capsys, monkeypatch):
    run = ["train", "--data", str(answers), "--output", str(tmp_path / "run"), "recipe=eagle3", *FEW]
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    assert cli.main(run) == 0
    lines = capsys.readouterr().err.splitlines()  # which is no terminal
    assert [line.partition(", loss ")[0] for line in lines] == ["1 of 2 steps", "2 of 2 steps"]
    assert cli.main(run) == 0
    assert f"going on in {tmp_path / 'run'}, which has 2 of 2 steps" in capsys.readouterr().err
    metadata = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["metadata"]
    assert metadata["recipe"]["name"] == "eagle3"
    assert metadata["recipe"]["optimizer"]["lr"] == 0.002


@pytest.mark.slow
def test_a_second_stage_begins_with_the_first_ones_weights(answers, tmp_path, capsys):
    def train(out, *settings):
        return cli.main(["train", "--data", str(answers), "--output", str(tmp_path / out), *FEW, *settings])

    assert train("1", "recipe=vispec1") == 0
    still = ["recipe=vispec", "recipe.optimizer.lr=0.0", f"start={tmp_path / '1' / 'best'}"]
    assert train("2", *still) == 0
    first, second = (load_file(tmp_path / out / "best" / "model.safetensors") for out in ("1", "2"))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    metadata = json.loads((tmp_path / "2" / "best" / "config.json").read_text())["metadata"]
    assert metadata["recipe"]["start"] == str(tmp_path / "1" / "best")
    capsys.readouterr()
    for settings, message in (
        (["recipe=eagle2"], "is a ViSpecDrafter, but the recipe trains a EagleDrafter"),
        (["recipe=vispec", "recipe.drafter.use_summary=false"], "use_summary is True there and False here"),
    ):
        assert train("3", *settings, f"start={tmp_path / '1' / 'best'}") == 2
        assert message in capsys.readouterr().err


LOSSES = sorted(configuration.groups()["train/loss"])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_group_of_losses_is_an_objective(loss):
    own = configuration.compose("train", ["recipe=eagle3"]).recipe
    config = configuration.compose("train", ["recipe=eagle3", f"loss={loss}"]).recipe
    objective = configuration.build(config.objective)
    assert config.drafter == own.drafter and config.objective.steps == own.objective.steps == objective.steps
    assert (config.objective.losses == own.objective.losses) == (loss == "recipe")
    assert [type(each).__name__ for each in objective.losses] == [
        each._target_.rpartition(".")[2] for each in config.objective.losses
    ]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(name, marks=[] if name in ("aligned", "dfly") else [pytest.mark.slow])
        for name in LOSSES
        if name != "recipe"
    ],
)
def test_a_trained_drafter_goes_on_with_other_losses(loss, answers, tmp_path, capsys):
    """The losses that the training had are written down with it, and named in its log."""
    run = ["train", "--data", str(answers), "--output", str(tmp_path), "recipe=eagle3", f"loss={loss}", *FEW]
    settings = ["start=tiny/eagle3", "recipe.objective.steps=3", "recipe.objective.losses.0.weight=0.5"]
    if loss == "dfly":
        settings[-1] = "recipe.objective.losses.0.weight={_target_:mmspec.training.losses.Ramp,first:0.5,last:0.1}"
    assert cli.main([*run, *settings, "json=true"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["simulated"]["mean_acceptance_length"] > 4, "two steps do not unlearn what it knew"
    recipe = json.loads((tmp_path / "best" / "config.json").read_text())["metadata"]["recipe"]
    weight = recipe["objective"]["losses"][0]["weight"]
    assert (weight["first"] if loss == "dfly" else weight) == 0.5
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert {"aligned": "AcceptedLength,KullbackLeibler", "dfly": "DPace HybridAcceptance,EndToEnd"}.get(
        loss, ""
    ) in header


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=alined"], "loss 'alined' is unknown. Did you mean 'aligned'?"),
        (["loss=dpace", "recipe.objective.losses.0.alpah=1"], "Did you mean 'recipe.objective.losses.0.alpha'?"),
        (["loss=dpace", "recipe.objective.losses.0.alpha=2"], "recipe.objective.losses.0.alpha=2 must be a number fr"),
        (["loss=aligned", "recipe.objective.losses.0.reach=writen"], "is unknown. Did you mean 'written'?"),
        (
            ["recipe.objective.losses=[{_target_: mmspec.training.losses.DPase}]"],
            "has no attribute 'DPase'. Did you mean 'DPace'?",
        ),
        (
            ["recipe.objective.losses=[{_target_: mmspec.training.losses.DPace, alhpa: 1}]"],
            "setting 'recipe.objective.losses.0.alhpa' is unknown. Did you mean 'alpha'?",
        ),
        (["recipe.objective.losses=[{alpha: 1}]"], "losses.0={'alpha': 1} is no loss; name its class as _target_"),
        (["--data", "nowhere"], "nowhere"),
        (["mixed_precision=fp8"], "mixed_precision=fp8 must be one of auto, no, bf16"),
        (["steps=0"], "steps=0 must be at least 1"),
        (["text_steps=1"], "none of the examples is without pictures; leave text_steps and picture_steps at 0"),
        (["recipe.drafter.draft_vocab_size=100000"], "draft_vocab_size=100000 must lie between 1 and"),
        (["recipe.drafter.bais=true"], "recipe.drafter.bais"),
        (["tracker=nonsense"], "tracker=nonsense is unknown"),
        (["tracker=wandb"], "tracker=wandb needs wandb, which is not installed"),
    ],
)
def test_bad_input_is_one_line(arguments, message, answers, tmp_path, capsys):
    given = [] if "--data" in arguments else ["--data", str(answers)]
    assert cli.main(["train", *given, "--output", str(tmp_path / "run"), *FEW[1:], *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert error.startswith("mmspec: ")


def test_a_data_set_without_answers(tmp_path, capsys):
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "What?"}]}] * 9))
    assert cli.main(["train", "--data", str(data), "--output", str(tmp_path / "run"), *FEW]) == 2
    assert "mmspec distill" in capsys.readouterr().err


@pytest.mark.parametrize(("made_for", "dtype", "passes"), [(True, "bfloat16", "bf16"), (False, "float32", "no")])
def test_the_number_format_suits_the_device(answers, tmp_path, monkeypatch, made_for, dtype, passes):
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda device: made_for)
    out = tmp_path / "out"
    run = ["train", "--data", str(answers), "--output", str(out), *FEW, "steps=1", "validate_every=1"]
    assert cli.main(run) == 0
    assert load_file(out / "best" / "model.safetensors").popitem()[1].dtype == getattr(torch, dtype)
    assert Accelerator().mixed_precision == passes
