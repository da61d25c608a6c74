"""What a kill or a full disk leaves at the very beginning is begun again; one training at a time writes to a folder."""

from __future__ import annotations

import json

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from tiny_training import Answered, eagle3, logged, same_weights, target, trainer

import mmspec
from mmspec.errors import MMSpecError

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SHORT = {"steps": 2, "save_every": 1, "validate_every": 1, "batch_size": 2, "depth": 1, "measured_prompts": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder, **SHORT).run()
    return folder


@pytest.mark.parametrize("content", ["", '{"recipe": {'])
def test_half_a_first_file_is_begun_again(whole, content, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.json").write_text(content)
    (tmp_path / "run" / "training.json.unfinished").write_text(content)
    (tmp_path / "run" / "log.csv").write_text("step,sec")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features.json").write_text(content)
    (tmp_path / "cache" / "features-00000.safetensors.unfinished").write_text("half")
    trainer(tmp_path / "run", cache=tmp_path / "cache", **SHORT).run()
    assert logged(tmp_path / "run")[0].keys() == logged(whole)[0].keys()
    assert [row["step"] for row in logged(tmp_path / "run")] == ["1", "2"]
    assert json.loads((tmp_path / "run" / "training.json").read_text()) == json.loads(
        (whole / "training.json").read_text()
    )
    assert json.loads((tmp_path / "cache" / "features.json").read_text())["examples"] == 24


def test_torn_lines_are_written_again(whole, tmp_path):
    def kill(step, _):
        if step == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        trainer(tmp_path, **SHORT).run(kill)
    for name, torn in (("log.csv", "2,0.1,2."), ("validation.jsonl", '{"step": 2, "simul')):
        with (tmp_path / name).open("a") as file:
            file.write("garbage of an older version\n" + torn)
    (tmp_path / "best").rename(tmp_path / "best.old")  # killed between the two renamings
    trainer(tmp_path, **SHORT).run()
    assert logged(tmp_path) == logged(whole)
    for name in ("training.json", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert same_weights(whole, tmp_path)
    assert (tmp_path / "best" / "config.json").exists() and not (tmp_path / "best.old").exists()


def test_a_damaged_identity_beside_a_state_is_refused(tmp_path):
    trainer(tmp_path, cache=tmp_path / "cache", **SHORT).run()
    (tmp_path / "training.json").write_text("")
    refused(lambda: trainer(tmp_path, **SHORT), "training.json' is damaged, ... delete that file to go on")
    (tmp_path / "training.json").unlink()
    assert trainer(tmp_path, **SHORT).step == 2
    (tmp_path / "cache" / "features.json").write_text("")
    refused(lambda: trainer(tmp_path / "other", cache=tmp_path / "cache", **SHORT), "features.json' is damaged,")


def test_a_training_that_has_ended_reports_again(tmp_path):
    training = trainer(tmp_path, **SHORT)
    report = training.run()
    assert trainer(tmp_path, **SHORT).run() == report
    (tmp_path / "last" / "config.json").unlink()
    assert trainer(tmp_path, **SHORT).run()["simulated"] == report["simulated"]


def test_a_second_training_into_a_folder_is_refused(tmp_path):
    first = trainer(tmp_path, **SHORT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(lambda: trainer(tmp_path, **SHORT), "is being written by another process: wait for it, or")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    said = []

    def second(step, _):
        with pytest.raises(MMSpecError) as caught:
            trainer(tmp_path, **SHORT)
        said.append(str(caught.value))

    first.run(second)
    assert len(said) == 2
    assert trainer(tmp_path, **SHORT).step == 2


def test_a_training_that_was_refused_holds_no_folder(tmp_path):
    refused(lambda: trainer(tmp_path, schedule="cosin"), "schedule='cosin'")
    (tmp_path / "training.json").unlink()
    trainer(tmp_path)


# Beginning with a drafter that was trained before


def test_a_trained_drafter_keeps_its_vocabulary_and_its_head(tmp_path):
    """Its head is for the tokens that it was trained for; others would get random or untrained rows."""
    reduced = {"draft_vocab_size": 30}
    trainer(tmp_path / "1", eagle3, drafter=reduced, **SHORT).run()
    first = load_file(tmp_path / "1" / "best" / "model.safetensors")

    class Other(Answered):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return type(example)(example.id, example.prompt, example.images, example.task, None, (70, 71, 72, 73))

    def trained():
        _, aim = eagle3()
        return mmspec.load_drafter(str(tmp_path / "1" / "best"), target()), aim

    training = trainer(tmp_path / "2", trained, examples=Other(), **SHORT)
    assert torch.equal(training.drafter.d2t.cpu(), first["d2t"])
    assert torch.equal(training.drafter.lm_head.weight.detach().cpu(), first["lm_head.weight"].float())
    fresh = trainer(tmp_path / "3", eagle3, drafter=reduced, examples=Other(), **SHORT)
    assert {70, 71, 72, 73} <= set(fresh.drafter.draft_vocabulary.tolist())
