"""Sets of sub-layers found by a knapsack: the most that can be skipped while the states stay close to the true ones.

KnapSpec's search, as SP2EC's repository describes it. It goes through all sub-layers once; for every weight that may be
skipped so far it keeps the set whose states are closest to those of the whole model, and each pass runs one sub-layer
on the states of all these sets, which stand side by side like the branches of a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..models.skipping import ATTENTIONS, MLPS, part_of
from ..models.states import END, capture, entering
from ..models.weights import count_weights

if TYPE_CHECKING:
    from ..context import Context

NODES = 6
"""Tokens at which states are compared."""

CLOSEST = 0.5
"""Sets whose states have a smaller cosine to the true ones are given up."""

HEAVIEST = 5
"""Weight of an attention in MLPs, at most."""

LONGEST = 17
"""Tokens of a draft, at most, for which a set is judged."""


class Candidate(NamedTuple):
    """A set of sub-layers.

    Args:
        skipped: numbers of these sub-layers.
        states: `[rows, nodes, hidden]` what all others have made so far.
    """

    skipped: frozenset[int]
    states: Tensor


def weights_of(layers: Sequence[nn.Module], length: int, hidden: int) -> list[int]:
    """Return the weight of every sub-layer, in MLPs: attentions weigh as many operations per token as they take beside
    their MLP, from 1 to `HEAVIEST`.

    Args:
        layers: the target's layers.
        length: entries that a token attends to.
        hidden: width of the states.
    """
    found = []
    for layer in layers:
        attention, mlp = (count_weights(part_of(layer, names)) for names in (ATTENTIONS, MLPS))
        found += [min(max(round((attention + 2 * length * hidden) / max(mlp, 1)), 1), HEAVIEST), 1]
    return found


@torch.inference_mode()
def candidates(context: Context, root: Tensor, protected: int) -> dict[int, Candidate]:
    """Return the set whose states are closest to the true ones, for every weight up to half of all.

    Args:
        context: a request behind whose text only the root is unread.
        root: `[batch]`, the newest token of each row.
        protected: first and last layers that stay, so many of each.
    """
    layers = context.target.family.layers
    weights = weights_of([*layers], context.cache.longest, context.target.hidden_size)
    tokens, states = _drafted_by_all(context, root)
    best = {0: Candidate(frozenset(), states)}
    for number, weight in enumerate(weights):
        kept = _passed(context, number, tokens, best)
        true, found = kept[0], dict[int, tuple[float, Candidate]]()
        free = protected <= number // 2 < len(layers) - protected
        for before, candidate in best.items():
            options = {before: Candidate(candidate.skipped, kept[before])}
            if free and before + weight <= sum(weights) // 2:
                options[before + weight] = Candidate(candidate.skipped | {number}, candidate.states)
            for total, option in options.items():
                near = float(torch.cosine_similarity(option.states.float(), true.float(), dim=-1).mean())
                if near >= CLOSEST and (total not in found or near > found[total][0]):
                    found[total] = near, option
        best = {total: option for total, (_, option) in sorted(found.items())}
    return best


def knapsack_arms(context: Context, root: Tensor, protected: int, most: int) -> list[frozenset[int]]:
    """Return the sets that promise the most tokens per cost, from the fewest skipped sub-layers to the most.

    Args:
        context, root, protected: see `candidates`.
        most: number of sets at most.
    """
    family = context.target.family
    weights = weights_of([*family.layers], context.cache.longest, context.target.hidden_size)
    best = candidates(context, root, protected)
    guesses = {weight: family.head(family.final_norm(one.states)).argmax(-1) for weight, one in best.items()}
    judged = []
    for weight, candidate in best.items():
        if weight:
            right = float((guesses[weight] == guesses[0]).float().mean())
            judged.append((promise(right, sum(weights) - weight, sum(weights)), weight, candidate.skipped))
    chosen = sorted(judged, key=lambda one: one[0])[-most:]
    return [skipped for _, _, skipped in sorted(chosen, key=lambda one: one[1])]


def promise(right: float, draft: float, whole: float) -> float:
    """Return the tokens per cost of the best length of a draft.

    Args:
        right: chance that a guess is right.
        draft: cost of a drafting pass.
        whole: cost of a pass of the target.
    """
    tokens = [sum(right**level for level in range(length + 1)) for length in range(LONGEST + 1)]
    return max(emitted / (draft * length + whole) for length, emitted in enumerate(tokens))


def _drafted_by_all(context: Context, root: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[batch, nodes]` the root with what the whole model writes behind it, and the states that enter its first
    layer there."""
    branch, tokens, states = context.branch(skipped=()), [root], []
    for place in range(NODES):
        seen = torch.ones(len(root), 1, place + 1, dtype=torch.bool, device=root.device)
        depth = torch.full((len(root), 1), place, device=root.device)
        with capture(branch.model.family, [0]) as found:
            logits = branch.read(tokens[-1][:, None], seen, depth, extends_chain=True).logits
        states.append(found[0])
        tokens.append(logits[:, -1].argmax(-1))
    branch.drop()
    return torch.stack(tokens[:NODES], dim=1), torch.cat(states, dim=1)


def _passed(context: Context, number: int, tokens: Tensor, best: dict[int, Candidate]) -> dict[int, Tensor]:
    """Return the states of all candidates behind one sub-layer."""
    count, device = len(best), tokens.device
    every = range(2 * len(context.target.family.layers))
    branch = context.branch(skipped=[one for one in every if one != number])
    chain = torch.ones(NODES, NODES, dtype=torch.bool, device=device).tril()
    visible = torch.block_diag(*[chain] * count).expand(len(tokens), -1, -1)
    depth = torch.arange(NODES, device=device).repeat(count).expand(len(tokens), -1)
    states = torch.cat([candidate.states for candidate in best.values()], dim=1)
    family = branch.model.family
    with capture(family, [END]) as found, entering(family.layers[0], states):
        branch.read(tokens.repeat(1, count), visible, depth, logits=False)
    branch.drop()
    return dict(zip(best, found[END].split(NODES, dim=1), strict=True))
