"""A second formulation of DREAM: one sequence, no caches, no trees."""

from __future__ import annotations

from functools import cache

import heads
import models
import torch
import transformers
from heads import lesson_of
from tiny_requests import target_of
from torch.nn import functional

from mmspec.compressors import FeatureGuided
from mmspec.drafters import DreamDrafter
from mmspec.models.states import LAST


@cache
def guided(name: str) -> DreamDrafter:
    drafter = DreamDrafter(target_of(name, "sdpa"), compressor=FeatureGuided(0.5))
    return heads.open_gates(models.redraw(drafter, seed=5))


def reference(drafter, states: torch.Tensor, embeds: torch.Tensor, chain: torch.Tensor) -> list[torch.Tensor]:
    """Logits after the root and after every token of a chain below it.

    Args:
        drafter: of which only weights and switches are used.
        states: `[n, hidden]` the target's last states.
        embeds: `[n + 1, hidden]` what stands for its tokens, and for the root behind it.
        chain: `[steps, hidden]` embeddings of the chain's tokens.
    """
    weights, head = dict(drafter.named_parameters()), drafter.head
    groups = head.num_attention_heads // head.num_key_value_heads

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + head.rms_norm_eps).rsqrt() * weights[f"{name}.weight"]

    def split(x):
        return x.view(len(x), -1, head.head_dim).transpose(0, 1)

    def turn(x):
        half = head.head_dim // 2
        angle = torch.arange(x.shape[1])[:, None] * head.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
        first, second = x.split(half, dim=-1)
        parts = [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()]
        return torch.cat(parts, dim=-1)

    def mlp(name, x):
        gate = transformers.activations.ACT2FN[head.hidden_act](linear(f"{name}.gate_proj", x))
        return linear(f"{name}.down_proj", gate * linear(f"{name}.up_proj", x))

    def llama(name, x, read):
        q, k = (turn(split(linear(f"{name}.self_attn.{part}_proj", read))) for part in "qk")
        v = split(linear(f"{name}.self_attn.v_proj", read)).repeat_interleave(groups, dim=0)
        scores = q @ k.repeat_interleave(groups, dim=0).transpose(1, 2) / head.head_dim**0.5
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + linear(f"{name}.self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        return x + mlp(f"{name}.mlp", norm(f"{name}.post_attention_layernorm", x))

    def cross(x, memory):
        name = "layers.1"
        asking = norm(f"{name}.input_layernorm", x)
        q = norm(f"{name}.cross_attn.q_norm", split(linear(f"{name}.cross_attn.q_proj", asking)))
        k = norm(f"{name}.cross_attn.k_norm", split(linear(f"{name}.cross_attn.k_proj", memory)))
        v = split(linear(f"{name}.cross_attn.v_proj", memory))
        rows = [torch.zeros(q.shape[0], head.head_dim)]  # the first token attends to nothing
        for slot in range(1, len(x)):  # a slot asks the states of the tokens before it
            per_head = []
            for number in range(q.shape[0]):
                keys, values = k[number // groups, :slot], v[number // groups, :slot]
                per_head.append((q[number, slot] @ keys.T / head.head_dim**0.5).softmax(-1) @ values)
            rows.append(torch.stack(per_head))
        attended = linear(f"{name}.cross_attn.o_proj", torch.stack(rows).flatten(1))
        x = x + weights[f"{name}.cross_attn_attn_gate"].tanh() * attended
        return x + weights[f"{name}.cross_attn_mlp_gate"].tanh() * mlp(
            f"{name}.mlp", norm(f"{name}.post_attention_layernorm", x)
        )

    table = drafter.target.model.get_output_embeddings().weight
    tokens, guesses = embeds, []
    for step in range(len(chain) + 1):
        x = llama("layers.0", tokens, tokens)
        if drafter.settings.cross_attention:
            x = cross(x, states)
        x = llama("layers.2", x, norm("layers.2.input_layernorm", x))
        output = norm("norm", x[-1:])
        guesses.append(functional.linear(output, table if drafter.draft_vocab_size is None else table[heads.FEW])[0])
        tokens, states = torch.cat([tokens, chain[step : step + 1]]), torch.cat([states, output])
    return guesses


def reference_at(name: str, drafter, row: int, root: int, chain: list[int]) -> list[torch.Tensor]:
    """`reference` with the answer's token number `root` as the root."""
    states, merged, plain = heads.full_pass(name, row)
    length = lesson_of(name).prompt.lengths[row] + root
    table = drafter.target.model.get_input_embeddings()
    with torch.no_grad():
        own = table(torch.tensor(chain, dtype=torch.long)) if chain else merged[:0]
        return reference(
            drafter, states[LAST][:length], (merged if drafter.settings.visual else plain)[: length + 1], own
        )
