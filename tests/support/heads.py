"""What the tests of heads on hidden states share: variants with random weights, and texts that a target has read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import models
import torch
from covering import covering
from full_recompute import recompute
from tiny_requests import RAGGED, case, interleaved, ragged_inputs, target_of

import mmspec
from mmspec import Target
from mmspec.compressors.base import compressor_of
from mmspec.drafters import (
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    HiVisDrafter,
    MsdDrafter,
    MtpDrafter,
    SparrowDrafter,
    ViSpecDrafter,
)
from mmspec.inputs import append, prepare
from mmspec.lesson import Lesson
from mmspec.models.states import LAST
from mmspec.settings import building, configuration
from mmspec.training.teacher import Teacher
from mmspec.trees import TreeBuilder
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every


def compressor(name: str, **settings) -> dict:
    """A compressor as a configuration, from which every drafter makes one of its own."""
    return {"compressor": {"class": f"mmspec.compressors.{name}", **settings}}


FAMILIES = ("llava", "qwen_vl", "gemma3", "llama")
# Every switch is on somewhere and off somewhere.
VARIANTS = {
    "eagle": (EagleDrafter, {}),
    "eagle, other": (
        EagleDrafter,
        {"visual": False, "bias": False, "input_norm": True, "draft_vocab_size": 20}
        | {"head": {"attention_bias": True, "num_key_value_heads": 4, "intermediate_size": 40}},
    ),
    "eagle3": (Eagle3Drafter, {}),
    "eagle3.1": (Eagle3Drafter, {"fc_norm": True, "norm_output": True, "draft_vocab_size": 20}),
    "eagle3, other": (
        Eagle3Drafter,
        {"visual": True, "feature_layers": [0, 1, 2], "norm_before_fc": True, "norm_before_residual": True}
        | {"head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}},
    ),
    "eagle, pool": (EagleDrafter, compressor("pool.Pool", size=2)),
    "eagle3, prune": (Eagle3Drafter, compressor("prune.Prune", keep=0.5, by="uniform", seed=0)),
    "eagle, elastic": (
        EagleDrafter,
        {"input_norm": True} | compressor("elastic.Elastic", mode="selection", size=2, queries=2, temperature=1.0),
    ),
    "eagle3, fovea": (
        Eagle3Drafter,
        {"draft_vocab_size": 20, "corrector": {"depth": 3, "inner": 12, "least": 1, "most": 3, "share": 0.7}},
    ),
    "eagle, pool, fovea": (
        EagleDrafter,
        {"corrector": {"depth": 2, "width": 8, "inner": 6, "reads": "states"}} | compressor("pool.Pool", size=2),
    ),
    "hivis": (HiVisDrafter, {"steps": 3, "packed": False}),
    "hivis, packed": (HiVisDrafter, {"steps": 1, "packed": True, "draft_vocab_size": 20}),
    "msd": (MsdDrafter, {"input_norm": True}),
    "mtp": (MtpDrafter, {}),
    "mtp, other": (
        MtpDrafter,
        {"states_first": True, "head_norms": True, "gate": True, "turned": 4, "draft_vocab_size": 20, "visual": False}
        | {"head": {"attention_bias": True, "num_key_value_heads": 4}},
    ),
    "mtp, in a row": (MtpDrafter, {"layers": 3}),
    "mtp, in a row and on": (
        MtpDrafter,
        {"layers": 2, "shared_fusion": True, "output_norm": "shared", "recursive": True, "head_norms": True}
        | {"states_first": True, "gate": True, "turned": 4, "draft_vocab_size": 20, "visual": False},
    ),
    "mtp, in a row, pool": (MtpDrafter, {"layers": 3, "output_norm": "none"} | compressor("pool.Pool", size=2)),
    "mtp, pool": (MtpDrafter, {"head_norms": True} | compressor("pool.Pool", size=2)),
    "vispec": (ViSpecDrafter, {"queries": 3, "heads": 2, "use_summary": True}),
    "dream": (DreamDrafter, {}),
    "dream, other": (
        DreamDrafter,
        {"visual": False, "draft_vocab_size": 20, "head": {"attention_bias": True, "num_key_value_heads": 4}},
    ),
    "dream, without memory": (DreamDrafter, {"cross_attention": False}),
    "dream, hidden": (DreamDrafter, compressor("hide.Hide", packed=False, margin=[0, 0])),
    "vispec, text": (ViSpecDrafter, {"queries": 3, "heads": 2, "attention_scope": "text"}),
    "sparrow": (SparrowDrafter, {}),
    "sparrow, whole": (SparrowDrafter, {"attention_scope": "all", "input_norm": True}),
}
# The choice hangs on the question, and a prompt with an answer behind it asks another one: no yardstick for these. Nor
# is there one for a memory without pictures.
ASKING = {"eagle, elastic", "dream, hidden"}
FEW = torch.arange(1, 60, 3)


def grid(variants: Iterable[str], everywhere: Iterable[str]) -> list:
    """Return family x variant, of which by default: each variant on a family that sees, in turns, and those that are
    named on all of them."""
    everywhere = set(everywhere)
    turns = {variant: models.VISUAL[number % len(models.VISUAL)] for number, variant in enumerate(variants)}

    def by_default(name: str, variant: str) -> bool:
        return variant in everywhere or turns[variant] == name

    return covering(FAMILIES, turns, strength=0, always=by_default)


GRID = grid(VARIANTS, ["eagle", "eagle3", "mtp", "dream"])


def build(target: Target, variant: str):
    """A drafter with random weights."""
    cls, settings = VARIANTS[variant]
    drafter = cls(target, **{**settings, "compressor": compressor_of(settings.get("compressor"))})
    if drafter.draft_vocab_size:
        drafter.choose_vocabulary(FEW)
    return open_gates(models.redraw(drafter, seed=3))


def open_gates(drafter, value: float = 1.0):
    """Set the gates of DREAM's cross-attention, which begin closed."""
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(value)
    return drafter


@cache
def drafter_of(name: str, variant: str):
    return build(target_of(name, "sdpa"), variant).eval()


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in units of the largest value if that exceeds 1. What is ruled out (-inf) is so in
    both."""
    difference = (ours - theirs).masked_fill(ours == theirs, 0.0)
    return (difference.abs().max() / theirs.nan_to_num(neginf=0.0).abs().max().clamp(min=1)).item()


TOLERANCE = 1e-4
ANSWERS = (9, 2, 12, 8)  # tokens per row


@cache
def lesson_of(name: str) -> Lesson:
    """A ragged batch with pictures and random answers; all features of the target."""
    target, generator = target_of(name, "sdpa"), torch.Generator().manual_seed(1)
    inputs = ragged_inputs(name)
    answers = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in ANSWERS]
    return Teacher(target, range(3)).study(prepare(target, inputs=inputs), answers)


def inputs_of(name: str) -> dict:
    return ragged_inputs(name)


def guesses_of(drafter, lesson: Lesson, steps: int) -> dict:
    """(row, root, step) to the logits of an unrolled guess."""
    roots, table = lesson.root_slots.shape[1], {}
    with torch.no_grad():
        for step, guess in enumerate(drafter.unroll(lesson, steps)):
            for root, logits in zip(guess.roots.tolist(), guess.logits, strict=True):
                table[(*divmod(root, roots), step)] = logits
    return table


def expect_loaded_as_saved(drafter, folder) -> None:
    """What `load_drafter` makes of a saved drafter has its configuration, and guesses what it does."""
    drafter.save_pretrained(folder)
    loaded = mmspec.load_drafter(str(folder), drafter.target)
    assert loaded.config() == drafter.config()
    ours, theirs = (guesses_of(one, lesson_of("llava"), 3) for one in (drafter, loaded))
    assert all(error(theirs[key], logits) < 1e-6 for key, logits in ours.items())


def expect_the_targets_own_head(drafter, lesson: Lesson, steps: int) -> None:
    """Every guess is the target's own, at the place from whose state it comes."""
    for (row, root, _), logits in guesses_of(drafter, lesson, steps).items():
        place = sum(map(len, lesson.answers[:row])) + root
        assert error(logits, lesson.logits[place]) < TOLERANCE


@cache
def full_pass(name: str, row: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Of a row of `lesson_of` alone, from the model's own pass: states by layer, merged and plain embeddings."""
    lesson = lesson_of(name)
    inputs = ragged_inputs(name)
    model, read = lesson.target.model, []
    hook = lesson.target.family.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    out = recompute(model, models.one_row(inputs, row), [lesson.answers[row]], output_hidden_states=True)
    hook.remove()
    ids = torch.tensor(lesson.request.token_ids()[row])
    return (
        {**{layer: out.hidden_states[layer][0] for layer in range(3)}, LAST: out.hidden_states[-1][0]},
        read[0][0] if read and read[0] is not None else model.get_input_embeddings()(ids).detach(),
        model.get_input_embeddings()(ids).detach(),
    )


def own_where_asked(drafter, out, inputs: dict) -> int:
    """Every token of rounds that no gate has settled is the target's own, given those before it; how many those are."""
    prompts, checked = prepare(drafter.target, inputs=inputs), 0
    with torch.inference_mode():
        own = drafter.target.model(**append(prompts, out.token_ids).inputs).logits.argmax(-1)
    for row, (length, new) in enumerate(zip(prompts.lengths, out.token_ids, strict=True)):
        place = 1
        for record in out.stats.rounds:
            for number in range(place, place + record.emitted[row]):
                if not record.settled:
                    assert new[number] == own[row, length + number - 1], (row, number)
                    checked += 1
            place += record.emitted[row]
        assert place == len(new)
    return checked


def expect_own_behind_gates(drafter, name: str, tree: TreeBuilder) -> None:
    """Behind rounds that a gate has settled, everything that the target was asked about is its own."""
    options = {"inputs": inputs_of(name), "max_new_tokens": 16, "tree": tree}
    out = mmspec.generate(drafter.target, drafter, verifier=Gated(Greedy(), Every(2, 2)), **options)
    assert out.stats.num_unverified_tokens > 4 and own_where_asked(drafter, out, inputs_of(name)) > 12


def expect_plain_texts(drafter, name: str, trees: Sequence[TreeBuilder]) -> None:
    """Three requests at a time, with a picture, without one and in a ragged batch, are answered as the target would."""
    requests, texts = [], []
    for (images, lengths), tree in zip((((2,), (9,)), ((0,), (7,)), RAGGED), trees, strict=True):
        inputs, text = case(name, "sdpa", images, lengths, 14)
        requests.append({"inputs": inputs, "max_new_tokens": 14, "tree": tree})
        texts.append(text)
    assert [out.token_ids for out in interleaved(drafter.target, drafter, requests)] == texts


def trained_by_recipe(overrides: Sequence[str], steps: int, asked: int = 0) -> tuple[Any, list[float]]:
    """A drafter that a recipe makes for LLaVA, and the losses of some steps on the same lesson.

    Args:
        overrides: of the configuration of `mmspec train`, the recipe among them.
        steps: how many.
        asked: the step in which every weight must have a gradient.
    """
    config = configuration.compose("train", overrides)
    drafter = building.build(config.recipe.drafter, target=target_of("llava", "sdpa")).train()
    objective = building.build(config.recipe.objective)
    optimizer = building.build(config.recipe.optimizer, params=list(drafter.trainable_parameters()))
    losses = []
    for step in range(steps):
        loss, _ = objective(drafter, lesson_of("llava"), seed="the same draws")
        optimizer.zero_grad()
        loss.backward()
        if step == asked:
            for name, parameter in drafter.named_parameters():
                assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    return drafter, losses
