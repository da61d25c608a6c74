"""What the tests of heads on hidden states share: variants of EAGLE with random weights, and a yardstick.

The yardstick is `reference`, which knows neither caches nor trees: it writes the drafter's input down as one sequence,
true slots first, then a chain's own, and runs the layer on all of it with ordinary causal attention.
"""

from __future__ import annotations

from functools import cache

import helpers
import models
import torch
import transformers
from helpers import RAGGED, target_of
from torch.nn import functional

from mmspec import Target
from mmspec.drafters import Eagle3Drafter, EagleDrafter
from mmspec.inputs import prepare
from mmspec.runner import LAST
from mmspec.training.lesson import Lesson, Teacher

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
}
FEW = torch.arange(1, 60, 3)
GRID = [(name, variant) for name in FAMILIES for variant in VARIANTS]


def build(target: Target, variant: str):
    """A drafter with random weights."""
    cls, settings = VARIANTS[variant]
    drafter = cls(target, **settings)
    if drafter.draft_vocab_size:
        drafter.choose_vocabulary(FEW)
    return models.redraw(drafter, seed=3)


@cache
def drafter_of(name: str, variant: str):
    return build(target_of(name, "sdpa"), variant)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in units of the largest value if that exceeds 1."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


TOLERANCE = 1e-4
ANSWERS = (9, 2, 12, 8)  # tokens per row


@cache
def lesson_of(name: str) -> Lesson:
    """A ragged batch with pictures and random answers; all features of the target."""
    target, generator = target_of(name, "sdpa"), torch.Generator().manual_seed(1)
    inputs = models.inputs_for(name, helpers.pictures_for(name, RAGGED[0]), list(RAGGED[1]))
    answers = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in ANSWERS]
    return Teacher(target, range(3)).study(prepare(target, inputs=inputs), answers)


def inputs_of(name: str) -> dict:
    return models.inputs_for(name, helpers.pictures_for(name, RAGGED[0]), list(RAGGED[1]))


def guesses_of(drafter, lesson: Lesson, steps: int) -> dict:
    """(row, root, step) to the logits of an unrolled guess."""
    roots, table = lesson.root_slots.shape[1], {}
    with torch.no_grad():
        for step, guess in enumerate(drafter.unroll(lesson, steps)):
            for root, logits in zip(guess.roots.tolist(), guess.logits, strict=True):
                table[(*divmod(root, roots), step)] = logits
    return table


# The yardstick.


def reference(drafter, features: dict, embeds: torch.Tensor, chain: torch.Tensor) -> list[torch.Tensor]:
    """Logits after the root and after every token of a chain below it.

    Args:
        drafter: an EAGLE drafter, of which only weights and switches are used.
        features: the target's states of one sequence, `[n, hidden]` by layer.
        embeds: `[n + 1, hidden]` what stands for its tokens, and for the root behind it.
        chain: `[steps, hidden]` embeddings of the chain's tokens.
    """
    weights, head = dict(drafter.named_parameters()), drafter.head
    third = isinstance(drafter, Eagle3Drafter)
    layer = "midlayer" if third else "layers.0"

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + head.rms_norm_eps).rsqrt() * weights[f"{name}.weight"]

    def fuse():
        if not third:
            return features[LAST]
        streams = [features[number] for number in drafter.feature_layers]
        if drafter.fc_norm is not None:
            streams = [norm(f"fc_norm.{i}", stream) for i, stream in enumerate(streams)]
        joined = torch.cat(streams, dim=-1)
        return linear("fc", joined if drafter.input_norm is None else norm("input_norm", joined))

    def heads(name, x):
        return linear(f"{layer}.self_attn.{name}", x).view(len(x), -1, head.head_dim).transpose(0, 1)

    def turn(x):
        half = head.head_dim // 2
        inverse = head.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[1])[:, None] * inverse
        first, second = x.split(half, dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def run(tokens, states):
        if third:
            normed = norm("midlayer.hidden_norm", states)
            read = torch.cat([norm("midlayer.input_layernorm", tokens), normed], dim=-1)
            residual = normed if drafter.norm_before_residual else states
        else:
            residual = linear("fc", torch.cat([tokens, states], dim=-1))
            read = norm("layers.0.input_layernorm", residual) if drafter.input_norm else residual
        groups = head.num_attention_heads // head.num_key_value_heads
        q, k, v = turn(heads("q_proj", read)), turn(heads("k_proj", read)), heads("v_proj", read)
        k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
        scores = q @ k.transpose(1, 2) / head.head_dim**0.5
        future = torch.ones(len(read), len(read), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        output = residual + linear(f"{layer}.self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        x = norm(f"{layer}.post_attention_layernorm", output)
        gate = transformers.activations.ACT2FN[head.hidden_act](linear(f"{layer}.mlp.gate_proj", x))
        return output + linear(f"{layer}.mlp.down_proj", gate * linear(f"{layer}.mlp.up_proj", x))

    def logits(output):
        if third:
            return linear("lm_head", norm("norm", output))
        table = drafter.target.model.get_output_embeddings().weight
        return functional.linear(output, table if drafter.draft_vocab_size is None else table[FEW])

    tokens, states, guesses = embeds[1:], fuse(), []
    for step in range(len(chain) + 1):
        output = run(tokens, states)[-1:]
        guesses.append(logits(output)[0])
        state = norm("norm", output) if third and drafter.norm_output else output
        tokens, states = torch.cat([tokens, chain[step : step + 1]]), torch.cat([states, state])
    return guesses


@cache
def full_pass(name: str, row: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Of a row of `lesson_of` alone, from the model's own pass: states by layer, merged and plain embeddings."""
    lesson = lesson_of(name)
    inputs = models.inputs_for(name, helpers.pictures_for(name, RAGGED[0]), list(RAGGED[1]))
    model, read = lesson.target.model, []
    hook = lesson.target.family.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    out = helpers.recompute(model, models.one_row(inputs, row), [lesson.answers[row]], output_hidden_states=True)
    hook.remove()
    ids = torch.tensor(lesson.request.token_ids()[row])
    return (
        {**{layer: out.hidden_states[layer][0] for layer in range(3)}, LAST: out.hidden_states[-1][0]},
        read[0][0] if read and read[0] is not None else model.get_input_embeddings()(ids).detach(),
        model.get_input_embeddings()(ids).detach(),
    )


def reference_at(name: str, drafter, row: int, root: int, chain: list[int]) -> list[torch.Tensor]:
    """`reference` with the answer's token number `root` as the root."""
    states, merged, plain = full_pass(name, row)
    length = lesson_of(name).prompt.lengths[row] + root
    embeds = (merged if drafter.visual else plain)[: length + 1]
    table = drafter.target.model.get_input_embeddings()
    with torch.no_grad():
        own = table(torch.tensor(chain, dtype=torch.long)) if chain else merged[:0]
        return reference(drafter, {layer: x[:length] for layer, x in states.items()}, embeds, own)
