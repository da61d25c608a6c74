"""The training of the tiny target: its loss is the model's own, a step learns, checkpoints resume, folders load."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mmspec import zoo
from mmspec.zoo import architecture
from mmspec.zoo.architecture import build_config, build_model
from mmspec.zoo.batches import IGNORE, Conversations
from mmspec.zoo.evaluation import answer, evaluate
from mmspec.zoo.export import export
from mmspec.zoo.losses import losses_of
from mmspec.zoo.muon import StackedMuon
from mmspec.zoo.pretraining import MasterWeights, PretrainingSettings, rate, read_checkpoint, train, write_checkpoint
from mmspec.zoo.vocabulary import build_tokenizer

pytestmark = pytest.mark.product


@pytest.fixture(scope="module", autouse=True)
def small():
    """Two layers instead of sixteen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "LAYERS", 2)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(examples=200)


def build(tokenizer, folder, **settings):
    model = build_model(build_config(tokenizer))
    model.set_attn_implementation("mmspec_dense")
    return MasterWeights(model, PretrainingSettings(output=folder, processes=1, **settings))


def test_the_loss_is_that_of_the_model(tokenizer):
    model = build_model(build_config(tokenizer)).eval()
    for parameter in model.parameters():  # the branches start at zero: wake them
        parameter.data += 0.02 * torch.randn_like(parameter)
    batch = Conversations(tokenizer, pictures=3, rows=3).step(0)[0]
    mask = (batch.input_ids != tokenizer.pad_token_id).long()
    expected = model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=mask, labels=batch.labels
    ).loss
    model.set_attn_implementation("mmspec_dense")
    losses = losses_of(model, batch)
    assert losses.answers.shape == losses.rows.shape and losses.patches.shape == (3,)
    torch.testing.assert_close(losses.answers.mean(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_steps_reduce_the_loss_of_a_batch(tokenizer, tmp_path, optimizer):
    weights = build(tokenizer, tmp_path, optimizer=optimizer)
    batch = Conversations(tokenizer, pictures=4, rows=4).step(0)[0]
    values = []
    for _ in range(6):
        losses = losses_of(weights.model, batch)
        (losses.answers.mean() + losses.patches.mean()).backward()
        values.append(losses.answers.mean().item())
        assert weights.average_gradients(0.5) == 0.5
        weights.step(0.5)
    assert values[-1] < 0.8 * values[0]


def test_stacked_muon_is_muon_in_float32():
    torch.manual_seed(0)
    shapes = [(6, 10), (10, 6), (6, 10), (8, 8)]
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    pair = StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0.02)  # theirs rounds to bfloat16


def test_the_two_passes_run_in_what_the_processor_is_made_for(tmp_path, monkeypatch):
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert PretrainingSettings(output=tmp_path).working_dtype() == dtype
    assert PretrainingSettings(output=tmp_path, dtype="bfloat16").working_dtype() == torch.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'half': choose auto, bfloat16 or float32"):
        PretrainingSettings(output=tmp_path, dtype="half").working_dtype()


def test_checkpoints_restore_weights_and_optimizer(tokenizer, tmp_path):
    batch = Conversations(tokenizer, pictures=2, rows=2).step(0)[0]

    def advance(weights):
        losses_of(weights.model, batch).answers.mean().backward()
        weights.average_gradients(0.0)
        weights.step(1.0)

    first, second = build(tokenizer, tmp_path), build(tokenizer, tmp_path)
    advance(first)
    write_checkpoint(tmp_path / "checkpoint.safetensors", first, {"step": 1, "seconds": 2.0})
    assert read_checkpoint(tmp_path / "checkpoint.safetensors", second) == {"step": 1, "seconds": 2.0}
    advance(first)
    advance(second)
    for name, master in first.masters.items():
        assert torch.equal(master, second.masters[name]), name


def test_the_rate_warms_up_stays_and_decays(tmp_path):
    settings = PretrainingSettings(output=tmp_path, warmup_steps=10, decay=0.25)
    assert rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert rate(settings, 100, 0.5) == rate(settings, 100, 0.75) == 1.0
    assert rate(settings, 100, 0.875) == pytest.approx(0.5)
    assert rate(settings, 100, 1.0) == 0.0


def test_patches_are_labelled_where_something_is_printed(tokenizer):
    for batch in Conversations(tokenizer, pictures=16, rows=8).step(1000):
        assert ((batch.patch_labels != IGNORE).sum(dim=1) >= 4).all()


def test_train_export_load_and_answer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = PretrainingSettings(output=tmp_path, steps=1, pictures=4, rows=4, processes=1, validate_minutes=0)
    checkpoint = train(settings, spawn=False)
    assert train(dataclasses.replace(settings, steps=2), spawn=False) == checkpoint  # resumed
    folder = export(checkpoint, tmp_path / "export")
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    samples = [zoo.sample("charts", "test", index) for index in range(2)]
    prompts = [sample.prompt for sample in samples]
    answers = answer(model, processor, [sample.image for sample in samples], prompts, longest=5)
    assert all(0 < length <= 5 for _, length in answers)
    report = evaluate(model, processor, "test", examples=2, tasks=("documents",), longest=3)
    assert report["documents"]["character_error_rate"] > 0.5
