"""Requests pass by pass, random trees for them, and a pass without a cache over every path to compare with."""

from __future__ import annotations

import math

import models
import torch

from mmspec.context import Context
from mmspec.inputs import prepare
from mmspec.outcome import Scores, Verdict
from mmspec.target import Target
from mmspec.tree import DraftTree


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
