"""A second formulation of heads on hidden states, from the papers' formulas.

It knows neither caches nor trees, batches nor compressors: `sequence_of` lists what a drafter's true slots are about,
and `reference` runs the layer on all of them, and on a chain's own slots behind, with ordinary causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import dreams
import models
import torch
import transformers
from heads import FEW, full_pass, lesson_of
from torch.nn import functional

from mmspec.drafters import DreamDrafter, Eagle3Drafter, HiVisDrafter, MsdDrafter, MtpDrafter, ViSpecDrafter
from mmspec.models.states import LAST


@dataclass
class Sequence:
    """The true slots of a row.

    Args:
        features: the target's states, `[n, hidden]` by layer.
        embeds: `[n, hidden]` what each state is paired with.
        places: `[n]` positions; those of a chain follow.
        raw: `[n]` slots that are their embedding itself.
        summary: `[n, hidden]` of the picture, beside every state.
        looked: `[tokens, hidden]` what a corrector looks at.
    """

    features: dict[int, torch.Tensor]
    embeds: torch.Tensor
    places: list[int]
    raw: torch.Tensor
    summary: torch.Tensor
    looked: torch.Tensor


def entries_of(drafter, visual: list[bool]) -> list[list[int]]:
    """What is left of a text: for every entry the tokens that it is the mean of, text one by one.

    Pictures of the tests have 2 x 2 or 3 x 2 tokens.
    """
    entries, picture = [], []
    for place, seen in enumerate([*visual, False]):
        if seen:
            picture.append(place)
            continue
        if picture:
            kind = type(drafter.compressor).__name__
            rows = [picture[i : i + 2] for i in range(0, len(picture), 2)]
            windows = [picture[i : i + 4] for i in range(0, len(picture), 4)]
            entries += {
                "NoneType": [[token] for token in picture],
                "Hide": [],
                "Prune": [[row[1]] for row in rows],  # every second one
                "Pool": windows,
                "Resampler": [[token] for token in picture[-2:]],  # two queries besides that of the summary
            }[kind]
            picture = []
        entries.append([place])
    return entries[:-1]


def sequence_of(name: str, drafter, row: int, root: int, wrong: str = "") -> Sequence:
    """The slots before a root, which is the answer's token of that number.

    Args:
        name: of the family, for `heads.lesson_of`.
        drafter: of which only weights and switches are used.
        row: of the lesson.
        root: see above.
        wrong: a mistake to make: `unshifted`, `positions`, `raw`, `summary`, `unpaired` or `bridge`.
    """
    states, merged, plain = full_pass(name, row)
    ids = lesson_of(name).request.token_ids()[row][: lesson_of(name).prompt.lengths[row] + root + 1]
    visual = [token == models.IMAGE for token in ids]
    entries = entries_of(drafter, visual)
    table = merged if drafter.settings.visual else plain

    def mean(tensor: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
        return torch.stack([tensor[group].mean(0) for group in groups])

    bridge = drafter.settings.bridge_layer if getattr(drafter.settings, "bridge", False) else None
    embeds, summary = mean(table, entries), torch.zeros(len(entries), table.shape[1])
    seen = torch.tensor([visual[group[0]] for group in entries])
    places = [round(sum(group) / len(group)) for group in entries]
    if isinstance(drafter, ViSpecDrafter):
        latest = torch.zeros(table.shape[1])
        for number, group in enumerate(entries):
            if seen[number] and not seen[number - 1]:
                start = 1 + max([n for n in range(group[0]) if not visual[n]], default=-1)
                outputs = adaptor(drafter, merged[start : group[0] + 2])
                embeds[number : number + 2], latest = outputs[:2], outputs[2]
            summary[number] = latest if wrong != "summary" else 0
    blind = drafter.settings.attention_scope == "text"
    if bridge is not None and not blind:
        layer = bridge + 1 if wrong == "bridge" else bridge
        embeds = torch.where(seen[:, None], mean(states[layer], entries), embeds)
    if blind and wrong == "unpaired":  # hides first, as HiViS does
        left = [number for number in range(len(entries)) if not seen[number]]
        entries, places = [entries[number] for number in left], [places[number] for number in left]
        embeds, summary, seen = embeds[left], summary[left], seen[left]
    slots = entries[:-1]
    following = embeds[1:]
    if wrong == "unshifted":  # pairs first, hides then
        following = table[[group[0] + 1 for group in slots]]
    before, packed = isinstance(drafter, ViSpecDrafter), getattr(drafter.settings, "packed", False)
    if wrong == "positions":
        before, packed = False, not before and not packed
    at = [place - 1 for place in places[1:]] if before else places[:-1]  # ViSpec counts from the embedding
    at = list(range(len(slots))) if packed else at
    whole = getattr(drafter.settings, "bridge", True)
    raw = seen[1:] & (isinstance(drafter, (MsdDrafter, ViSpecDrafter)) and whole and wrong != "raw")
    features = {layer: mean(part, slots) for layer, part in states.items()}
    kept = [number for number in range(len(slots)) if not (blind and seen[number + 1])]
    at = [at[number] for number in kept]
    if blind and wrong == "positions":
        at = list(range(len(kept)))
    features = {layer: part[kept] for layer, part in features.items()}
    return Sequence(features, following[kept], at, raw[kept], summary[:-1][kept], looked_at(name, drafter, row))


def looked_at(name: str, drafter, row: int) -> torch.Tensor:
    """What the corrector of a drafter, if it has one, looks at: all visual tokens of a row, as the target reads or
    leaves them."""
    states, merged, _ = full_pass(name, row)
    ids = torch.tensor(lesson_of(name).request.token_ids()[row])
    reads = (drafter.settings.corrector or {}).get("reads")
    return (states[LAST] if reads == "states" else merged)[: len(ids)][ids == models.IMAGE]


def corrected(drafter, looked: torch.Tensor, output: torch.Tensor, level: int, wrong: str = "") -> torch.Tensor:
    """FOVEA's correction of one `[hidden]` state, by its formulas, token by token.

    Args:
        drafter: of which only weights and switches are used.
        looked: see `looked_at`.
        output: the state.
        level: 0 for that of the root.
        wrong: a mistake to make: `all looked at`, or `first level`.
    """
    told = drafter.settings.corrector
    if told is None or level >= told["depth"] or not len(looked):
        return output
    weights = {name.removeprefix("corrector."): part for name, part in drafter.named_parameters()}

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return centred * spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def network(name, x):
        x = linear(f"{name}.0", x)
        return linear(f"{name}.2", x * x.sigmoid())

    asking = norm("state_norm", output) + weights["levels.weight"][0 if wrong == "first level" else level]
    query = linear("q_proj", asking)
    seen = norm("seen_norm", looked)
    attention = (linear("k_proj", seen) @ query / len(query) ** 0.5).softmax(0)
    order = attention.sort(descending=True).indices.tolist()
    raw = next(n for n in range(1, len(order) + 1) if attention[order[:n]].sum() >= told["share"] - 1e-6)
    kept = order[: min(len(order), told["most"], max(told["least"], raw))]
    kept = order if wrong == "all looked at" else kept
    mass = sum(attention[token] for token in kept)
    look = sum(attention[token] / mass * linear("u_proj", seen[token]) for token in kept)
    both = torch.cat([output, look])
    return output + network("gate", both).sigmoid() * network("change", both)


def adaptor(drafter, picture: torch.Tensor) -> torch.Tensor:
    """ViSpec's image adaptor: `[queries, hidden]` of a picture's `[tokens, hidden]`."""
    weights = dict(drafter.compressor.named_parameters())
    queries, size = weights["q"], weights["q"].shape[-1]
    keys, values = picture @ weights["k_proj.weight"].T, picture @ weights["v_proj.weight"].T
    outputs = []
    for query in queries:
        heads = []
        for number, part in enumerate(query):
            own = slice(number * size, (number + 1) * size)
            heads.append((keys[:, own] @ part / size**0.5).softmax(0) @ values[:, own])
        outputs.append(torch.cat(heads) @ weights["o_proj.weight"].T)
    return torch.stack(outputs)


def reference(drafter, sequence: Sequence, chain: torch.Tensor, wrong: str = "") -> list[torch.Tensor]:
    """Logits after the root and after every token of a chain below it.

    Args:
        drafter: of which only weights and switches are used.
        sequence: its true slots.
        chain: `[steps, hidden]` embeddings of the chain's tokens.
        wrong: a mistake to make: `residual`, `not normed` of states that one layer hands to the next, or one of
            `corrected`; `corrected on` of states that go on to the next step.
    """
    weights, head = dict(drafter.named_parameters()), drafter.head
    third, native = isinstance(drafter, Eagle3Drafter), isinstance(drafter, MtpDrafter)
    levels_of = drafter.settings.layers if native else 1
    turned = (drafter.settings.turned if native else None) or head.head_dim
    layer = "midlayer" if third else "layers.0"
    number = 0  # of the layer at work, where there are several
    features, raw, summary = sequence.features, sequence.raw, sequence.summary
    places, levels = list(sequence.places), [0] * len(sequence.embeds)

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + head.rms_norm_eps).rsqrt() * weights[f"{name}.weight"]

    def fuse():
        if not third:
            return features[LAST]
        streams = [features[number] for number in drafter.settings.feature_layers]
        if drafter.fc_norm is not None:
            streams = [norm(f"fc_norm.{i}", stream) for i, stream in enumerate(streams)]
        joined = torch.cat(streams, dim=-1)
        return linear("fc", joined if not drafter.settings.norm_before_fc else norm("input_norm", joined))

    def heads(name, x):
        return linear(f"{layer}.self_attn.{name}", x).view(len(x), -1, head.head_dim).transpose(0, 1)

    def turn(x):
        half = turned // 2
        inverse = head.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.tensor(places)[:, None] * inverse
        first, second, rest = x.split([half, half, head.head_dim - turned], dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest], dim=-1
        )

    def own(name, shared):
        return name if shared or not number else f"layers.{number}.{name}"

    def pair(tokens, states):
        parts = [tokens, states]
        if native:
            shared = drafter.settings.shared_fusion
            names = [own(f"pre_fc_norm_{part}", shared) for part in ("embedding", "hidden")]
            parts = [norm(name, part) for name, part in zip(names, parts, strict=True)]
            fusion = own("fc", shared)
            return linear(fusion, torch.cat(parts[::-1] if drafter.settings.states_first else parts, dim=-1))
        if isinstance(drafter, ViSpecDrafter):
            parts[1] = linear("img_fc", torch.cat([states, summary], dim=-1))
        if isinstance(drafter, HiVisDrafter):
            rows = [0 if wrong == "residual" else min(level, drafter.settings.steps - 1) for level in levels]
            parts.append(weights["residual"][rows])
        return torch.where(raw[:, None], tokens, linear("fc", torch.cat(parts, dim=-1)))

    def run(tokens, states):
        if third:
            normed = norm("midlayer.hidden_norm", states)
            read = torch.cat([norm("midlayer.input_layernorm", tokens), normed], dim=-1)
            residual = normed if drafter.settings.norm_before_residual else states
        else:
            residual = pair(tokens, states)
            read = norm(f"{layer}.input_layernorm", residual) if native or drafter.settings.input_norm else residual
        groups = head.num_attention_heads // head.num_key_value_heads
        q, k, v = heads("q_proj", read), heads("k_proj", read), heads("v_proj", read)
        if native and drafter.settings.head_norms:
            q, k = norm(f"{layer}.self_attn.q_norm", q), norm(f"{layer}.self_attn.k_norm", k)
        q, k = turn(q), turn(k)
        k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
        scores = q @ k.transpose(1, 2) / head.head_dim**0.5
        future = torch.ones(len(read), len(read), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        if native and drafter.settings.gate:
            mixed = mixed * heads("gate_proj", read).sigmoid()
        output = residual + linear(f"{layer}.self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        x = norm(f"{layer}.post_attention_layernorm", output)
        gate = transformers.activations.ACT2FN[head.hidden_act](linear(f"{layer}.mlp.gate_proj", x))
        return output + linear(f"{layer}.mlp.down_proj", gate * linear(f"{layer}.mlp.up_proj", x))

    def settled(output):
        kind = drafter.settings.output_norm
        return output if kind == "none" else norm(own("norm", kind == "shared"), output)

    def logits(output):
        if third:
            return linear("lm_head", norm("norm", output))
        output = settled(output) if native else output
        table = drafter.target.model.get_output_embeddings().weight
        return functional.linear(output, table if drafter.draft_vocab_size is None else table[FEW])

    tokens, states, guesses = sequence.embeds, fuse(), []
    for number in range(levels_of - 1):
        # A layer but the last: in the row of every state its token, a place further ahead from layer to layer. A row
        # without a token yet is of no use, and what stands in it is never read.
        if number > len(chain):
            return guesses
        ahead = torch.cat([tokens, chain])[number : number + len(states)]
        places = [*sequence.places, *range(sequence.places[-1] + 1, sequence.places[-1] + 1 + number)][number:]
        layer = f"layers.{number}"
        output = run(ahead, states)
        guesses.append(logits(output[-1:])[0])
        states = output if wrong == "not normed" else settled(output)
    number, layer = levels_of - 1, f"layers.{levels_of - 1}" if native else layer
    if number > len(chain):
        return guesses
    if number:
        tokens, chain = torch.cat([tokens, chain])[number : number + len(states)], chain[number:]
        places = [*sequence.places, *range(sequence.places[-1] + 1, sequence.places[-1] + 1 + number)][number:]
        chain = chain if drafter.settings.recursive else chain[:0]
    for step in range(len(chain) + 1):
        output = run(tokens, states)[-1:]
        repaired = corrected(drafter, sequence.looked, output[0], step, wrong)[None]
        guesses.append(logits(repaired)[0])
        output = repaired if wrong == "corrected on" else output
        state = norm("norm", output) if third and drafter.settings.norm_output else output
        state = settled(output) if native else state
        tokens, states = torch.cat([tokens, chain[step : step + 1]]), torch.cat([states, state])
        raw, summary = torch.cat([raw, raw[:1] & False]), torch.cat([summary, summary[-1:]])
        places.append(places[-1] + 1)
        levels.append(step + 1)
    return guesses


def reference_at(name: str, drafter, row: int, root: int, chain: list[int], wrong: str = "") -> list[torch.Tensor]:
    """`reference` with the answer's token number `root` as the root; that of DREAM for DREAM."""
    if isinstance(drafter, DreamDrafter):
        return dreams.reference_at(name, drafter, row, root, chain)
    table = drafter.target.model.get_input_embeddings()
    with torch.no_grad():
        own = table(torch.tensor(chain, dtype=torch.long))
        return reference(drafter, sequence_of(name, drafter, row, root, wrong), own, wrong)
