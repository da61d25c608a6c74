"""EAGLE drafters: what they draft, whatever happened before, is their layer on an explicit sequence; so is training.

The yardstick is `reference`, which knows neither caches nor trees: it writes the drafter's input down as one sequence,
true slots first, then a chain's own, and runs the layer on all of it with ordinary causal attention.
"""

from __future__ import annotations

import json
import re
from functools import cache

import helpers
import models
import pytest
import torch
import transformers
from helpers import RAGGED, case, target_of
from laws import g_test
from safetensors.torch import load_file
from test_sampled_text import PROMPT, ROWS, TOY_TOKENS, exact_law, toy
from torch.nn import functional

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import DraftModelDrafter, Eagle3Drafter, EagleDrafter, cut_from_target
from mmspec.inputs import prepare
from mmspec.outcome import Verdict
from mmspec.runner import LAST
from mmspec.training.lesson import Lesson, Teacher, append
from mmspec.trees import Chain, StaticTree, TreeBuilder
from mmspec.verifiers import RejectionSampling

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


@pytest.mark.parametrize(("name", "variant"), GRID)
def test_unrolled_guesses_are_those_of_the_layer_on_the_explicit_sequence(name, variant):
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    roots = lesson.root_slots.shape[1]
    guesses, expected = list(drafter.unroll(lesson, 4)), {}
    for row, answer in enumerate(lesson.answers):
        for root in range(len(answer) - 1):
            chain = answer[root + 1 : -1][:3]
            for step, logits in enumerate(reference_at(name, drafter, row, root, chain)):
                expected[step, row * roots + root] = sum(map(len, lesson.answers[:row])) + root + step + 1, logits
    seen = {}
    for step, guess in enumerate(guesses):
        for number, (root, place) in enumerate(zip(guess.roots.tolist(), guess.places.tolist(), strict=True)):
            seen[step, root] = place, guess.logits[number]
    assert seen.keys() == expected.keys() and len(seen) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(4))
    for key, (place, logits) in expected.items():
        assert seen[key][0] == place
        assert error(seen[key][1], logits) < TOLERANCE, key


# Decoding.


class Told(TreeBuilder):
    """A tree of full width whose one path holds tokens that it is told, as if the drafter had guessed them.

    Args:
        width: children of every node.
        depth: levels.
    """

    def __init__(self, width: int, depth: int):
        self.width, self.depth = width, depth

    def build(self, growth):
        self.logits, self.path, node = [], [0], growth.root
        for level in range(self.depth):
            children = growth.expand(node, self.width)
            self.logits.append(growth.logits)
            # The right child is the last one on one level, the first one on the next.
            place = (self.path[-1] - int(node[0, 0])) * self.width + (self.width - 1) * (level % 2 == 0)
            self.path.append(int(children[0, place]))
            growth.tokens[:, self.path[-1]] = self.told[:, level]
            node = children
        return growth.keep_all()


class Script:
    """A request whose rows write the answers of a lesson, whatever the target thinks of them.

    Args:
        drafter: drafts for it.
        inputs: of the prompts.
        answers: token ids per row.
        tree: see `Told`.
    """

    @torch.inference_mode()
    def __init__(self, drafter, inputs: dict, answers: list[list[int]], tree: Told):
        target = drafter.target
        request = prepare(target, inputs=inputs)
        layers = drafter.feature_layers
        self.context = target.prefill(request, target.encode(request), feature_layers=layers)
        self.answers, self.places = answers, [0] * len(answers)
        for history, answer in zip(self.context.history, answers, strict=True):
            history.append(answer[0])
        self.session = drafter.fork(tree)
        self.session.start(self.context)

    @torch.inference_mode()
    def round(self, accepted: list[int]):
        """Draft, score, and accept so many tokens per row; returns the builder and the tree."""
        builder, context = self.session.tree, self.context
        ahead = [
            (answer[place + 1 :] + [3] * builder.depth)[: builder.depth]
            for answer, place in zip(self.answers, self.places, strict=True)
        ]
        builder.told = torch.tensor(ahead)
        tree = self.session.draft(torch.tensor([history[-1] for history in context.history])).validate()
        scores = context.score(tree)
        left = [len(answer) - 1 - place for answer, place in zip(self.answers, self.places, strict=True)]
        accepted = [max(min(count, n - 1), 0) for count, n in zip(accepted, left, strict=True)]
        path = torch.tensor([builder.path[: count + 1] + [-1] * (builder.depth - count) for count in accepted])
        bonus = [
            answer[min(place + 1 + count, len(answer) - 1)]
            for answer, place, count in zip(self.answers, self.places, accepted, strict=True)
        ]
        verdict = Verdict(path, torch.tensor(accepted) + 1, torch.tensor(bonus))
        context.commit(tree, verdict)
        self.session.observe(tree, scores, verdict)
        for row, count in enumerate(accepted):
            if context.active[row]:
                self.places[row] += count + 1
                context.active[row] = self.places[row] < len(self.answers[row]) - 1
        return builder, tree


# What each round accepts, per row: nothing, one token, several; the second row ends at once.
ROUNDS = ([0, 1, 3, 2], [2, 0, 0, 1], [0, 0, 2, 0])


def inputs_of(name: str) -> dict:
    return models.inputs_for(name, helpers.pictures_for(name, RAGGED[0]), list(RAGGED[1]))


def decode(drafter, name: str, width: int, depth: int = 4):
    """Yields per round: the active rows with the places of their roots, the builder and the tree."""
    script = Script(drafter, inputs_of(name), lesson_of(name).answers, Told(width, depth))
    for accepted in ROUNDS:
        roots = {row: place for row, place in enumerate(script.places) if script.context.active[row]}
        yield roots, *script.round(accepted)


def guesses_of(drafter, lesson: Lesson, steps: int) -> dict:
    """(row, root, step) to the logits of an unrolled guess."""
    roots, table = lesson.root_slots.shape[1], {}
    with torch.no_grad():
        for step, guess in enumerate(drafter.unroll(lesson, steps)):
            for root, logits in zip(guess.roots.tolist(), guess.logits, strict=True):
                table[(*divmod(root, roots), step)] = logits
    return table


LEARNERS = [(name, variant) for name, variant in GRID] + [
    (name, label)
    for name in FAMILIES
    for label in helpers.DRAFT_MODELS
    if name in models.VISUAL or label not in helpers.NEED_PICTURES
]


@pytest.mark.parametrize(("name", "label"), LEARNERS)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, label, width):
    """At every root and depth, after rounds that accepted nothing, one token or several."""
    drafter = drafter_of(name, label) if label in VARIANTS else helpers.DRAFT_MODELS[label](name, "sdpa")
    lesson, compared = lesson_of(name), 0
    guesses = guesses_of(drafter, lesson, 4)
    for roots, builder, _ in decode(drafter, name, width):
        for row, root in roots.items():
            for step in range(min(builder.depth, len(lesson.answers[row]) - 1 - root)):
                node = builder.path[step] - (2**step - 1 if width == 2 else step)
                assert error(builder.logits[step][row, node], guesses[row, root, step]) < TOLERANCE
                compared += 1
    assert compared > 25


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_node_of_a_tree_sees_its_own_path_alone(variant):
    """Also those that the drafter chose itself, and whose siblings are drafted beside them."""
    name, nodes = "llava", 0
    drafter = drafter_of(name, variant)
    for roots, builder, tree in decode(drafter, name, width=2, depth=3):
        for row, root in roots.items():
            for path in [path for path in helpers.paths_of(tree, row) if path[-1] % 4 == 3]:
                chain = tree.tokens[row, path[1:-1]].tolist()
                for level, logits in enumerate(reference_at(name, drafter, row, root, chain)):
                    ours = builder.logits[level][row, path[level] - 2**level + 1]
                    assert error(ours, logits) < TOLERANCE
                    expected = logits.log_softmax(-1)
                    child, vocabulary = path[level + 1], list(FEW) if drafter.draft_vocab_size else range(models.VOCAB)
                    if child not in builder.path:
                        token = list(vocabulary).index(tree.tokens[row, child])
                        assert abs(tree.log_probs[row, child] - expected[token]) < 2 * TOLERANCE
                    nodes += 1
    assert nodes > 50


@pytest.mark.parametrize(("name", "variant"), GRID)
def test_its_cache_holds_true_features_only(name, variant):
    """After rounds of all kinds it is that of a drafter which read the whole text as its prompt."""
    drafter, inputs, answers = drafter_of(name, variant), inputs_of(name), lesson_of(name).answers
    script = Script(drafter, inputs, answers, Told(2, 3))
    for accepted in ROUNDS:
        script.round(accepted)
    active, places = script.context.active, list(script.places)
    assert active == [True, False, True, True]
    script.round([0] * 4)

    prompt = prepare(drafter.target, inputs=inputs)
    longer = append(prompt, [answer[:place] for answer, place in zip(answers, places, strict=True)])
    with torch.inference_mode():
        layers = drafter.feature_layers
        context = drafter.target.prefill(longer, drafter.target.encode(longer), feature_layers=layers)
        for history, answer, place in zip(context.history, answers, places, strict=True):
            history.append(answer[place])
        fresh = drafter.fork(Chain(1))
        fresh.start(context)
        logits = fresh.expand_root(torch.tensor([history[-1] for history in context.history]))
    ours, theirs = script.session.blocks.cache, fresh.blocks.cache
    for row in [row for row, on in enumerate(active) if on]:
        length = prompt.lengths[row] + places[row]
        assert ours.lengths_list[row] == theirs.lengths_list[row] == length
        for kind in ("keys", "values"):
            kept, wanted = (getattr(cache.layers[0], kind)[row, :, :length] for cache in (ours, theirs))
            assert error(kept, wanted) < TOLERANCE
        assert error(script.session.tree.logits[0][row, 0], logits[row]) < TOLERANCE
    assert ours.lengths_list[1] == prompt.lengths[1], "a row that has finished takes no more room"


@pytest.mark.parametrize("variant", ["eagle", "eagle3"])
def test_a_prompt_may_be_a_single_token(variant):
    """Then no slot of the prompt is complete before the first root."""
    drafter = drafter_of("llama", variant)
    inputs = {"input_ids": torch.tensor([[7]])}
    answers = [[4, 5, 6, 7]]
    lesson = Teacher(drafter.target, range(3)).study(prepare(drafter.target, inputs=inputs), answers)
    guesses, script = guesses_of(drafter, lesson, 2), Script(drafter, inputs, answers, Told(1, 2))
    for root, accepted in ((0, 0), (1, 0)):
        builder, _ = script.round([accepted])
        for step in range(2):
            assert error(builder.logits[step][0, 0], guesses[0, root, step]) < TOLERANCE


@pytest.mark.parametrize("variant", ["eagle", "eagle3"])
def test_a_placeholder_may_lie_outside_the_embedding_table(variant):
    model = models.llava()
    model.config.image_token_id = models.VOCAB + 9
    drafter = VARIANTS[variant][0](Target(model), visual=False)
    inputs = models.inputs_for("llava", [1, 0], [6, 9])
    inputs["input_ids"][inputs["input_ids"] == models.IMAGE] = models.VOCAB + 9
    plain = mmspec.generate(drafter.target, inputs=inputs, max_new_tokens=8)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=8).token_ids == plain.token_ids


def test_inside_generate_an_eagle_sees_the_pictures_through_the_targets_embeddings():
    drafter = drafter_of("llava", "eagle")
    inputs, expected = case("llava", "sdpa", *RAGGED, 14)
    options = {"max_new_tokens": 14, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    assert drafter.target.model.generate(**inputs, **options)[:, -14:].tolist() == expected


# Training.


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(variant):
    drafter, lesson = build(target_of("llava", "sdpa"), variant), lesson_of("llava")
    sum(guess.logits.logsumexp(-1).sum() for guess in drafter.unroll(lesson, 3)).backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("detach", [False, True])
def test_a_step_teaches_earlier_ones_unless_detached(variant, detach, monkeypatch):
    drafter, outputs = build(target_of("llama", "sdpa"), variant), []
    recur = type(drafter).recur

    def recording(self, output):
        output.retain_grad()
        outputs.append(output)
        return recur(self, output)

    monkeypatch.setattr(type(drafter), "recur", recording)
    guesses = list(drafter.unroll(lesson_of("llama"), 3, detach))
    guesses[2].logits.square().sum().backward()
    reached = [output.grad is not None and bool(output.grad.any()) for output in outputs]
    assert reached == [not detach, not detach, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_a_head_that_continues_the_last_feature_guesses_it(variant):
    """And only that one reads the target's vocabulary head, which is large."""
    drafter, lesson = drafter_of("llama", variant), lesson_of("llama")
    first = VARIANTS[variant][0] is EagleDrafter
    assert (drafter._rows() is not None) == first
    for guess in drafter.unroll(lesson, 2):
        assert (guess.features is not None) == first
        if first:
            logits = lesson.target.family.head(guess.features, drafter._rows())
            assert error(logits, guess.logits) < TOLERANCE


@pytest.mark.parametrize(("name", "label"), [("llava", "eagle"), ("llama", "eagle3"), ("llava", "text only")])
def test_chains_end_with_the_longest_answer(name, label):
    drafter = drafter_of(name, label) if label in VARIANTS else helpers.DRAFT_MODELS[label](name, "sdpa")
    assert len(list(drafter.unroll(lesson_of(name), 30))) == max(ANSWERS) - 1


# A reduced vocabulary, and sampling.


@pytest.mark.parametrize("cls", [EagleDrafter, Eagle3Drafter])
@pytest.mark.parametrize("tree", [Chain(2), StaticTree(["0", "1", "2", "00", "01", "10"])], ids=["chain", "static"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3}], ids=["plain", "processed"])
def test_sampled_text_follows_the_exact_law_with_a_reduced_vocabulary(cls, tree, options, monkeypatch):
    """What the drafter cannot propose the target still says, as often as it should."""
    target = Target(toy(0))
    drafter = cls(target, draft_vocab_size=4)
    drafter.choose_vocabulary(torch.tensor([5, 0, 2, 3]))
    models.redraw(drafter, seed=1)
    drafts = helpers.record_drafts(monkeypatch, cls)
    settings = {"temperature": 1.0, "seed": 11, "verifier": RejectionSampling(), "tree": tree, **options}
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, **settings)
    assert 0 < out.stats.num_accepted_draft_tokens < out.stats.num_draft_tokens
    for draft in drafts:
        q = draft.tree.draft_probs
        assert q.shape[-1] == target.vocab_size and (q[..., [1, 4]] == 0).all()
        assert (q.sum(-1) - 1).abs().max() < 1e-5
    processors = [transformers.TemperatureLogitsWarper(0.7), transformers.TopKLogitsWarper(3)] if options else []
    assert g_test([tuple(row) for row in out.token_ids], exact_law(target.model, *processors)) > 1e-4


def test_where_nothing_that_can_be_drafted_is_allowed_the_target_goes_on_alone():
    """A grammar, say, may rule out every token of a reduced vocabulary."""
    target = Target(toy(0))
    drafter = Eagle3Drafter(target, draft_vocab_size=3)  # tokens 0, 1 and 2
    only = transformers.SuppressTokensLogitsProcessor([0, 1, 2])
    inputs = {"input_ids": torch.tensor([PROMPT]).repeat(ROWS, 1)}
    settings = {"temperature": 1.0, "verifier": RejectionSampling(), "logits_processor": [only], "tree": Chain(2)}
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=TOY_TOKENS, **settings)
    assert out.stats.num_accepted_draft_tokens == 0
    assert g_test([tuple(row) for row in out.token_ids], exact_law(target.model, only)) > 1e-4


def test_a_chosen_vocabulary_is_sorted_and_stored_as_offsets():
    """As in the published checkpoints: token i of the drafter is token i + d2t[i] of the target."""
    for cls in (EagleDrafter, Eagle3Drafter):
        drafter = cls(target_of("llama", "sdpa"), draft_vocab_size=3)
        assert drafter.draft_vocabulary.tolist() == [0, 1, 2]
        drafter.choose_vocabulary(torch.tensor([40, 7, 21]))
        assert drafter.draft_vocabulary.tolist() == [7, 21, 40] and drafter.d2t.tolist() == [7, 20, 38]
        assert drafter.t2d.nonzero()[:, 0].tolist() == [7, 21, 40] and drafter.t2d.dtype == torch.bool
    head = drafter.target.model.get_output_embeddings().weight
    assert drafter.lm_head.weight.equal(head[[7, 21, 40]]), "the head of EAGLE-3 begins as the target's"
    assert Eagle3Drafter(drafter.target).lm_head.weight.equal(head)


# On disk.

LAYER = {f"self_attn.{name}_proj.weight" for name in "qkvo"} | {
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "post_attention_layernorm.weight",
}
KEYS = {
    "eagle": {"fc.weight", "fc.bias"} | {f"layers.0.{name}" for name in LAYER},
    "eagle, other": {"fc.weight", "d2t", "t2d", "layers.0.input_layernorm.weight"}
    | {f"layers.0.self_attn.{name}_proj.bias" for name in "qkv"}
    | {f"layers.0.{name}" for name in LAYER},
    "eagle3": {"fc.weight", "norm.weight", "lm_head.weight"}
    | {f"midlayer.{name}" for name in LAYER | {"hidden_norm.weight", "input_layernorm.weight"}},
}
KEYS["eagle3.1"] = KEYS["eagle3"] | {"d2t", "t2d", *(f"fc_norm.{i}.weight" for i in range(3))}
KEYS["eagle3, other"] = KEYS["eagle3"] | {"input_norm.weight"}
SHAPES = {
    "eagle": {"fc.weight": (32, 64), "layers.0.self_attn.q_proj.weight": (32, 32)},
    "eagle3.1": {
        "fc.weight": (32, 96),
        "midlayer.self_attn.k_proj.weight": (16, 64),
        "lm_head.weight": (20, 32),
        "d2t": (20,),
        "t2d": (61,),
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_what_is_loaded(variant, tmp_path):
    drafter = drafter_of("llava", variant)
    drafter.save_pretrained(tmp_path, steps=10)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == KEYS[variant], "the names of the published checkpoints, without the target's embedding"
    for key, shape in SHAPES.get(variant, {}).items():
        assert weights[key].shape == shape
    config = json.loads((tmp_path / "config.json").read_text())
    switches = {name: value for name, value in VARIANTS[variant][1].items() if name != "head"}
    assert config["metadata"] == {"steps": 10} and {name: config[name] for name in switches} == switches
    assert config["head"].items() >= VARIANTS[variant][1].get("head", {}).items()

    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert type(loaded) is type(drafter) and not loaded.training
    ours, theirs = guesses_of(drafter, lesson_of("llava"), 3), guesses_of(loaded, lesson_of("llava"), 3)
    assert all(theirs[key].equal(logits) for key, logits in ours.items())
    if drafter.draft_vocab_size:
        assert loaded.draft_vocabulary.equal(FEW)
    options = {"inputs": inputs_of("llava"), "max_new_tokens": 10}
    first, second = (mmspec.generate(drafter.target, d, **options) for d in (drafter, loaded))
    assert [r.accepted for r in first.stats.rounds] == [r.accepted for r in second.stats.rounds]
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == {key: value for key, value in config.items() if key != "metadata"}


@pytest.mark.parametrize("variant", ["eagle, other", "eagle3.1"])
def test_in_half_precision_the_rotary_frequencies_stay_exact(variant, tmp_path):
    drafter_of("llava", variant).save_pretrained(tmp_path)
    half = Target(models.llava().to(torch.bfloat16))
    loaded = mmspec.load_drafter(str(tmp_path), half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    frequencies = drafter_of("llava", variant).rotary.inv_freq
    assert loaded.rotary.inv_freq.dtype == torch.float32 and loaded.rotary.inv_freq.equal(frequencies)
    assert loaded.d2t.dtype == torch.long
    out = mmspec.generate(half, loaded, inputs=inputs_of("llava"), max_new_tokens=6)
    assert [len(ids) for ids in out.token_ids] == [6] * 4


def wide() -> Target:
    config = transformers.LlamaConfig(**{**models.TEXT, "hidden_size": 48})
    return Target(models.rescale(transformers.LlamaForCausalLM(config), 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_drafter_for_another_width_is_refused(variant, tmp_path):
    drafter_of("llama", variant).save_pretrained(tmp_path)
    name = VARIANTS[variant][0].__name__
    with pytest.raises(MMSpecError, match=f"hidden size of this {name} is 32 but the target's is 48.*train") as caught:
        mmspec.load_drafter(str(tmp_path), wide())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (EagleDrafter, {"head": {"hidden": 3, "hidden_size": 32}}, "head settings hidden are unknown; there are hidd"),
        (Eagle3Drafter, {"head": {"rope_theta": 1e4, "layers": 2}}, "head settings layers, rope_theta are unknown"),
        (EagleDrafter, {"head": {"hidden_size": 16}}, "hidden size of this EagleDrafter is 16 but the target's is 32"),
        (Eagle3Drafter, {"head": {"hidden_size": 64}}, "size of this Eagle3Drafter is 64 but the target's is 32"),
        (EagleDrafter, {"draft_vocab_size": 0}, "draft_vocab_size=0 must lie between 1 and the target's 61"),
        (Eagle3Drafter, {"draft_vocab_size": 62}, "draft_vocab_size=62 must lie between 1 and the target's 61"),
        (Eagle3Drafter, {"feature_layers": [0, 1, 3]}, r"feature_layers=\[0, 1, 3\] must be three layers .* 0 to 2"),
        (Eagle3Drafter, {"feature_layers": [0, 1]}, r"feature_layers=\[0, 1\] must be three layers of the target"),
        (Eagle3Drafter, {"feature_layers": [0, 1, -1]}, r"feature_layers=\[0, 1, -1\] must be three layers"),
        (Eagle3Drafter, {"fc_norm": True, "norm_before_fc": True}, "fc_norm and norm_before_fc are two ways"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cls, settings, message):
    with pytest.raises(MMSpecError, match=message) as caught:
        cls(target_of("llama", "sdpa"), **settings)
    assert "\n" not in str(caught.value)


def test_a_head_takes_the_sizes_of_its_target_and_the_base_of_its_positions():
    rope = {"rope_type": "default", "rope_theta": 777.0}
    config = transformers.LlamaConfig(**models.TEXT, rope_parameters=rope)
    head = EagleDrafter(Target(models.rescale(transformers.LlamaForCausalLM(config), 0))).head
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
    assert all(getattr(head, name) == getattr(config, name) for name in names)
    assert head.rope_parameters == rope
    assert drafter_of("gemma3", "eagle").head.hidden_act == "gelu_pytorch_tanh"
    # The positions of a head have one axis, whatever the target's have.
    assert drafter_of("qwen_vl", "eagle").head.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("make", [lambda t: cut_from_target(t, 1), EagleDrafter, Eagle3Drafter])
def test_a_drafter_that_was_cast_drafts_in_its_new_dtype(make):
    """As one is that goes on being trained: weights of a half-precision target in float32, beside it."""
    half = Target(models.llava().to(torch.bfloat16))
    drafter = make(half).to(torch.bfloat16).float()
    options = {"inputs": inputs_of("llava"), "max_new_tokens": 6, "tree": Chain(2)}
    assert [len(ids) for ids in mmspec.generate(half, drafter, **options).token_ids] == [6] * 4
    assert all(guess.logits.dtype == torch.float32 for guess in drafter.unroll(half_lesson(half), 2))


def half_lesson(half: Target) -> Lesson:
    prompt = prepare(half, inputs=inputs_of("llava"))
    return Teacher(half, range(3)).study(prompt, lesson_of("llava").answers)


# Cut from the target.


CUTS = [
    ("llava", "shared_vision", 2),
    ("llava", "text_only", 1),
    ("llama", "text_only", 2),
    ("gemma3", "shared_vision", 2),
]


@pytest.mark.parametrize(("name", "mode", "layers"), CUTS)
def test_a_draft_model_cut_from_its_target_begins_as_its_bottom(name, mode, layers):
    target = target_of(name, "sdpa")
    drafter = cut_from_target(target, layers, mode, tree=Chain(3))
    ours, theirs = drafter.model.state_dict(), target.family.decoder.state_dict()
    numbers = {key: re.search(r"layers\.(\d+)", key) for key in theirs}
    copied = {key: theirs[key] for key, number in numbers.items() if number is None or int(number[1]) < layers}
    assert all(ours[f"model.{key}"].equal(value) for key, value in copied.items())
    assert drafter.model.lm_head.weight.equal(target.model.get_output_embeddings().weight)
    assert len(ours) == len(copied) + 1
    assert ours["model.norm.weight"].data_ptr() != theirs["norm.weight"].data_ptr(), "to be trained without the target"
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=14).token_ids == expected


def test_cut_to_all_its_layers_it_is_the_target():
    target = target_of("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, 14)
    out = mmspec.generate(target, cut_from_target(target, 3), inputs=inputs, max_new_tokens=13, tree=Chain(3))
    assert out.stats.mean_acceptance_length == 4


def test_a_cut_draft_model_is_saved_like_any_other(tmp_path):
    target = target_of("llava", "sdpa")
    drafter = cut_from_target(target)
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), target)
    assert isinstance(loaded, DraftModelDrafter)
    ours, theirs = drafter.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_is_cut_once(tied):
    config = transformers.LlamaConfig(**models.TEXT, tie_word_embeddings=tied)
    target = Target(models.rescale(transformers.LlamaForCausalLM(config), 0))
    target.model.config.tie_word_embeddings = True  # what is there counts, not what the configuration says
    model = cut_from_target(target, 1, "text_only").model
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.weight.equal(target.model.lm_head.weight)
    assert model.get_input_embeddings().weight.equal(target.model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen_vl", (2, "text_only"), "no causal language model for 'qwen2_5_vl_text'.*mmspec.load_drafter the folder"),
        ("llava", (0,), "layers=0 must lie between 1 and the target's 3"),
        ("llava", (4,), "layers=4 must lie between 1 and the target's 3"),
        ("llama", (2,), "mode='shared_vision': LlamaForCausalLM takes no pictures; use mode='text_only'"),
        ("llava", (2, "textonly"), "mode 'textonly' is unknown"),
    ],
)
def test_what_cannot_be_cut_is_refused(name, arguments, message):
    with pytest.raises(MMSpecError, match=message) as caught:
        cut_from_target(target_of(name, "sdpa"), *arguments)
    assert "\n" not in str(caught.value)
