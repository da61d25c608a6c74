"""The trainer: resuming is exact, and whatever goes wrong keeps what is done. `test_parallel` has several processes."""

from __future__ import annotations

import json
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from refusals import refused
from safetensors.torch import load_file
from tiny_training import (
    Answered,
    Rule,
    eagle,
    eagle3,
    logged,
    medusa,
    same_weights,
    settings,
    target,
    trainer,
    weights,
)

import mmspec
from mmspec.drafters import base as drafters_base
from mmspec.errors import MMSpecError
from mmspec.training import Objective, losses, state
from mmspec.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder).run()
    return folder


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [1, 2, 5, 7])
def test_a_killed_training_ends_with_the_same_weights(whole, tmp_path, step):
    def kill(number, _):
        if number == step:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path).run(kill)
    again = trainer(tmp_path)
    assert again.step == 3 * (step // 3) if step % 3 else again.step == step - 3
    again.run()
    assert same_weights(whole, tmp_path) and logged(tmp_path) == logged(whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_the_step_and_saves(whole, tmp_path, name):
    def interrupt(number, _):
        if number == 4:
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).run(interrupt)
    assert signal.getsignal(getattr(signal, name)) is before
    again = trainer(tmp_path)
    assert again.step == 4
    again.run()
    assert same_weights(whole, tmp_path)


def test_nothing_of_the_trainee_is_left_when_the_exchange_among_processes_ends(tmp_path, monkeypatch):
    """torch's reducer in it, as the last to hold the group of the processes, waits for ever now and then."""
    ended, left = trainer(tmp_path, steps=1), []
    ended.run()
    trainee = weakref.ref(ended.trainee)
    monkeypatch.setattr(AcceleratorState, "destroy_process_group", lambda *_: left.append(trainee()))
    ended.end()
    assert left == [None]


def test_passes_of_any_size_make_the_same_step(whole, tmp_path):
    trainer(tmp_path, rows=4).run()
    for left, right in zip(logged(whole), logged(tmp_path), strict=True):
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-4)


def test_what_it_saves_is_what_it_measured(whole):
    drafter = mmspec.load_drafter(str(whole / "best"), target())
    config = json.loads((whole / "best" / "config.json").read_text())
    assert config["metadata"]["validation"]["simulated"]["mean_acceptance_length"] >= 1
    assert set(config["metadata"]["validation"]["tasks"]) <= set(mmspec.zoo.TASKS)
    example = Answered()[1]
    image = mmspec.zoo.sample("charts", "train", 1).image
    plain = mmspec.generate(target(), None, example.prompt, [image], max_new_tokens=12)
    drafted = mmspec.generate(target(), drafter, example.prompt, [image], max_new_tokens=12)
    assert drafted.token_ids == plain.token_ids
    last = load_file(whole / "last" / "model.safetensors")
    for name, tensor in last.items():
        assert torch.equal(tensor, weights(whole)[f"weights/{name}"]), name


def test_best_is_the_one_with_the_longest_chains(whole):
    lines = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    best = max(line["simulated"]["mean_acceptance_length"] for line in lines)
    config = json.loads((whole / "best" / "config.json").read_text())
    assert config["metadata"]["validation"]["simulated"]["mean_acceptance_length"] == best


def test_training_learns(tmp_path):
    """Thirty steps over answers that follow a rule: agreement rises from nothing."""

    objective = Objective([losses.CrossEntropy()])
    training = trainer(tmp_path, examples=Rule(), objective=objective, steps=30, validate_every=30, save_every=30)
    report = training.run()
    rows = logged(tmp_path)
    assert float(rows[-1]["right 0"]) > 0.5 > float(rows[0]["right 0"])
    assert report["simulated"]["mean_acceptance_length"] > 1.5


@pytest.mark.parametrize("loss", [losses.DPace(), losses.AcceptedLength()], ids=lambda loss: loss.name)
def test_losses_of_chains_teach(tmp_path, loss):
    """From nothing. D-PACE learns what was written, whose drafts are then longer; acceptance what the target thinks."""
    changes = {"steps": 30, "validate_every": 30, "save_every": 30, "measured_prompts": 1}
    report = trainer(tmp_path, eagle3, Rule(), objective=Objective([loss], steps=3), **changes).run()
    rows = logged(tmp_path)
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert float(rows[-1][loss.name]) == pytest.approx(float(rows[-1]["loss"]), rel=1e-5)
    assert isinstance(loss, losses.AcceptedLength) or report["simulated"]["mean_acceptance_length"] > 1.5
    assert report["measured"]["mean_acceptance_length"] >= 1 and report["measured"]["prompts"] >= 1


def test_weights_that_change_go_on_where_they_were(tmp_path):
    """A training that was killed while one loss hands over to another ends as one that was not."""

    def begin(name: str) -> Trainer:
        terms = [
            losses.CrossEntropy(losses.Ramp(1.0, 0.0)),
            losses.AcceptedLength(losses.Ramp(0.0, 1.0, begin=0.5, end=0.5)),
        ]
        return trainer(tmp_path / name, eagle3, objective=Objective(terms, steps=3), validate_every=8)

    def kill(number, _):
        if number == 5:
            raise Killed

    begin("whole").run()
    with pytest.raises(Killed):
        begin("killed").run(kill)
    again = begin("killed")
    assert again.step == 3
    again.run()
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed")
    for row in logged(tmp_path / "whole"):
        done = (int(row["step"]) - 1) / 8
        wanted = (1 - done) * float(row["CrossEntropy"]) + (done >= 0.5) * float(row["AcceptedLength"])
        assert float(row["loss"]) == pytest.approx(wanted, rel=1e-4)


def test_reduced_vocabulary_is_that_of_the_answers(tmp_path):
    training = trainer(tmp_path, eagle3, drafter={"draft_vocab_size": 30}, steps=2)
    counts = torch.zeros(target().vocab_size)
    for number in training.order.numbers:
        for token in Answered()[number].answer_ids:
            counts[token] += 1
    chosen = training.drafter.draft_vocabulary
    assert counts[chosen].min() >= counts.scatter(0, chosen, -1.0).max() or counts[chosen].sum() == counts.sum()
    training.run()
    drafter = mmspec.load_drafter(str(tmp_path / "last"), target())
    assert torch.equal(drafter.draft_vocabulary, chosen)


def test_weights_that_no_answer_reaches_have_a_gradient_of_zero(tmp_path):
    """So that every process has a gradient of every weight to exchange, whatever its answers are."""
    training = trainer(tmp_path, medusa, examples=Answered(longest=3), steps=1, held_out=12)
    assert {len(Answered(longest=3)[number].answer_ids) for number in range(24)} == {3}
    seen = {}
    training.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.update(
            {name: parameter.grad.abs().sum().item() for name, parameter in training.drafter.named_parameters()}
        )
    )
    training.run()
    reached = {name.split(".")[1] for name, value in seen.items() if value > 0}
    assert reached == {"0", "1"} and len(seen) == len(list(training.drafter.parameters()))


def test_only_the_drafter_changes(tmp_path):
    before = {name: tensor.clone() for name, tensor in target().model.state_dict().items()}
    trainer(tmp_path, steps=2).run()
    for name, tensor in target().model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert all(parameter.grad is None for parameter in target().model.parameters())


class TestFeatureCache:
    def test_gives_the_same_training(self, whole, tmp_path):
        trainer(tmp_path / "run", cache=tmp_path / "cache").run()
        for left, right in zip(logged(whole), logged(tmp_path / "run"), strict=True):
            assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-5)

    def test_serves_another_recipe_only_with_its_layers(self, tmp_path):
        trainer(tmp_path / "one", eagle3, cache=tmp_path / "cache", steps=1)
        trainer(tmp_path / "two", eagle, cache=tmp_path / "cache", steps=1).run()
        with pytest.raises(MMSpecError, match=r"holds layers .* but \[0\] are wanted too"):
            trainer(tmp_path / "three", eagle3, cache=tmp_path / "cache", drafter={"feature_layers": [0, 1, 2]})

    def test_fills_what_is_missing(self, tmp_path):
        examples = Answered(40)
        trainer(tmp_path / "run", examples=examples, cache=tmp_path / "cache")
        shards = sorted((tmp_path / "cache").glob("*.safetensors"))
        assert len(shards) == 2
        before = load_file(shards[1])
        shards[1].unlink()
        trainer(tmp_path / "again", examples=examples, cache=tmp_path / "cache")
        after = load_file(shards[1])
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_of_other_answers_is_refused(self, tmp_path):
        trainer(tmp_path / "run", cache=tmp_path / "cache")
        with pytest.raises(MMSpecError, match="was made for something else: examples was 24, now 20"):
            trainer(tmp_path / "other", examples=Answered(20), cache=tmp_path / "cache")


class TestBadInput:
    def test_pictures_that_do_not_open_are_replaced_and_named(self, tmp_path):
        training = trainer(tmp_path, examples=Answered(broken=(2, 9)))
        training.run()
        lines = [json.loads(line) for line in (tmp_path / "dropped-0.jsonl").read_text().splitlines()]
        assert {line["id"] for line in lines} == {"2", "9"}
        assert all("no/such/picture.png" in line["reason"] for line in lines)

    def test_too_many_of_them_stop_it(self, tmp_path):
        broken = tuple(range(0, 24, 2))
        with pytest.raises(MMSpecError, match="more than max_failures=3 pictures could not be opened"):
            trainer(tmp_path, examples=Answered(broken=broken), max_failures=3).run()

    def test_long_examples_are_dropped(self, tmp_path):
        lengths = [len(Answered()[n].answer_ids) for n in range(24)]
        training = trainer(tmp_path)
        prompt = training.loader.prepare([0]).prompt.lengths[0]
        training = trainer(tmp_path / "run", max_length=prompt + 8, steps=12)
        training.run()
        assert set(training.loader.skipped) == {n for n in range(24) if lengths[n] > 8}
        assert all("more than max_length" in reason for reason in training.loader.skipped.values())

    def test_no_usable_example(self, tmp_path):
        refused(lambda: trainer(tmp_path, max_length=10).run(), "none of the 20 examples can be used")

    def test_a_data_set_that_is_all_validation(self, tmp_path):
        refused(lambda: trainer(tmp_path, held_out=24), "held_out=24 are for validation")

    def test_a_folder_of_another_recipe(self, tmp_path):
        trainer(tmp_path, steps=1, recipe={"name": "one", "lr": 1}).run()
        with pytest.raises(MMSpecError, match=r"recipe\.name was 'one', now 'two'"):
            trainer(tmp_path, steps=1, recipe={"name": "two", "lr": 1})
        with pytest.raises(MMSpecError, match=r"settings\.batch_size was 4, now 8"):
            trainer(tmp_path, steps=1, recipe={"name": "one", "lr": 1}, batch_size=8)

    def test_a_damaged_checkpoint(self, tmp_path):
        trainer(tmp_path, steps=1).run()
        (tmp_path / "state.safetensors").write_bytes(b"nonsense")
        refused(lambda: trainer(tmp_path, steps=1), "cannot be read ... delete it to begin again")

    def test_a_loss_that_is_not_finite_keeps_the_last_good_state(self, whole, tmp_path):
        class Poison(losses.SoftCrossEntropy):
            calls = 0

            def __call__(self, guess, truth):
                Poison.calls += 1
                return super().__call__(guess, truth) * (float("nan") if Poison.calls > 8 else 1.0)

            name = "SoftCrossEntropy"

        _, good = eagle()
        bad = Objective([losses.SmoothL1Features(), Poison(0.1)], noise=good.noise)
        refused(lambda: trainer(tmp_path, objective=bad).run(), "step 5: the loss is nan")
        again = trainer(tmp_path)
        assert again.step == 4
        again.run()
        assert same_weights(whole, tmp_path)

    @pytest.mark.parametrize("file", ["state.safetensors", "model.safetensors"])
    def test_a_full_disk_leaves_the_last_checkpoint(self, tmp_path, monkeypatch, file):
        calls, fine = [], 1 if file == "state.safetensors" else 2

        def full(tensors, path, *args, **kwargs):
            calls.append(path)
            if len(calls) > fine:
                raise OSError(28, "No space left on device")
            return save(tensors, path, *args, **kwargs)

        module = state if file == "state.safetensors" else drafters_base
        save = module.save_file
        monkeypatch.setattr(module, "save_file", full)
        refused(lambda: trainer(tmp_path, validate_every=2, save_every=2).run(), "No space left on")
        monkeypatch.undo()
        if file == "state.safetensors":
            assert trainer(tmp_path, validate_every=2, save_every=2).step == 2
        else:
            mmspec.load_drafter(str(tmp_path / "last"), target())
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.new"))

    def test_a_drafter_that_cannot_be_trained(self, tmp_path):
        drafter = mmspec.drafters.NGramDrafter(target())
        with pytest.raises(MMSpecError, match="NGramDrafter has no weights to train"):
            Trainer(drafter, Objective([losses.CrossEntropy()]), Answered(), tmp_path, settings())

    @pytest.mark.parametrize("name", ["steps", "batch_size", "rows", "depth", "held_out"])
    def test_settings_that_make_no_sense(self, name):
        refused(lambda: settings(**{name: 0}), f"{name}=0 must be at least 1")
