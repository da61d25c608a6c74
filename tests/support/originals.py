"""What the published drafters compute, from a checkpoint's tensors and configuration, one sequence at a time.

Written after the originals as they were observed, not after this library: it knows no drafter, cache, tree or batch,
and reads tensors by their published names. Of the target it takes states, embeddings and ids of a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

HEAD_DIM = 8


@dataclass
class Text:
    """What a target made of prompt and answer, up to the root.

    Args:
        ids: `n + 1` tokens, the root last.
        states: what entered every layer, `[n, hidden]`, and by -1 what left the last norm.
        read: `[n + 1, hidden]` embeddings as the language model read them, pictures among them.
        table: `[vocab, hidden]` the target's embedding.
        head: `[vocab, hidden]` the target's vocabulary head.
        image: the placeholder token.
        prompt: tokens of the prompt.
        axes: `[3, n + 1]` positions of time, height and width.
    """

    ids: list[int]
    states: dict[int, torch.Tensor]
    read: torch.Tensor
    table: torch.Tensor
    head: torch.Tensor
    image: int
    prompt: int
    axes: torch.Tensor

    def picture_starts(self) -> list[tuple[int, int]]:
        """Where every picture begins and ends."""
        spans, start = [], None
        for place, token in enumerate([*self.ids, -1]):
            if token == self.image and start is None:
                start = place
            elif token != self.image and start is not None:
                spans.append((start, place))
                start = None
        return spans


@dataclass
class Slots:
    """True slots: what the layer's residual stream is at each, and where it stands (`[n]` or `[3, n]`)."""

    stream: torch.Tensor
    places: torch.Tensor


class Original:
    """A layer's arithmetic, by the names of a checkpoint.

    Args:
        tensors: of the checkpoint, without `model.` prefixes.
        eps, base: of norms and of rotary positions.
        sections: frequencies of each axis; None for one axis.
        interleaved: whether the axes take turns.
    """

    def __init__(self, tensors: dict, eps: float, base: float, sections=None, interleaved: bool = False):
        self.tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        self.eps, self.base, self.sections, self.interleaved = eps, base, sections, interleaved

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.tensors[f"{name}.weight"]

    def heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(name, x).view(len(x), -1, HEAD_DIM).transpose(0, 1)

    def turn(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        half = HEAD_DIM // 2
        angles = torch.zeros(places.shape[-1], half)
        for number in range(half):
            axis = places if places.ndim == 1 else places[self.axis_of(number)]
            angles[:, number] = axis.float() * self.base ** (-number / half)
        first, second = x.split(half, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def axis_of(self, number: int) -> int:
        time, height, width = self.sections
        if not self.interleaved:
            return 0 if number < time else 1 if number < time + height else 2
        if number % 3 == 1 and number < 3 * height:
            return 1
        return 2 if number % 3 == 2 and number < 3 * width else 0

    @classmethod
    def of(cls, drafter) -> Original:
        """That of a drafter's own weights, whose heads are of `HEAD_DIM` numbers."""
        head = drafter.head
        rope = head.rope_parameters
        axes = rope.get("mrope_section"), rope.get("mrope_interleaved", False)
        return cls(dict(drafter.named_parameters()), head.rms_norm_eps, rope["rope_theta"], *axes)

    def attend(self, q, k, v, sees: torch.Tensor | None = None) -> torch.Tensor:
        """`[heads, n, dim]` queries over `[key_value_heads, m, dim]`; `sees` is `[n, m]`, by default all is seen."""
        sees = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool) if sees is None else sees
        groups = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
        scores = (q @ k.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~sees, torch.finfo(q.dtype).min)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(self.linear(f"{name}.gate_proj", x))
        return self.linear(f"{name}.down_proj", gate * self.linear(f"{name}.up_proj", x))

    def layer(self, name: str, read, stream, places, sees=None) -> torch.Tensor:
        """What a Llama layer makes of a stream `[n, hidden]` of which its attention reads something else."""
        sees = torch.ones(len(read), len(read), dtype=torch.bool).tril() if sees is None else sees
        q, k, v = (self.heads(f"{name}.self_attn.{part}_proj", read) for part in "qkv")
        attended = self.attend(self.turn(q, places), self.turn(k, places), v, sees)
        stream = stream + self.linear(f"{name}.self_attn.o_proj", attended)
        return stream + self.mlp(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", stream))


class Fused(Original):
    """EAGLE and what has its layer behind a fusion. A subclass says which slots a text has, and how one is drafted."""

    def slots(self, text: Text) -> Slots:
        return Slots(self.fuse(text.read[1:], text.states[-1]), torch.arange(len(text.ids) - 1))

    def fuse(self, embeds, states, level: int = 0) -> torch.Tensor:
        return self.linear("fc", torch.cat([embeds, states], dim=-1))

    def draft(self, text: Text, chain: list[int]) -> list[torch.Tensor]:
        """Logits after the root and after every token of a chain below it."""
        slots, guesses = self.slots(text), []
        stream, places = slots.stream, slots.places
        for level in range(len(chain) + 1):
            read = stream
            if "layers.0.input_layernorm.weight" in self.tensors:
                read = self.norm("layers.0.input_layernorm", stream)
            output = self.layer("layers.0", read, stream, places)[-1:]
            guesses.append(output[0] @ text.head.T)
            if level < len(chain):
                stream = torch.cat([stream, self.fuse(text.table[chain[level]][None], output, level + 1)])
                places = torch.cat([places, places[-1:] + 1])
        return guesses


class Decoupled(Fused):
    """MSD: before a visual token stands its embedding, untouched."""

    def slots(self, text: Text) -> Slots:
        slots = super().slots(text)
        for place, token in enumerate(text.ids[1:]):
            if token == text.image:
                slots.stream[place] = text.read[place + 1]
        return slots


class Hidden(Fused):
    """HiViS: hide, then shift; a residual by level."""

    residual = "residual"

    def __init__(self, *args, packed: bool, **options):
        super().__init__(*args, **options)
        self.packed = packed

    def slots(self, text: Text) -> Slots:
        hidden = set()
        for start, end in text.picture_starts():
            # For Qwen: the delimiter before, the picture, the delimiter behind and one token more.
            hidden |= set(range(start, end) if self.packed else range(start - 1, end + 2))
        kept = [place for place in range(len(text.ids)) if place not in hidden]
        before, behind = torch.tensor(kept[:-1]), torch.tensor(kept[1:])
        places = torch.arange(len(before)) if self.packed else before
        return Slots(self.fuse(text.read[behind], text.states[-1][before]), places)

    def fuse(self, embeds, states, level: int = 0) -> torch.Tensor:
        rows = self.tensors[self.residual]
        row = rows[min(level, len(rows) - 1)].expand(len(states), -1)
        return self.linear("fc", torch.cat([embeds, states, row], dim=-1))


class Adapted(Fused):
    """ViSpec: a picture becomes a few tokens and a vector g of the whole of it."""

    def slots(self, text: Text) -> Slots:
        hidden = text.read.shape[1]
        stream, places, cursor, self.g = [], [], 0, torch.zeros(hidden)

        def ordinary(first: int, end: int) -> None:
            for place in range(first, end):
                stream.append(self.fuse(text.read[place + 1][None], text.states[-1][place][None])[0])
                places.append(place)

        for start, end in text.picture_starts():
            ordinary(cursor, start - 1)
            *entries, g = self.adaptor(text.read[start:end])
            queries = len(entries) + 1
            for number, entry in enumerate(entries):
                stream.append(entry)
                places.append(end - queries + number)
            self.g, cursor = g, end - 1
        ordinary(cursor, len(text.ids) - 1)
        return Slots(torch.stack(stream), torch.tensor(places))

    def adaptor(self, picture: torch.Tensor) -> list[torch.Tensor]:
        queries = self.tensors["imadpt.q"].transpose(0, 1)
        k, v = (self.heads(f"imadpt.{part}_proj", picture) for part in "kv")
        everything = torch.ones(queries.shape[1], len(picture), dtype=torch.bool)
        return list(self.linear("imadpt.o_proj", self.attend(queries, k, v, everything)))

    def fuse(self, embeds, states, level: int = 0) -> torch.Tensor:
        states = self.linear("img_fc", torch.cat([states, self.g.expand(len(states), -1)], dim=-1))
        return self.linear("fc", torch.cat([embeds, states], dim=-1))


class Third(Original):
    """EAGLE-3.

    Args:
        layers: three, by the states that enter them.
        prefix: of the layer's keys.
        norm_output, norm_before_residual: the switches that leave no weights.
    """

    def __init__(self, *args, layers, prefix="midlayer", norm_output=False, norm_before_residual=False, **options):
        super().__init__(*args, **options)
        self.layers, self.prefix = layers, prefix
        self.norm_output, self.norm_before_residual = norm_output, norm_before_residual

    def fused(self, streams: list[torch.Tensor]) -> torch.Tensor:
        if "fc_norm.0.weight" in self.tensors:
            streams = [self.norm(f"fc_norm.{number}", stream) for number, stream in enumerate(streams)]
        joined = torch.cat(streams, dim=-1)
        if "input_norm.weight" in self.tensors:
            joined = self.norm("input_norm", joined)
        return self.linear("fc", joined)

    def draft(self, text: Text, chain: list[int]) -> list[torch.Tensor]:
        states = self.fused([text.states[layer] for layer in self.layers])
        # Pictures are placeholders here. A text's own table may be the drafter's.
        table = self.tensors.get("embed_tokens.weight", text.table)
        embeds = table[torch.tensor(text.ids[1:])]
        count = len(states)
        places = torch.arange(count) if self.sections is None else text.axes[:, :count]
        guesses = []
        for level in range(len(chain) + 1):
            normed = self.norm(f"{self.prefix}.hidden_norm", states)
            read = torch.cat([self.norm(f"{self.prefix}.input_layernorm", embeds), normed], dim=-1)
            stream = normed if self.norm_before_residual else states
            output = self.layer(self.prefix, read, stream, places)[-1:]
            guesses.append(self.linear("lm_head", self.norm("norm", output))[0])
            if level < len(chain):
                states = torch.cat([states, self.norm("norm", output) if self.norm_output else output])
                embeds = torch.cat([embeds, table[chain[level]][None]])
                places = torch.cat([places, places[..., -1:] + 1], dim=-1)
        return guesses


class Parallel(Third):
    """P-EAGLE: EAGLE-3's true slots, and behind them one slot for every further depth, all in one pass.

    Args:
        mask: the mask token; None where a vector was trained in place of its embedding.
        wrong: a mistake to make: `later` lets the slots of the draft see those behind them, `alone` none but the true
            ones and themselves, `places` counts them from one place further on, `state` reads no state at them.
    """

    def __init__(self, *args, mask: int | None, wrong: str = "", **options):
        super().__init__(*args, prefix="layers.0", **options)
        self.mask, self.wrong = mask, wrong

    def draft(self, text: Text, chain: list[int]) -> list[torch.Tensor]:
        table, count = self.tensors.get("embed_tokens.weight", text.table), len(text.ids) - 1
        places = torch.arange(count) if self.sections is None else text.axes[:, :count]
        return self.guesses(text.states, table[torch.tensor(text.ids[1:])], places, table, len(chain) + 1)

    def guesses(self, states: dict, embeds, places, table, depths: int) -> list[torch.Tensor]:
        """Logits of so many depths behind a text.

        Args:
            states: `[n, hidden]` of the target, by layer.
            embeds: `[n, hidden]` what they are paired with.
            places: where these slots stand.
            table: `[vocab, hidden]` of the embedding.
            depths: of which all but the first are masks.
        """
        count, masks = len(embeds), depths - 1
        unread = self.tensors["mask_hidden"].view(3, -1) * (self.wrong != "state")
        row = self.tensors["mask_embedding"] if self.mask is None else table[self.mask]
        streams = [torch.cat([states[layer], unread[i].expand(masks, -1)]) for i, layer in enumerate(self.layers)]
        embeds = torch.cat([embeds, row.expand(masks, -1)])
        further = torch.arange(1, depths) + (self.wrong == "places")
        places = torch.cat([places, places[..., -1:] + further], dim=-1)
        sees = torch.ones(len(embeds), len(embeds), dtype=torch.bool).tril()
        if self.wrong == "later":
            sees[count:, count:] = True
        if self.wrong == "alone":
            sees[count:, count:] = torch.eye(masks, dtype=torch.bool)
        stream, number = self.fused(streams), 0
        while f"layers.{number}.mlp.up_proj.weight" in self.tensors:
            name = f"layers.{number}"
            read = self.norm(f"{name}.{'input_layernorm' if number else 'hidden_norm'}", stream)
            if number == 0:
                stream = read if self.norm_before_residual else stream
                read = torch.cat([self.norm(f"{name}.input_layernorm", embeds), read], dim=-1)
            stream, number = self.layer(name, read, stream, places, sees), number + 1
        logits = self.linear("lm_head", self.norm("norm", stream[count - 1 :]))
        drafted = torch.arange(logits.shape[1]) + self.tensors.get("d2t", 0)
        return list(logits.masked_fill(drafted == (-1 if self.mask is None else self.mask), -torch.inf))


class Native(Original):
    """Native multi-token layers. One is used over and over; of several each guesses a token further ahead.

    Args:
        names: by layer, those of the norms of embeddings, of states and of the output, of the fusion, and of the layer.
        added: what norms add to their weight.
        turned: numbers of a head that positions turn.
        states_first: whether the fusion reads states before embeddings.
    """

    def __init__(self, *args, names, added: float = 0.0, turned: int = HEAD_DIM, states_first: bool = False, **options):
        super().__init__(*args, **options)
        self.names, self.added, self.turned, self.states_first = names, added, turned, states_first

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = self.tensors[f"{name}.weight"] + self.added
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * scale

    def rotate(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Turn pairs of the first numbers; the others are left."""
        half, out = self.turned // 2, x.clone()
        for number in range(half):
            axis = places if places.ndim == 1 else places[self.axis_of(number)]
            angle = axis.float() * self.base ** (-2 * number / self.turned)
            first, second = x[..., number], x[..., number + half]
            out[..., number] = first * angle.cos() - second * angle.sin()
            out[..., number + half] = second * angle.cos() + first * angle.sin()
        return out

    def draft(self, text: Text, chain: list[int]) -> list[torch.Tensor]:
        count, states, guesses = len(text.ids) - 1, text.states[-1], []
        places = torch.arange(count) if self.sections is None else text.axes[:, :count]
        after = torch.arange(1, len(chain) + 1)
        places = torch.cat([places, places[..., -1:] + after], dim=-1)
        embeds = torch.cat([text.read[1:], text.table[torch.tensor(chain, dtype=torch.long)]])
        if len(self.names) > 1:
            # The k-th layer, from 0, stands in the row of every state, and reads the token k + 1 places ahead.
            for ahead in range(min(len(self.names), len(chain) + 1)):
                rows = slice(ahead, ahead + count)
                states = self.through(self.names[ahead], embeds[rows], states, places[..., rows])
                guesses.append(states[-1] @ text.head.T)
            return guesses
        for level in range(len(chain) + 1):
            rows = slice(count + level)
            output = self.through(self.names[0], embeds[rows], states, places[..., rows])[-1:]
            guesses.append(output[0] @ text.head.T)
            states = torch.cat([states, output])
        return guesses

    def through(self, names, embeds, states, places) -> torch.Tensor:
        """What one layer makes of embeddings and states, `[n, hidden]` each."""
        embedding, hidden, last, fusion, layer = names
        parts = [self.norm(embedding, embeds), self.norm(hidden, states)]
        stream = self.linear(fusion, torch.cat(parts[::-1] if self.states_first else parts, dim=-1))
        read = self.norm(f"{layer}.input_layernorm", stream)
        asked = self.linear(f"{layer}.self_attn.q_proj", read).view(len(read), -1, HEAD_DIM)
        gate = None
        if asked.shape[1] * HEAD_DIM > self.tensors[f"{layer}.self_attn.o_proj.weight"].shape[1]:
            asked, gate = asked[:, 0::2], asked[:, 1::2].flatten(1)
        q, k = asked.transpose(0, 1), self.heads(f"{layer}.self_attn.k_proj", read)
        if f"{layer}.self_attn.q_norm.weight" in self.tensors:
            q, k = self.norm(f"{layer}.self_attn.q_norm", q), self.norm(f"{layer}.self_attn.k_norm", k)
        sees = torch.ones(len(read), len(read), dtype=torch.bool).tril()
        v = self.heads(f"{layer}.self_attn.v_proj", read)
        attended = self.attend(self.rotate(q, places), self.rotate(k, places), v, sees)
        attended = attended if gate is None else attended * gate.sigmoid()
        stream = stream + self.linear(f"{layer}.self_attn.o_proj", attended)
        stream = stream + self.mlp(f"{layer}.mlp", self.norm(f"{layer}.post_attention_layernorm", stream))
        return self.norm(last, stream)


class Asking(Original):
    """DREAM: unshifted tokens, and a memory of the target's states. Below the root the drafter's own outputs fill it.

    A drafted tree is entered node by node: `draft` with a chain is the tree that has one node a level.
    """

    def draft(self, text: Text, chain: list[int]) -> list[torch.Tensor]:
        levels = [[(token, 0)] for token in chain]
        return [guesses[0] for guesses in self.levels(text, levels, tree_masked=True)]

    def levels(self, text: Text, levels: list[list[tuple[int, int]]], tree_masked: bool) -> list[list[torch.Tensor]]:
        """Logits after the root, and after every node of every level.

        Args:
            text: up to the root.
            levels: per level its nodes: a token, and the number of its parent in the level above.
            tree_masked: whether the memory is masked as the tree is; without, everything earlier is seen.
        """
        count = len(text.ids)  # slots of the text: all of its tokens, the root too
        embeds, memory, places = text.read, text.states[-1], torch.arange(count)
        # Of every slot, which slots it sees; and slot t brings along the memory entry t - 1, the state before it.
        sees = torch.ones(count, count, dtype=torch.bool).tril()
        first, outputs, guesses = [count - 1], [], []
        for level in range(len(levels) + 1):
            output = self.read(text, embeds, memory, places, sees, tree_masked)
            newest = list(range(first[-1], len(embeds)))
            outputs.append(output[newest])
            guesses.append([vector @ text.head.T for vector in output[newest]])
            if level == len(levels):
                break
            nodes, start = levels[level], len(embeds)
            tokens = torch.tensor([token for token, _ in nodes])
            parents = torch.tensor([parent for _, parent in nodes])
            embeds = torch.cat([embeds, text.table[tokens]])
            memory = torch.cat([memory, outputs[-1][parents]])
            places = torch.cat([places, torch.full((len(nodes),), count + level)])
            grown = torch.zeros(len(embeds), len(embeds), dtype=torch.bool)
            grown[:start, :start] = sees
            for number, parent in enumerate(parents.tolist()):
                grown[start + number, :start] = sees[first[-1] + parent]
                grown[start + number, start + number] = True
            sees = grown
            first.append(start)
        return guesses

    def read(self, text, embeds, memory, places, sees, tree_masked: bool) -> torch.Tensor:
        x = self.layer("layers.0", embeds, embeds, places, sees)
        asking = self.heads("layers.1.cross_attn.q_proj", self.norm("layers.1.input_layernorm", x))
        k, v = (self.heads(f"layers.1.cross_attn.{part}_proj", memory) for part in "kv")
        asked = sees if tree_masked else torch.ones_like(sees).tril()
        asked = asked[:, 1:].clone()
        asked[0] = False
        q = self.norm("layers.1.cross_attn.q_norm", asking)
        k = self.norm("layers.1.cross_attn.k_norm", k)
        attended = self.attend(q, k, v, asked)
        # The first token saw the prompt's states alone, all of them, when the prompt was read.
        attended[0] = v[:, : text.prompt].mean(1).repeat_interleave(q.shape[0] // v.shape[0], dim=0).flatten()
        x = x + self.tensors["layers.1.cross_attn_attn_gate"].tanh() * self.linear(
            "layers.1.cross_attn.o_proj", attended
        )
        gate = self.tensors["layers.1.cross_attn_mlp_gate"].tanh()
        x = x + gate * self.mlp("layers.1.mlp", self.norm("layers.1.post_attention_layernorm", x))
        return self.norm("norm", self.layer("layers.2", self.norm("layers.2.input_layernorm", x), x, places, sees))
