"""What several test files share: hypothesis settings, targets, random trees, and a full recompute to compare with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import models
import tiny_families
import torch
from hypothesis import settings

from mmspec.compressors import Elastic, FeatureGuided
from mmspec.context import Context
from mmspec.drafters import (
    Drafter,
    DraftModelDrafter,
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    HiVisDrafter,
    MedusaDrafter,
    MsdDrafter,
    ViSpecDrafter,
)
from mmspec.drafters.draft_model import VisualProjector
from mmspec.inputs import prepare
from mmspec.outcome import Scores, Verdict
from mmspec.target import Target
from mmspec.tree import DraftTree

settings.register_profile("mmspec", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")))
settings.load_profile("mmspec")

FAMILIES = [(name, attention) for name in models.MODELS for attention in ("sdpa", "eager")]


# Pictures and text tokens per row of the batch that most tests are about.
RAGGED = ((1, 0, 2, 1), (9, 20, 5, 13))


@cache
def target_of(name: str, attention: str) -> Target:
    """One tiny target per family and back end, used by all tests of a process: requests must leave no trace."""
    build = models.MODELS[name] if name in models.MODELS else tiny_families.FAMILIES[name].build
    return Target(build(attention))


@cache
def blurred_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A drafter that is right some of the time: the target's own model with noise on its weights."""
    target = target_of(name, attention)
    return DraftModelDrafter(target, models.blurred(target.model), own_mode(name))


def own_mode(name: str) -> str:
    """The mode in which a model of the target's own kind drafts."""
    tiny = tiny_families.FAMILIES.get(name)
    return "own_vision" if name in models.VISUAL or (tiny is not None and tiny.kinds) else "text_only"


def one_picture(name: str) -> dict:
    """A prompt with one picture."""
    return models.inputs_for(name, [1]) if name in models.MODELS else tiny_families.FAMILIES[name].inputs([["image"]])


@cache
def case(name: str, attention: str, images: tuple, lengths: tuple, new: int, seed: int = 0) -> tuple[dict, list]:
    """Inputs and what `model.generate` writes to them."""
    inputs = models.inputs_for(name, pictures_for(name, images), list(lengths), seed)
    return inputs, models.reference(target_of(name, attention).model, inputs, new)


def pictures_for(name: str, images: Sequence[int]) -> list[int]:
    """The pictures per row, or none for a model that takes none."""
    return list(images) if name in models.VISUAL else [0] * len(images)


def start(target: Target, inputs: dict, **options) -> Context:
    """Read a prompt and take the argmax as the first root, as the loop does."""
    request = prepare(target, inputs=inputs)
    context = target.prefill(request, target.encode(request), **options)
    for history, token in zip(context.history, context.logits.argmax(-1).tolist(), strict=True):
        history.append(token)
    return context


def random_tree(context: Context, nodes: int, generator: torch.Generator) -> DraftTree:
    """A tree of any shape and any tokens below the context's roots, another one in each row."""
    tokens = torch.randint(1, 50, (context.batch_size, nodes), generator=generator)
    tokens[:, 0] = torch.tensor([history[-1] for history in context.history])
    draws = torch.rand(context.batch_size, nodes, generator=generator)
    parents = (draws * torch.arange(nodes)).long()
    parents[:, 0] = -1
    return DraftTree(tokens, parents, max_depth=nodes - 1).validate()


def accept(context: Context, tree: DraftTree, nodes: list[int], bonus: list[int]) -> list[list[int]]:
    """Commit the path to a node of each row, whatever the target thinks of it."""
    path, length = tree.path_to(torch.tensor(nodes))
    return context.commit(tree, Verdict(path, length, torch.tensor(bonus)))


@torch.no_grad()
def recompute(model, single: dict, continuations: list[list[int]], **options):
    """One pass without a cache over a prompt with each of its continuations.

    The model finds positions and masks by itself. Shorter continuations are filled up behind, where causal attention
    does not look.
    """
    count, width = len(continuations), max(map(len, continuations))
    inputs = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in single.items()}
    for name, value in {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}.items():
        if name in single:
            inputs[name] = torch.cat([inputs[name], inputs[name].new_full((count, width), value)], dim=1)
    more = torch.tensor([tokens + [1] * (width - len(tokens)) for tokens in continuations], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more.view(count, width)], dim=1)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None  # else positions of the last request leak into this one
    return model(**inputs, use_cache=False, **options)


def paths_of(tree: DraftTree, row: int) -> list[list[int]]:
    """The root-to-leaf paths of a row."""
    parents = tree.parents[row].tolist()
    valid = [True] * len(parents) if tree.valid is None else tree.valid[row].tolist()
    paths = []
    for leaf in set(range(sum(valid))) - {parent for parent, ok in zip(parents, valid, strict=True) if ok}:
        path, node = [], leaf
        while node >= 0:
            path.insert(0, node)
            node = parents[node]
        paths.append(path)
    return paths


def tree_error(context: Context, inputs: dict, tree: DraftTree, scores: Scores, layers: dict | None = None) -> float:
    """The largest difference of a tree's logits, at any node of any row that goes on, from a full recompute of the
    node's path.

    Args:
        context: the request, before it commits anything of the tree.
        inputs: what it was made from.
        layers: features to compare instead of the logits: feature layer to the index in `hidden_states`.
    """
    worst = 0.0
    for row in (row for row in range(context.batch_size) if context.active[row]):
        single = models.one_row(inputs, row)
        prompt = single["input_ids"].shape[1]
        emitted = context.history[row][prompt:]
        paths = paths_of(tree, row)
        continuations = [emitted + tree.tokens[row, path[1:]].tolist() for path in paths]
        full = recompute(context.target.model, single, continuations, output_hidden_states=layers is not None)
        if layers is None:
            pairs = [(scores.logits, full.logits)]
        else:
            pairs = [(scores.features[layer], full.hidden_states[index]) for layer, index in layers.items()]
        for ours, theirs in pairs:
            for number, path in enumerate(paths):
                first = prompt + len(emitted) - 1
                difference = ours[row, path] - theirs[number, first : first + len(path)]
                error = difference.abs().max().item()
                worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def text_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A random language model of another kind, which never sees a picture."""
    return DraftModelDrafter(target_of(name, attention), models.llama(attention, seed=5, layers=1), "text_only")


def shared_vision_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A random language model that reads the target's vision tower through a random projector."""
    target, model = target_of(name, attention), models.llama(attention, seed=6, layers=2)
    vision = target.encode(prepare(target, inputs=one_picture(name)))
    projector = models.redraw(VisualProjector(vision.features[0].shape[-1], models.TEXT["hidden_size"]), seed=0)
    return DraftModelDrafter(target, model, "shared_vision", projector)


def eagle_drafter(name: str, attention: str) -> EagleDrafter:
    return models.redraw(EagleDrafter(target_of(name, attention)), seed=8)


def eagle3_drafter(name: str, attention: str) -> Eagle3Drafter:
    """One that can propose every third token only."""
    tokens = torch.arange(1, models.VOCAB, 3)
    drafter = Eagle3Drafter(target_of(name, attention), draft_vocab_size=len(tokens))
    drafter.choose_vocabulary(tokens)
    return models.redraw(drafter, seed=9)


def dream_drafter(name: str, attention: str) -> DreamDrafter:
    """One that keeps half of the visual tokens, and whose gates are open."""
    drafter = models.redraw(DreamDrafter(target_of(name, attention), compressor=FeatureGuided(0.5)), seed=10)
    for gate in (drafter.layers[1].cross_attn_attn_gate, drafter.layers[1].cross_attn_mlp_gate):
        gate.data.fill_(1.0)
    return drafter


def head_of(make, seed: int):
    """A builder of heads with random weights, in use rather than in training."""
    return lambda name, attention: models.redraw(make(target_of(name, attention)), seed).eval()


# Drafters that need weights, built on tiny random models for any family and back end.
DRAFT_MODELS = {"own model": blurred_drafter, "shared vision": shared_vision_drafter, "text only": text_drafter}
VISUAL_HEADS = {
    "hivis": head_of(HiVisDrafter, 11),
    "msd": head_of(MsdDrafter, 12),
    "vispec": head_of(ViSpecDrafter, 13),
    "specvlm": head_of(lambda target: EagleDrafter(target, input_norm=True, compressor=Elastic()), 14),
}
TINY_DRAFTERS = {
    **DRAFT_MODELS,
    "eagle": eagle_drafter,
    "eagle3, fewer tokens": eagle3_drafter,
    "dream, guided": dream_drafter,
    "medusa": head_of(lambda target: MedusaDrafter(target, heads=3, layers=2), 15),
    **VISUAL_HEADS,
}
# Without pictures they are no more than EAGLE, or cannot be built.
NEED_PICTURES = {"shared vision", *VISUAL_HEADS}


@dataclass
class Draft:
    """A tree as it was drafted, with the tokens of each row at that time (the root last)."""

    tree: DraftTree
    history: list[list[int]]
    active: list[bool]


def record_drafts(monkeypatch, cls: type[Drafter]) -> list[Draft]:
    """Every tree that drafters of a class propose from now on."""
    drafts, draft = [], cls.draft

    def recording(self, root):
        tree = draft(self, root)
        drafts.append(Draft(tree, [list(history) for history in self.context.history], list(self.context.active)))
        return tree

    monkeypatch.setattr(cls, "draft", recording)
    return drafts
