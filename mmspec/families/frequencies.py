"""Rotary frequencies that change with the length of the text: the lengths where they do, and the requests that stay on
one side of them.

Transformers chooses them once per pass, by the largest position in it: `longrope` has two sets of factors, `dynamic`
computes new frequencies for every length. Keys that are in the cache keep theirs, or (Phi-3) all of them are computed
anew at the switch. `generate` decides so row by row and step by step. A pass over a tree, or over several rows, decides
once for all of its tokens, so it is exact as long as all of them are on one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MMSpecError

STATIC = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rotary positions whose frequencies are the same for every length."""


@dataclass(frozen=True)
class Switch:
    """A length beyond which the frequencies are others.

    Args:
        kind: `rope_type`, as transformers names it.
        length: number of tokens, or of positions where they do not count tokens, that the first frequencies are for.
    """

    kind: str
    length: int

    @property
    def settles(self) -> bool:
        """True if there is one set of frequencies beyond it, which depends on nothing else."""
        return self.kind == "longrope"


def switches_of(decoder: nn.Module) -> tuple[Switch, ...]:
    """Return the switches of a language model, the nearest first.

    Args:
        decoder: the decoder whose rotary embeddings are asked: some models have one, some one for every kind of layer.
    """
    found = {switch for module in decoder.modules() for switch in _of_module(module)}
    return tuple(sorted(found, key=lambda switch: switch.length))


def _of_module(module: nn.Module) -> Iterator[Switch]:
    """Yield the switches of one module."""
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if not isinstance(kind, str) or kind in STATIC:
            continue
        config: Any = module.config
        rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
        dynamic = getattr(module, "original_max_seq_len", None) if "dynamic" in kind else None
        length = dynamic or rope.get("original_max_position_embeddings") or config.max_position_embeddings
        yield Switch(kind, int(length))


def check_reach(
    switches: Sequence[Switch],
    name: str,
    position_ids: Tensor,
    position_offset: Tensor,
    mask: Tensor,
    max_new_tokens: int,
) -> None:
    """Refuse a request whose text would be wrong beyond a switch, before anything is written.

    Args:
        switches: switches of the model.
        name: name of the model, for errors.
        position_ids, position_offset: positions of the prompts, see `Family.positions`.
        mask: `[batch, length]`, 0 on padding.
        max_new_tokens: tokens that may follow.

    Raises:
        MMSpecError: where rows, or a prompt and its answer, are on different sides of a switch, and for anything
            beyond one that does not settle.
    """
    real = mask.bool()
    places, after = position_ids.masked_fill(~real, 0).reshape(-1, *real.shape), position_offset.reshape(-1, len(real))
    prompts = places.amax(dim=(0, 2)) + 1
    lengths = real.sum(-1)
    # A pass over the token before the last one gives the last one.
    answers = [lengths + end + step for end in (after.amin(0), after.amax(0)) for step in (1, max_new_tokens - 1)]
    ends = torch.stack([prompts, *answers] if max_new_tokens > 1 else [prompts])
    for switch in switches:
        beyond = ends > switch.length
        if not beyond.any() or (switch.settles and beyond.all()):
            continue
        if not beyond[0].any():
            room = switch.length + 1 - int((lengths + after.amax(0)).max())
            way = f"the answer may reach them; ask for max_new_tokens={max(room, 1)} at most"
        elif not switch.settles:
            way = "the prompt reaches them, where its text depends on what it read before; shorten the prompt"
        else:
            way = "only a part of the rows begins beyond them; give long and short prompts in calls of their own"
        raise MMSpecError(
            f"{name} has other rotary frequencies beyond {switch.length} positions (rope_type "
            f"{switch.kind!r}), and mmspec cannot go across; {way}"
        )


def ceilings(switches: Sequence[Switch], position_ids: Tensor, position_offset: Tensor) -> list[int] | None:
    """Return, per row, the largest index whose position is before the next switch; None if there is none to come.

    Args:
        switches: switches of the model.
        position_ids, position_offset: positions of the prompts, see `Family.positions`.
    """
    if not switches:
        return None
    nearest = next((switch.length for switch in switches if int(position_ids.max()) < switch.length), None)
    furthest = position_offset.reshape(-1, position_offset.shape[-1]).amax(0).tolist()
    return None if nearest is None else [nearest - 1 - end for end in furthest]
