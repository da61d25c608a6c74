"""Requests in several threads on one model: each gets what it gets alone, in text and in acceptance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import meeting
import models
import pytest
import torch
from tiny_drafters import TINY_DRAFTERS, blurred_drafter, eagle3_drafter
from tiny_requests import pictures_for, target_of
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec.evaluation.assistant import sighted
from mmspec.inputs import prepare
from mmspec.models.masks import kernels
from mmspec.target import Target
from mmspec.trees import DynamicTree

NEW = 10


def found(out) -> tuple:
    """The tokens of an answer, and what was drafted and accepted in every round."""
    return out.token_ids, [(record.drafted, record.accepted) for record in out.stats.rounds]


def asking(target: Target, drafter, seed: int) -> Callable[[], tuple]:
    inputs = models.inputs_for("llava", [1, 0], [7 + seed, 5], seed)
    tree = DynamicTree(3, 3, 8)
    return lambda: found(mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree))


@pytest.mark.parametrize(
    "names", [("eagle3, fewer tokens",) * 3, ("dream, guided", "own model", "eagle")], ids=", ".join
)
def test_threads_on_one_target_get_what_they_get_alone(names):
    target = target_of("llava", "sdpa")
    asked = [asking(target, TINY_DRAFTERS[name]("llava", "sdpa"), seed) for seed, name in enumerate(names)]
    alone = [ask() for ask in asked]
    assert meeting.together(target, asked) == alone
    assert len({str(tokens) for tokens, _ in alone}) == 3


def test_vision_towers_do_not_hear_one_another():
    target = target_of("llava", "sdpa")
    requests = [prepare(target, inputs=models.inputs_for("llava", [count], [5], count)) for count in (1, 2, 3)]
    alone = [target.encode(request) for request in requests]
    seen = meeting.together(target, [lambda request=request: target.encode(request) for request in requests])
    for one, other in zip(seen, alone, strict=True):
        assert one.sizes == other.sizes
        assert all(map(torch.equal, one.features, other.features)) and all(map(torch.equal, one.embeds, other.embeds))


def test_two_targets_in_two_threads():
    targets = [target_of("llava", "sdpa"), target_of("mistral", "sdpa")]
    asked = []
    for target, name in zip(targets, ("llava", "mistral"), strict=True):
        inputs = models.inputs_for(name, pictures_for(name, [1]), [9])
        drafter = eagle3_drafter(name, "sdpa")
        ask = {"inputs": inputs, "max_new_tokens": NEW}
        asked.append(lambda target=target, drafter=drafter, ask=ask: found(mmspec.generate(target, drafter, **ask)))
    alone = [ask() for ask in asked]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda ask: ask(), asked * 3)) == alone * 3


def test_streams_in_turns_and_streams_that_are_closed_half_way():
    target = target_of("llava", "sdpa")
    drafters = [TINY_DRAFTERS[name]("llava", "sdpa") for name in ("eagle3, fewer tokens", "dream, guided")]
    asks = [{"inputs": models.inputs_for("llava", [1], [6 + n], n), "max_new_tokens": NEW} for n in range(2)]
    alone = [mmspec.generate(target, drafter, **ask).token_ids for drafter, ask in zip(drafters, asks, strict=True)]
    streams = [mmspec.stream(target, drafter, **ask) for drafter, ask in zip(drafters * 2, asks * 2, strict=True)]
    written = [[], []]
    for number in range(NEW + 1):
        for which, stream in enumerate(streams):
            piece = next(stream, None)
            if piece is not None and which < 2:
                written[which] += piece.token_ids
        for stream in streams[2:] if number == 2 else ():
            stream.close()
    assert [[ids] for ids in written] == alone


def test_a_listener_of_another_thread_does_not_change_a_draft_models_inputs():
    """What `sighted` adds to the passes of an assistant in one thread is not added in another."""
    target = target_of("llava", "sdpa")
    drafter = blurred_drafter("llava", "sdpa")
    pictured = prepare(target, inputs=models.inputs_for("llava", [1], [5]))
    text = prepare(target, inputs=models.inputs_for("llava", [0], [9]))
    ask = lambda: found(mmspec.generate(target, drafter, inputs=text, max_new_tokens=NEW))  # noqa: E731
    alone = ask()
    with sighted(drafter.model, drafter, pictured), ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result() == alone


def test_the_switch_that_keeps_flex_attention_uncompiled_goes_back_with_the_last_thread():
    stance = lambda: torch._dynamo.eval_frame._stance.stance  # noqa: E731
    first, second = (kernels("flex_attention", torch.device("cpu")) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert stance() == "force_eager"
    second.__exit__(None, None, None)
    assert stance() == "default"


def test_models_that_change_while_they_run_take_turns():
    """Frequencies that depend on the length of the text are numbers of the model, which every pass writes."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 20, "factor": 4.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 5.0, 9.0]}
    config = LlamaConfig(**models.TEXT | {"max_position_embeddings": 80}, rope_parameters=rope)
    target = Target(models.rescale(LlamaForCausalLM(config), 0), check=False)
    assert target.family.one_at_a_time and not target_of("llava", "sdpa").family.one_at_a_time
    inside, most = [], []

    def enter(*_) -> None:
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        threading.Event().wait(0.001)

    target.family.layers[0].register_forward_pre_hook(enter)
    target.family.layers[2].register_forward_hook(lambda *_: inside.remove(threading.get_ident()))
    asks = [{"inputs": {"input_ids": torch.arange(1, n + 1)[None]}, "max_new_tokens": 6} for n in (8, 30)]
    alone = [mmspec.generate(target, **ask).token_ids for ask in asks]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda ask: mmspec.generate(target, **ask).token_ids, asks * 2)) == alone * 2
    assert set(most) == {1}
