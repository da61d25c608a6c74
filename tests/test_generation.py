"""The loop: requests that are interrupted, interleaved or repeated do not disturb one another."""

from __future__ import annotations

import json

import pytest
import torch
from models import inputs_for, llama, llava
from toys import Scripted, byte_tokenizer, hooks_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.drafters import Drafter, NGramDrafter, TextOnlyDrafter
from mmspec.trees import Chain, DynamicTree, StaticTree, TreeBuilder
from mmspec.verifiers import RejectionSampling

LENGTH = 16


@pytest.fixture(scope="module")
def target():
    return Target(llama(), byte_tokenizer())


def request(rows: int = 1, seed: int = 0, **options) -> dict:
    return {"inputs": inputs_for("llama", [0] * rows, seed=seed), "max_new_tokens": LENGTH, **options}


def drafters(target) -> dict[str, Drafter]:
    text = mmspec.generate(target, **request()).token_ids
    return {
        "scripted": Scripted(target, text, right=2),
        "ngram": NGramDrafter(target),
        "draft_model": TextOnlyDrafter(target, llama(seed=1), tree=DynamicTree(2, 3, 8)),
    }


DRAFTERS = ["scripted", "ngram", "draft_model"]


# Interruptions.


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_closing_a_stream_leaves_target_and_drafter_usable(target, name, pieces):
    drafter = drafters(target)[name]
    want = mmspec.generate(target, **request()).token_ids
    before = dict(vars(drafter))
    stream = mmspec.stream(target, drafter, **request())
    for _ in range(pieces):
        next(stream)
    stream.close()
    assert hooks_of(target.model, drafter) == 0
    assert vars(drafter) == before
    assert mmspec.generate(target, drafter, **request()).token_ids == want


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", [("start", 1), ("draft", 1), ("draft", 3), ("observe", 2)])
def test_an_exception_in_a_drafter_leaves_everything_usable(target, place, error):
    text = mmspec.generate(target, **request()).token_ids
    broken = Scripted(target, text, right=2, fail=(error, *place))
    with pytest.raises(type(error)):
        mmspec.generate(target, broken, **request())
    assert hooks_of(target.model) == 0
    broken.fail = None
    assert mmspec.generate(target, broken, **request()).token_ids == text
    assert mmspec.generate(target, **request()).token_ids == text


@pytest.mark.parametrize("call", [0, 1, 4])
def test_an_interrupt_in_the_middle_of_a_pass_leaves_no_hooks(monkeypatch, call):
    """The drafter asks for features of layer 1; the pass dies in layer 2, with the hooks still on."""
    target = Target(llama())
    text = mmspec.generate(target, **request()).token_ids
    drafter = Scripted(target, text, right=1)
    layer, calls = target.family.layers[2], []
    forward = layer.forward

    def dies(*args, **kwargs):
        calls.append(hooks_of(target.model))
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            mmspec.generate(target, drafter, **request())
    assert calls[-1] == 2, "no hooks were on: the test is blind"
    assert hooks_of(target.model) == 0
    assert mmspec.generate(target, drafter, **request()).token_ids == text


def test_an_interrupt_in_the_vision_tower_leaves_no_hooks(monkeypatch):
    target = Target(llava())
    options = {"inputs": inputs_for("llava", [1]), "max_new_tokens": 6}
    want = mmspec.generate(target, **options).token_ids
    permanent = hooks_of(target.model)  # transformers' own, by which it records hidden states
    with monkeypatch.context() as patch:
        patch.setattr(target.family.vision_projector, "forward", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mmspec.generate(target, **options)
    assert hooks_of(target.model) == permanent
    assert mmspec.generate(target, **options).token_ids == want


# Interleaving.


@pytest.mark.parametrize("verifier", [None, RejectionSampling()], ids=["point_mass", "rejection"])
def test_two_sampled_streams_do_not_share_their_draws(target, verifier):
    drafter = TextOnlyDrafter(target, llama(seed=1), tree=Chain(3))
    options = request(temperature=1.0, verifier=verifier, seed=4)
    want = mmspec.generate(target, drafter, **options).token_ids[0]
    first, second = (mmspec.stream(target, drafter, **options) for _ in range(2))
    for stream in (first, second, first, first, second):
        next(stream)
    for stream in (second, first):
        with pytest.raises(StopIteration) as end:
            while True:
                next(stream)
        assert end.value.value.token_ids[0] == want


# Forks.


class Learner(TreeBuilder):
    """An adaptive builder: one level more after each round."""

    def __init__(self):
        self.levels = 1

    def build(self, growth):
        return Chain(self.levels).build(growth)

    def observe(self, tree, scores, verdict):
        self.levels += 1


def test_what_a_request_learns_is_not_seen_by_another(target):
    builder = Learner()
    drafter = TextOnlyDrafter(target, llama(seed=1), tree=builder)
    depths = []
    for _ in range(2):
        out = mmspec.generate(target, drafter, **request())
        depths.append([record.depth for record in out.stats.rounds])
    assert depths[0] == depths[1] == list(range(1, len(depths[0]) + 1))
    assert builder.levels == 1 and drafter.tree is builder
    given = Learner()
    mmspec.generate(target, drafter, tree=given, **request())
    assert given.levels == 1 and drafter.tree is builder


def test_forks_share_weights_and_nothing_else(target):
    drafter = TextOnlyDrafter(target, llama(seed=1))
    one, two = drafter.fork(), drafter.fork(Chain(2))
    for (_, ours), (_, theirs) in zip(drafter.named_parameters(), one.named_parameters(), strict=True):
        assert ours is theirs
    one.index = {"state": 1}
    one.extra = torch.nn.Linear(1, 1)
    one.register_buffer("memory", torch.zeros(1))
    for other in (two, drafter):
        assert not any(hasattr(other, name) for name in ("index", "extra", "memory"))
    assert one.tree is not drafter.tree and two.tree.length == 2 and drafter.tree.length == 5


def test_forks_of_a_verifier_are_separate(target):
    verifier = RejectionSampling()
    mmspec.generate(target, verifier=verifier, **request(temperature=1.0))
    assert list(vars(verifier)) == ["rule"]


# Repeats.


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "verifier": RejectionSampling()}],
    ids=["greedy", "point_mass", "rejection"],
)
@pytest.mark.parametrize("name", ["ngram", "draft_model"])
def test_the_same_arguments_give_the_same_output_and_another_seed_another(target, name, options):
    drafter = drafters(target)[name]
    if "verifier" in options and name == "draft_model":
        options = {**options, "tree": StaticTree(["0", "1", "00"])}
    first, second = (mmspec.generate(target, drafter, **request(rows=2, **options)) for _ in range(2))
    if options:
        assert mmspec.generate(target, drafter, **request(rows=2, **options, seed=1)).token_ids != first.token_ids
    assert first.token_ids == second.token_ids and first.drafted == second.drafted
    assert [r.accepted for r in first.stats.rounds] == [r.accepted for r in second.stats.rounds]


def test_generating_does_not_touch_the_callers_things(target):
    options = request(rows=2)
    inputs = {name: value.clone() for name, value in options["inputs"].items()}
    state = torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    mmspec.generate(target, NGramDrafter(target), **options)
    mmspec.generate(target, NGramDrafter(target), **{**options, "temperature": 1.0, "verifier": RejectionSampling()})
    assert options["inputs"].keys() == inputs.keys()
    assert all(torch.equal(options["inputs"][name], inputs[name]) for name in inputs)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in target.model.state_dict().items())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_gradients_work_after_generating(target):
    """Inference mode must not leak into tensors that training uses later."""
    mmspec.generate(target, **request())
    ids = torch.tensor([[1, 2, 3]])
    target.model(input_ids=ids, labels=ids).loss.backward()
    target.model.zero_grad()


def test_inference_mode_does_not_leak_to_the_consumer_of_a_stream(target):
    for _ in mmspec.stream(target, **request()):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_arguments_are_checked_before_the_first_piece_is_asked_for(target):
    with pytest.raises(MMSpecError):
        mmspec.stream(target, **{**request(), "max_new_tokens": 0})


def test_output_prints_short_and_its_summary_is_json(target):
    out = mmspec.generate(target, NGramDrafter(target), **request(rows=2))
    assert "Round(" not in repr(out)
    assert json.loads(json.dumps(out.stats.summary()))["new_tokens"] == [LENGTH, LENGTH]


def test_drafters_hear_of_every_round_with_the_history_up_to_date(target):
    heard = []

    class Listener(Scripted):
        def observe(self, tree, scores, verdict):
            super().observe(tree, scores, verdict)
            length = int(verdict.length[0])
            tokens = tree.tokens[0, verdict.path[0, :length]].tolist()
            history = self.context.history[0]
            assert history[-length - 1 :] == [*tokens, int(verdict.bonus[0])]
            assert scores.logits.shape == (1, tree.num_nodes, self.target.vocab_size)
            assert int(self.context.lengths[0]) == len(history) - 1, "all but the root is in the cache"
            heard.append(length - 1)

    text = mmspec.generate(target, **request()).token_ids
    out = mmspec.generate(target, Listener(target, text, right=2, siblings=1), **request())
    assert heard == [2] * len(out.stats.rounds)


def test_pipeline_reaches_the_drafter_where_q_matters(target):
    """With a filter that leaves one token, q and p are the same point mass: everything is accepted."""
    drafter = TextOnlyDrafter(target, target.model, tree=Chain(3))
    options = request(temperature=0.8, top_k=1, verifier=RejectionSampling())
    out = mmspec.generate(target, drafter, **options)
    assert out.stats.draft_acceptance_rate > 0.9
    assert out.token_ids == mmspec.generate(target, **request()).token_ids
    assert LogitsPipeline(0.8, top_k=1).prefix_free
