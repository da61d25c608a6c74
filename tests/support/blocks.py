"""Block drafters with random weights, and a second formulation of them from the papers' formulas.

`reference` knows neither caches nor batches, masks nor compressors: one block behind one anchor, entry by entry.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TypeVar

import models
import torch
from heads import FEW, compressor, full_pass, grid, lesson_of
from tiny_requests import target_of
from torch.nn import functional
from yardstick import entries_of

from mmspec import Target
from mmspec.compressors.base import compressor_of
from mmspec.drafters import (
    BlockDrafter,
    DFlashDrafter,
    DFlyDrafter,
    DominoDrafter,
    DSparkDrafter,
    HeadDrafter,
    LiLiCorrDrafter,
)
from mmspec.models.states import LAST

Head = TypeVar("Head", bound=HeadDrafter)

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
    "dflash, norms turned": (DFlashDrafter, {"norms_turned": True, "block_size": 5}),
    "dflash, pool": (DFlashDrafter, compressor("pool.Pool", size=2)),
    "dflash, prune": (DFlashDrafter, compressor("prune.Prune", keep=0.5, by="uniform", seed=0)),
    "dflash, hide": (DFlashDrafter, compressor("hide.Hide", packed=False, margin=[0, 0])),
    "dspark": (DSparkDrafter, {"markov_rank": 6}),
    "dspark, gated": (
        DSparkDrafter,
        {"markov": "gated", "markov_rank": 5, "layout": "same", "confidence": False, "block_size": 6},
    ),
    "dspark, rnn": (
        DSparkDrafter,
        {"markov": "rnn", "markov_rank": 4, "confidence_markov": False, "mask_token_id": 7, "draft_vocab_size": 20}
        | {"block_size": 5},
    ),
    "dflash 2": (
        DFlashDrafter,
        {"conv_kernel": 2, "conv_group": 8, "selector_rank": 5, "selector_top_k": 7, "block_size": 5},
    ),
    "dflash 2, fewer tokens": (
        DFlashDrafter,
        {"conv_kernel": 3, "conv_group": 4, "selector_rank": 3, "draft_vocab_size": 20, "layout": "shifted"}
        | {"mask_token_id": 7, "block_size": 4, "layers": 1},
    ),
    "domino": (DominoDrafter, {"gru_hidden": 6, "rank": 5, "block_size": 5}),
    "domino, corrected from the first": (
        DominoDrafter,
        {"gru_hidden": 4, "rank": 3, "block_size": 5, "layout": "same", "uncorrected": 0},
    ),
    "dfly": (DFlyDrafter, {"block_size": 5, "layers": 3}),
    "dflare": (DFlyDrafter, {"fusion": "mix", "context_maps": True, "correction_size": 0}),
    "lilicorr": (
        LiLiCorrDrafter,
        {"block_size": 5, "candidates": 7, "lattice_layers": 1, "lattice_size": 12, "lattice_heads": 3}
        | {"factor_size": 5, "windows": [None, 4]},
    ),
    "lilicorr, residual": (
        LiLiCorrDrafter,
        {"block_size": 4, "candidates": 6, "lattice_size": None, "lattice_heads": 2, "residual": True, "layers": 1}
        | {"layout": "shifted", "draft_vocab_size": 20, "mask_token_id": 7, "factor_size": 6, "score_scale": 3.0},
    ),
}
GRID = grid(VARIANTS, ["dflash"])


def build(target: Target, variant: str, **changes) -> BlockDrafter:
    """A drafter with random weights."""
    cls, settings = VARIANTS[variant]
    return drafter_like(cls, target, {**settings, "compressor": compressor_of(settings.get("compressor")), **changes})


def drafter_like(cls: type[Head], target: Target, settings: dict) -> Head:
    """A drafter of a class with random weights."""
    torch.manual_seed(0)  # `redraw` only shifts what is a vector, such as that of the mask
    drafter = cls(target, **settings)
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
            in every layer, `places` counts the block from one place further on, `masked` puts masks where it knows
            tokens.
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
        if self.settings.qk_norm and not self.settings.norms_turned:
            made = self.norm(norm, made)
        half = self.head.head_dim // 2
        inverse = self.head.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.tensor(places)[:, None] * inverse
        first, second = made.split(half, dim=-1)
        made = torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )
        return self.norm(norm, made) if self.settings.qk_norm and self.settings.norms_turned else made

    def fused(self, taps: torch.Tensor, layer: int) -> torch.Tensor:
        """What a layer makes keys and values of."""
        total = torch.zeros(len(taps), self.head.hidden_size)
        if self.settings.fusion != "mix":
            total = total + self.linear("fc", taps)
        if self.settings.fusion != "linear":
            shares = self.weights["layer_fusion_weights"][layer].exp()
            for share, part in zip(shares / shares.sum(), taps.chunk(len(shares), dim=-1), strict=True):
                total = total + share * part
        return self.norm("hidden_norm", total)

    def convolved(self, name: str, kernel: int, x: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
        """DFlash 2's convolution of all slots, slot by slot."""
        if not self.settings.conv_kernel:
            return x
        taps, group = self.settings.conv_kernel, self.settings.conv_group
        dynamic = self.linear(f"{name}.kernel_projection", entering).view(len(x), 2, taps, x.shape[-1] // group)
        made = torch.zeros_like(x)
        for slot in range(len(x)):
            for back in range(min(taps, slot + 1)):
                weight = dynamic[slot, kernel, back].repeat_interleave(group)
                made[slot] += (self.weights[f"{name}.base_kernel"][kernel, back] + weight) * x[slot - back]
        return made

    def sees(self, layer: int, slot: int, entry: int) -> bool:
        """Whether a slot sees an entry, whose number counts from the anchor."""
        window = (self.settings.windows or [None] * self.settings.layers)[layer]
        causal = self.settings.causal or (window is not None and self.settings.causal_windows)
        return (window is None or slot - entry < window) and (entry <= slot or not causal)

    def layer(self, number: int, x: torch.Tensor, taps: torch.Tensor, before: list[int], own: list[int]):
        name, context = f"layers.{number}", self.fused(taps, number)
        if self.wrong == "normed":
            context = self.norm(f"{name}.input_layernorm", context)
        normed = self.norm(f"{name}.input_layernorm", x)
        inner = self.convolved(f"{name}.attention_conv", 0, normed, normed)
        attention, own_maps = f"{name}.self_attn", "_target" if self.settings.context_maps else ""

        def keys_values(suffix: str, states: torch.Tensor, places: list[int]):
            values = self.linear(f"{attention}.v_proj{suffix}", states)
            keys = self.turned(f"{attention}.k_proj{suffix}", states, places, f"{attention}.k_norm")
            return keys, values.view(len(states), -1, self.head.head_dim).transpose(0, 1)

        queries = self.turned(f"{attention}.q_proj", inner, own, f"{attention}.q_norm")
        parts = zip(keys_values(own_maps, context, before), keys_values("", inner, own), strict=True)
        keys, values = (torch.cat(pair, dim=1) for pair in parts)
        groups = len(queries) // len(keys)
        keys, values = keys.repeat_interleave(groups, dim=0), values.repeat_interleave(groups, dim=0)
        seen = torch.tensor(
            [
                [self.sees(number, slot, entry - len(context)) for entry in range(keys.shape[1])]
                for slot in range(len(x))
            ]
        )
        scores = (queries @ keys.mT / self.head.head_dim**0.5).masked_fill(~seen, float("-inf"))
        mixed = self.linear(f"{attention}.o_proj", (scores.softmax(-1) @ values).transpose(0, 1).flatten(1))
        x = x + self.convolved(f"{name}.attention_conv", 1, mixed, normed)
        normed = self.norm(f"{name}.post_attention_layernorm", x)
        inner = self.convolved(f"{name}.mlp_conv", 0, normed, normed)
        gate = functional.silu(self.linear(f"{name}.mlp.gate_proj", inner))
        if self.head.hidden_act != "silu":
            gate = functional.gelu(self.linear(f"{name}.mlp.gate_proj", inner), approximate="tanh")
        made = self.linear(f"{name}.mlp.down_proj", gate * self.linear(f"{name}.mlp.up_proj", inner))
        return x + self.convolved(f"{name}.mlp_conv", 1, made, normed)

    def hidden(
        self, taps: torch.Tensor, before: list[int], anchor: int, place: int, known: list[int] | None = None
    ) -> torch.Tensor:
        """The normed states of all slots of a block behind a text.

        Args:
            taps: `[entries, taps * hidden]` the target's states before the anchor.
            before: their positions.
            anchor: its token.
            place: its position.
            known: tokens behind it, which stand in further slots.
        """
        settings, model, known = self.settings, self.drafter.target.model, known or []
        embed, masks = model.get_input_embeddings(), settings.block_size - 1
        tokens = [settings.mask_token_id or 0, anchor, *known]
        rows = embed(torch.tensor(tokens)).detach()
        if settings.embedding_scale is not None:
            rows = embed.weight[tokens].detach() * settings.embedding_scale
        mask = rows[0] if settings.mask_token_id is not None else self.weights["mask_embedding"]
        if self.wrong == "masked":
            rows[2:] = mask
        x = torch.stack([*rows[1:], *[mask] * masks])
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
        slots = hidden[int(self.settings.layout == "same") :]
        tokens = [anchor, *chain][: len(slots)]
        return [self.corrected(state, tokens[: slot + 1]) for slot, state in enumerate(slots[: len(tokens)])]

    def corrected(self, state: torch.Tensor, above: list[int]) -> torch.Tensor:
        """The logits of a slot below the tokens from the anchor on."""
        logits = self.logits(state)
        if getattr(self.settings, "selector_rank", None) is None:
            return logits
        weights, name = self.weights, "candidate_selector"
        wanted = self.linear(f"{name}.hidden_projection", state)
        wanted = wanted * weights[f"{name}.predecessor_codebook.weight"][above[-1]]
        scores = torch.full_like(logits, -torch.inf)
        for token in logits.topk(self.settings.selector_top_k).indices.tolist():
            scores[token] = logits[token] + weights[f"{name}.successor_codebook.weight"][token] @ wanted
        return scores


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


class MarkovBlock(Block):
    """DSpark's."""

    def guesses(self, hidden: torch.Tensor, anchor: int, chain: list[int]) -> list[torch.Tensor]:
        weights, kind, rank = self.weights, self.settings.markov, self.settings.markov_rank
        slots = hidden[int(self.settings.layout == "same") :]
        base, memory, guesses = self.logits(slots), torch.zeros(rank), []
        for slot, (above, state) in enumerate(zip([anchor, *chain], slots, strict=False)):
            row = weights["markov_head.markov_w1.weight"][above]
            added = row
            if kind == "gated":
                added = self.linear("markov_head.gate_proj", torch.cat([state, row])).sigmoid() * row
            if kind == "rnn":
                joint = self.linear("markov_head.joint_proj", torch.cat([memory, row, state]))
                gate, new, out = joint[:rank].sigmoid(), joint[rank : 2 * rank].tanh(), joint[2 * rank :].tanh()
                memory, added = gate * memory + (1 - gate) * new, out
            guesses.append(base[slot] + weights["markov_head.markov_w2.weight"] @ added)
        return guesses

    def sureness(self, hidden: torch.Tensor, anchor: int, chain: list[int]) -> torch.Tensor:
        """The chance that the token below each node of a chain is accepted."""
        slots = hidden[int(self.settings.layout == "same") :][: len(chain) + 1]
        if self.settings.confidence_markov:
            rows = self.weights["markov_head.markov_w1.weight"][[anchor, *chain]]
            slots = torch.cat([slots, rows], dim=-1)
        return self.linear("confidence_head.proj", slots)[:, 0].sigmoid()


class DominoBlock(Block):
    """Domino's."""

    def corrected(self, state: torch.Tensor, above: list[int]) -> torch.Tensor:
        logits = self.logits(state)
        if len(above) <= self.settings.uncorrected:
            return logits
        inner, hidden = (self.weights[f"recurrent.prefix_gru.weight_{kind}_l0"] for kind in ("ih", "hh"))
        memory = torch.zeros(self.settings.gru_hidden)
        for embed in self.drafter.target.model.get_input_embeddings()(torch.tensor(above)):
            (reset, update, new), (reset_h, update_h, new_h) = (inner @ embed).chunk(3), (hidden @ memory).chunk(3)
            keep = (update + update_h).sigmoid()
            memory = (1 - keep) * (new + (reset + reset_h).sigmoid() * new_h).tanh() + keep * memory
        made = functional.silu(self.linear("recurrent.embed_proj.0", torch.cat([state, memory])))
        return logits + self.linear("recurrent.embed_proj.2", made)


class DFlyBlock(Block):
    """DFly's."""

    def corrected(self, state: torch.Tensor, above: list[int]) -> torch.Tensor:
        if self.settings.correction_size == 0:
            return self.logits(state)
        embed, name = self.drafter.target.model.get_input_embeddings()(torch.tensor(above[-1])), "hidden_correction"
        both = torch.cat([self.norm(f"{name}.hidden_norm", state), self.norm(f"{name}.embed_norm", embed)])
        inner = functional.silu(self.linear(f"{name}.gate_proj", both)) * self.linear(f"{name}.up_proj", both)
        return self.logits(state + self.linear(f"{name}.down_proj", inner))


class LatticeBlock(Block):
    """LiLiCorr's: node by node, from a list of all candidates of all slots."""

    def hidden(self, taps, before, anchor: int, place: int, known: list[int] | None = None) -> torch.Tensor:
        self.newest, self.known = self.fused(taps, -1)[-2 if self.wrong == "newest" else -1], len(known or [])
        return super().hidden(taps, before, anchor, place, known)

    def guesses(self, hidden: torch.Tensor, anchor: int, chain: list[int]) -> list[torch.Tensor]:
        # Only what stands behind the root is a lattice.
        slots, chain = hidden[int(self.settings.layout == "same") + self.known :], chain[self.known :]
        base, known, weights = self.logits(slots), list(range(models.VOCAB)), self.weights
        if self.drafter.draft_vocab_size:
            known = FEW.tolist()
        best = [row.topk(self.settings.candidates).indices.tolist() for row in base]
        nodes = self.nodes(slots, base, best, known)
        for layer in range(self.settings.lattice_layers):
            nodes = self.lattice_layer(f"lilicorr.layers.{layer}", nodes)
        context = self.norm("lilicorr.anchor_norm", self.linear("lilicorr.context_proj", self.newest))
        above, guesses = self.unit("anchor_out_head", context), [torch.empty(0)] * self.known
        for slot, token in zip(range(len(slots)), [*chain, None], strict=False):
            scores = torch.full_like(base[slot], -torch.inf)
            for number in best[slot]:
                score = self.settings.score_scale * (above @ self.vector("in_head", nodes[slot, number], context))
                if self.settings.residual:
                    score = weights["lilicorr.gain"] * score + base[slot, number]
                scores[number] = score if base[slot, number].isfinite() else -torch.inf
            guesses.append(scores)
            node = nodes.get((slot, known.index(token))) if token in known else None
            above = torch.zeros_like(above) if node is None else self.vector("out_head", node, context)
        return guesses

    def unit(self, name: str, states: torch.Tensor) -> torch.Tensor:
        made = self.linear(f"lilicorr.{name}", states)
        return made / made.norm().clamp(min=self.settings.vector_eps)

    def vector(self, name: str, node: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        node = self.norm("lilicorr.output_norm", node)
        both = torch.cat([node, context, node * context])
        return self.unit(name, functional.silu(self.linear("lilicorr.factor_input_proj", both)))

    def nodes(self, slots: torch.Tensor, base: torch.Tensor, best: list[list[int]], known: list[int]) -> dict:
        """What the layers read, by slot and number of a candidate."""
        embed, name, nodes = self.drafter.target.model.get_input_embeddings(), "lilicorr", {}
        for slot, numbers in enumerate(best):
            log_p = base[slot].log_softmax(-1).clamp(min=-100)
            for rank, number in enumerate(numbers):
                own, first = log_p[number].item(), log_p[numbers[0]].item()
                facts = torch.tensor([own, math.exp(own), own - first, rank / (len(numbers) - 1), float(rank == 0)])
                facts = (facts - facts.mean()) / (facts.var(unbiased=False) + 1e-5).sqrt()
                facts = (
                    facts * self.weights[f"{name}.feature_mlp.0.weight"] + self.weights[f"{name}.feature_mlp.0.bias"]
                )
                token = embed(torch.tensor(known[number]))
                if self.settings.lattice_size is not None:
                    token = self.linear(f"{name}.token_proj", token)
                nodes[slot, number] = (
                    token
                    + self.linear(f"{name}.pass_hidden_proj", slots[slot])
                    + self.linear(f"{name}.feature_mlp.3", functional.silu(self.linear(f"{name}.feature_mlp.1", facts)))
                    + self.weights[f"{name}.slot_embedding"][0, 0, slot, 0]
                    + self.weights[f"{name}.rank_embedding"][0, 0, 0, rank]
                )
        return nodes

    def lattice_layer(self, name: str, nodes: dict) -> dict:
        weights, heads, made = self.weights, self.settings.lattice_heads, {}
        size = len(next(iter(nodes.values())))
        cuts = [slice(head * size // heads, (head + 1) * size // heads) for head in range(heads)]
        joint = {}
        for key, node in nodes.items():
            normed = self.norm(f"{name}.attn_norm", node)
            both = weights[f"{name}.attn.in_proj_weight"] @ normed + weights[f"{name}.attn.in_proj_bias"]
            joint[key] = both.split(size)
        for key, node in nodes.items():
            parts = []
            for head, cut in enumerate(cuts):
                scores = []
                for other, (_, keys, _) in joint.items():
                    bias = weights["lilicorr.relative_slot_bias"][head, key[0] - other[0] + self.settings.drafts]
                    bias = bias + (weights["lilicorr.same_slot_bias"][head] if key[0] == other[0] else 0)
                    scores.append(joint[key][0][cut] @ keys[cut] / (size // heads) ** 0.5 + bias)
                values = torch.stack([values[cut] for _, _, values in joint.values()])
                parts.append(torch.stack(scores).softmax(0) @ values)
            node = node + self.linear(f"{name}.attn.out_proj", torch.cat(parts))
            inner = functional.silu(self.linear(f"{name}.mlp.0", self.norm(f"{name}.mlp_norm", node)))
            made[key] = node + self.linear(f"{name}.mlp.2", inner)
        return made


KINDS: dict[type[BlockDrafter], type[Block]] = {
    DSparkDrafter: MarkovBlock,
    DominoDrafter: DominoBlock,
    DFlyDrafter: DFlyBlock,
    LiLiCorrDrafter: LatticeBlock,
}
"""The formulation of drafters that are more than a `Block`."""


def reference_at(
    name: str, drafter: BlockDrafter, row: int, root: int, chain: list[int], wrong: str = "", unread: int = 0
) -> list:
    """Logits after the root of that number, and after every token of a chain below it; the target has not read so many
    tokens before the root."""
    block = KINDS.get(type(drafter), Block)(drafter, wrong)
    taps, before, anchor, place = taps_of(name, drafter, row, root - unread, wrong)
    known = lesson_of(name).answers[row][root - unread + 1 : root + 1]
    with torch.no_grad():
        return block.guesses(block.hidden(taps, before, anchor, place, known), anchor, known + chain)[unread:]
