"""Block drafters with random weights, and a second formulation of them from the papers' formulas.

`reference` knows neither caches nor batches, masks nor compressors: one block behind one anchor, entry by entry.
"""

from __future__ import annotations

from functools import cache

import models
import torch
from heads import FEW, compressor, full_pass, lesson_of
from tiny_requests import target_of
from torch.nn import functional
from yardstick import entries_of

from mmspec import Target
from mmspec.compressors.base import compressor_of
from mmspec.drafters import BlockDrafter, DFlashDrafter
from mmspec.models.states import LAST

FAMILIES = ("llava", "qwen_vl", "gemma3", "llama")
# Every switch is on somewhere and off somewhere.
VARIANTS: dict[str, tuple[type[BlockDrafter], dict]] = {
    "dflash": (DFlashDrafter, {}),
    "dflash, shifted": (DFlashDrafter, {"layout": "shifted", "block_size": 4, "mask_token_id": 3, "layers": 1}),
    "jetspec": (DFlashDrafter, {"causal": True, "block_size": 5, "draft_vocab_size": 20, "own_head": True}),
    "dflash, windows": (
        DFlashDrafter,
        {"windows": [6, None, 4], "layers": 3, "block_size": 6, "qk_norm": False, "feature_layers": [0, -1]}
        | {"head": {"attention_bias": True, "num_key_value_heads": 1}, "logit_scale": 0.5, "logit_cap": 3.0},
    ),
    "dflash, open windows": (
        DFlashDrafter,
        {"windows": [5, 7], "causal_windows": False, "embedding_scale": 2.0, "draft_vocab_size": 20}
        | {"mask_token_id": 4, "head": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}},
    ),
    "dflash, pool": (DFlashDrafter, compressor("pool.Pool", size=2)),
    "dflash, prune": (DFlashDrafter, compressor("prune.Prune", keep=0.5, by="uniform", seed=0)),
    "dflash, hide": (DFlashDrafter, compressor("hide.Hide", packed=False, margin=[0, 0])),
}
GRID = [(name, variant) for name in FAMILIES for variant in VARIANTS]


def build(target: Target, variant: str, **changes) -> BlockDrafter:
    """A drafter with random weights."""
    cls, settings = VARIANTS[variant]
    torch.manual_seed(0)  # `redraw` only shifts what is a vector, such as that of the mask
    drafter = cls(target, **{**settings, "compressor": compressor_of(settings.get("compressor")), **changes})
    if drafter.draft_vocab_size:
        drafter.choose_vocabulary(FEW)
    return models.redraw(drafter, seed=4)


@cache
def drafter_of(name: str, variant: str) -> BlockDrafter:
    return build(target_of(name, "sdpa"), variant).eval()


class Block:
    """One block, computed from the weights alone.

    Args:
        drafter: of which only weights and switches are used.
        wrong: a mistake to make: `anchor` lets the block see the anchor's own state, `normed` norms the target's states
            in every layer, `places` counts the block from one place further on.
    """

    def __init__(self, drafter: BlockDrafter, wrong: str = ""):
        self.drafter, self.wrong, self.settings = drafter, wrong, drafter.settings
        self.weights, self.head = dict(drafter.named_parameters()), drafter.head

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.head.rms_norm_eps).rsqrt()
        return x * scale * self.weights[f"{name}.weight"]

    def turned(self, name: str, x: torch.Tensor, places: list[int], norm: str) -> torch.Tensor:
        """Queries or keys, `[heads, length, head_dim]`."""
        made = self.linear(name, x).view(len(x), -1, self.head.head_dim).transpose(0, 1)
        if self.settings.qk_norm:
            made = self.norm(norm, made)
        half = self.head.head_dim // 2
        inverse = self.head.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.tensor(places)[:, None] * inverse
        first, second = made.split(half, dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def fused(self, taps: torch.Tensor, layer: int) -> torch.Tensor:
        """What a layer makes keys and values of."""
        return self.norm("hidden_norm", self.linear("fc", taps))

    def sees(self, layer: int, slot: int, entry: int) -> bool:
        """Whether a slot sees an entry, whose number counts from the anchor."""
        window = (self.settings.windows or [None] * self.settings.layers)[layer]
        causal = self.settings.causal or (window is not None and self.settings.causal_windows)
        return (window is None or slot - entry < window) and (entry <= slot or not causal)

    def layer(self, number: int, x: torch.Tensor, taps: torch.Tensor, before: list[int], own: list[int]):
        name, context = f"layers.{number}", self.fused(taps, number)
        if self.wrong == "normed":
            context = self.norm(f"{name}.input_layernorm", context)
        inner = self.norm(f"{name}.input_layernorm", x)
        both, places = torch.cat([context, inner]), [*before, *own]
        attention = f"{name}.self_attn"
        queries = self.turned(f"{attention}.q_proj", inner, own, f"{attention}.q_norm")
        keys = self.turned(f"{attention}.k_proj", both, places, f"{attention}.k_norm")
        values = self.linear(f"{attention}.v_proj", both).view(len(both), -1, self.head.head_dim).transpose(0, 1)
        groups = len(queries) // len(keys)
        keys, values = keys.repeat_interleave(groups, dim=0), values.repeat_interleave(groups, dim=0)
        seen = torch.tensor(
            [[self.sees(number, slot, entry - len(context)) for entry in range(len(both))] for slot in range(len(x))]
        )
        scores = (queries @ keys.mT / self.head.head_dim**0.5).masked_fill(~seen, float("-inf"))
        x = x + self.linear(f"{attention}.o_proj", (scores.softmax(-1) @ values).transpose(0, 1).flatten(1))
        inner = self.norm(f"{name}.post_attention_layernorm", x)
        gate = functional.silu(self.linear(f"{name}.mlp.gate_proj", inner))
        if self.head.hidden_act != "silu":
            gate = functional.gelu(self.linear(f"{name}.mlp.gate_proj", inner), approximate="tanh")
        return x + self.linear(f"{name}.mlp.down_proj", gate * self.linear(f"{name}.mlp.up_proj", inner))

    def hidden(self, taps: torch.Tensor, before: list[int], anchor: int, place: int) -> torch.Tensor:
        """The normed states of all slots of a block behind a text.

        Args:
            taps: `[entries, taps * hidden]` the target's states before the anchor.
            before: their positions.
            anchor: its token.
            place: its position.
        """
        settings, model = self.settings, self.drafter.target.model
        embed, masks = model.get_input_embeddings(), settings.block_size - 1
        rows = embed(torch.tensor([anchor, settings.mask_token_id or 0])).detach()
        if settings.embedding_scale is not None:
            rows = embed.weight[[anchor, settings.mask_token_id]].detach() * settings.embedding_scale
        mask = rows[1] if settings.mask_token_id is not None else self.weights["mask_embedding"]
        x = torch.stack([rows[0], *[mask] * masks])
        own = [place + slot + (self.wrong == "places") for slot in range(len(x))]
        for number in range(settings.layers):
            x = self.layer(number, x, taps, before, own)
        return self.norm("norm", x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the drafter's vocabulary; nothing for the mask."""
        settings, config = self.settings, self.drafter.target.family.text_config
        tokens = FEW if self.drafter.draft_vocab_size else torch.arange(models.VOCAB)
        table = self.drafter.target.model.get_output_embeddings().weight[tokens].detach()
        logits = hidden @ (self.weights["lm_head.weight"] if settings.own_head else table).T
        cap = settings.logit_cap
        if cap is None and not settings.own_head:
            cap = getattr(config, "final_logit_softcapping", None)
        logits = logits * (settings.logit_scale or 1)
        logits = cap * torch.tanh(logits / cap) if cap else logits
        return logits.masked_fill(
            tokens == (-1 if settings.mask_token_id is None else settings.mask_token_id), -torch.inf
        )

    def guesses(self, hidden: torch.Tensor, anchor: int, chain: list[int]) -> list[torch.Tensor]:
        """The logits of every guess, those of deeper ones behind a chain of tokens: as many as it has, and one."""
        first = int(self.settings.layout == "same")
        return list(self.logits(hidden[first:]))[: len(chain) + 1]


def taps_of(name: str, drafter: BlockDrafter, row: int, root: int, wrong: str = "") -> tuple:
    """What stands before a root, which is the answer's token of that number: the states, their positions, the root and
    its place."""
    states, *_ = full_pass(name, row)
    lesson = lesson_of(name)
    ids = lesson.request.token_ids()[row][: lesson.prompt.lengths[row] + root + 1]
    seen = ids if wrong == "anchor" else ids[:-1]
    entries = entries_of(drafter, [token == models.IMAGE for token in seen])
    layers = [LAST if layer == -1 else layer for layer in drafter.settings.feature_layers]
    every = torch.cat([states[layer] for layer in layers], dim=-1)
    taps = torch.stack([every[group].mean(0) for group in entries])
    return taps, [round(sum(group) / len(group)) for group in entries], ids[-1], len(ids) - 1


KINDS: dict[type[BlockDrafter], type[Block]] = {}
"""The formulation of drafters that are more than a `Block`."""


def reference_at(name: str, drafter: BlockDrafter, row: int, root: int, chain: list[int], wrong: str = "") -> list:
    """Logits after the root of that number, and after every token of a chain below it."""
    block = KINDS.get(type(drafter), Block)(drafter, wrong)
    taps, before, anchor, place = taps_of(name, drafter, row, root, wrong)
    with torch.no_grad():
        return block.guesses(block.hidden(taps, before, anchor, place), anchor, chain)
