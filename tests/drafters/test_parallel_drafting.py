"""Drafting ahead: windows that are written while the target judges, and what becomes of them."""

from __future__ import annotations

import os
import threading
from functools import cache

import models
import pytest
import torch
from laws import g_test
from models import VOCAB, inputs_for, llama
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_families import FAMILIES
from tiny_requests import batch_of, target_of
from transformers import SuppressTokensLogitsProcessor

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compressors import Prune, Routing, TopPUniform
from mmspec.drafters import NGramDrafter, ParallelDrafter, TextOnlyDrafter
from mmspec.drafters.parallel.guesses import Guesses
from mmspec.drafters.parallel.pace import Pace
from mmspec.drafters.parallel.process import DraftProcess
from mmspec.drafters.parallel.writer import ChainWriter
from mmspec.parallel import parallel_of
from mmspec.rounds import ArmSelector
from mmspec.trees import Chain, Proposals
from mmspec.verifiers import Gated, Greedy, RejectionSampling
from mmspec.verifiers.gates import Every
from mmspec.verifiers.walk import TreeWalk

MODES = (pytest.param("draft", marks=pytest.mark.slow), "check")


@pytest.fixture(scope="module")
def target():
    return Target(llama(layers=3))


@cache
def model(kind: str):
    """The target's own weights, some that are a little off, or others."""
    return {
        "same": lambda: llama(layers=3),
        "near": lambda: models.blurred(llama(layers=3)),
        "other": lambda: llama(seed=3),
    }[kind]()


def drafter_of(target, kind: str, **settings) -> ParallelDrafter:
    return ParallelDrafter(target, TextOnlyDrafter(target, model(kind)), **{"window": 4, "overlap": True} | settings)


def ragged(new: int = 20, **options):
    return {"inputs": inputs_for("llama", [0, 0, 0], [9, 4, 13]), "max_new_tokens": new, **options}


@pytest.fixture(scope="module")
def plain(target):
    return mmspec.generate(target, **ragged()).token_ids


class Compared(ParallelDrafter):
    """Compares every window with what its model writes behind the text, without a cache."""

    def draft(self, root):
        tree = super().draft(root)
        for row, history in enumerate(self.context.history):
            window = tree.tokens[row, 1:] if tree.valid is None else tree.tokens[row, 1:][tree.valid[row, 1:]]
            if self.context.active[row] and len(window):
                with torch.no_grad():
                    said = self.inner.model(torch.tensor([history + window.tolist()])).logits[0].argmax(-1)
                assert window.tolist() == said[len(history) - 1 : -1].tolist()
        return tree


def compared(drafter: ParallelDrafter) -> ParallelDrafter:
    drafter.__class__ = Compared
    return drafter


@pytest.mark.parametrize("mode", ["draft", "check"])
@pytest.mark.parametrize("kind", ["same", "near", pytest.param("other", marks=pytest.mark.slow)])
def test_windows_are_the_models_own_and_the_text_is_the_targets(target, plain, kind, mode):
    out = mmspec.generate(target, compared(drafter_of(target, kind, after_rejection=mode)), **ragged())
    assert out.token_ids == plain and out.stats.lossless
    stats = out.stats
    if kind == "same":  # every window is used: four tokens in each round, and the bonus of the first was foreseen
        assert [record.drafted_ahead[0] for record in stats.rounds] == [3] * len(stats.rounds)
        assert stats.windows_ahead == stats.num_spec_steps and stats.mean_acceptance_length > 3.5
    elif mode == "check":  # nothing is drafted but ahead
        assert all(record.drafted == record.drafted_ahead for record in stats.rounds)
    if kind == "near":
        assert 0 < stats.windows_ahead < stats.num_spec_steps


@pytest.mark.parametrize("mode", MODES)
def test_a_window_that_is_kept_after_a_rejection_is_noticed(target, monkeypatch, mode):
    """The control of the test above."""
    monkeypatch.setattr(Guesses, "agree_with", lambda self, emitted: min(len(self), len(emitted)))
    with pytest.raises(AssertionError):
        mmspec.generate(target, compared(drafter_of(target, "near", after_rejection=mode)), **ragged())


@pytest.mark.parametrize("mode", MODES)
def test_ends_inside_a_window(target, plain, mode):
    ends = [plain[0][6], plain[1][9]]
    for options in ({"eos_token_id": ends}, {"max_new_tokens": 6}, {"max_new_tokens": 1}):
        asked = ragged() | options
        for kind in ("same", "near"):
            out = mmspec.generate(target, drafter_of(target, kind, after_rejection=mode), **asked)
            assert out.token_ids == mmspec.generate(target, **asked).token_ids
    assert len(out.token_ids[0]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_text_drawn_with_a_seed_is_that_of_plain_decoding(target, mode):
    asked = ragged(temperature=1.0, seed=3)
    out = mmspec.generate(target, drafter_of(target, "same", after_rejection=mode), **asked)
    assert out.token_ids == mmspec.generate(target, **asked).token_ids


def law_of(target, prompt, few, length: int) -> torch.Tensor:
    """The law of the first tokens, each out of a few."""
    law, texts = torch.ones(1, dtype=torch.float64), [[]]
    for _ in range(length):
        ids = torch.cat([prompt.expand(len(texts), -1), torch.tensor(texts, dtype=torch.long)], 1)
        with torch.no_grad():
            law = (law[:, None] * target.model(input_ids=ids).logits[:, -1, few].double().softmax(-1)).flatten()
        texts = [[*text, token] for text in texts for token in few]
    return law.view([len(few)] * length)


def drawn(target, mode: str, rows: int = 1000) -> tuple[float, float]:
    """The p-value of four tokens of many rows under the target's law, and how many windows a row could use."""
    prompt, few = inputs_for("llama", [0], [9])["input_ids"], [5, 6, 7]
    out = mmspec.generate(
        target,
        drafter_of(target, "near", window=2, after_rejection=mode),
        inputs={"input_ids": prompt.expand(rows, -1)},
        max_new_tokens=4,
        temperature=1.0,
        logits_processor=SuppressTokensLogitsProcessor([token for token in range(VOCAB) if token not in few]),
        verifier=RejectionSampling(),
        seed=1,
    )
    assert out.stats.lossless
    samples = [tuple(map(few.index, row)) for row in out.token_ids]
    return g_test(samples, law_of(target, prompt, few, 4)), out.stats.windows_ahead / rows


@pytest.mark.parametrize("mode", MODES)
def test_drawn_windows_leave_the_law_alone(target, mode):
    p_value, used = drawn(target, mode)
    assert p_value > 1e-3 and used > 0.5


def test_a_guess_of_the_bonus_that_is_taken_unjudged_is_noticed(target, monkeypatch):
    """The control of the test above."""

    def taken(self, rule, tree, last, p, foreseen):
        return self._draw(p) if foreseen is None else foreseen.tokens

    monkeypatch.setattr(TreeWalk, "_bonus", taken)
    assert drawn(target, "check")[0] < 1e-6


@pytest.mark.slow
def test_a_guess_of_the_bonus_that_is_judged_is_right_more_often(target, monkeypatch):
    _, judged = drawn(target, "check", 300)
    monkeypatch.setattr(ParallelDrafter, "_foreseen", lambda self: None)
    p_value, met = drawn(target, "check", 300)
    assert p_value > 1e-3 and judged > 1.2 * met


@pytest.mark.parametrize("sampled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_seed_repeats_its_text_whoever_is_faster(target, sampled):
    asked = ragged(temperature=1.0, seed=5, verifier=RejectionSampling() if sampled else None)
    found = []
    for settings in ({}, {"overlap": False}, {}):
        drafter = drafter_of(target, "near", window="auto", after_rejection="check", **settings)
        found.append(mmspec.generate(target, drafter, **asked).token_ids)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_watches_reads_its_prompt_beside_the_target(mode):
    """Videos, pictures and none in one batch; the prompt is read, and a window drafted, while the target reads it."""
    target = target_of("qwen2_5_vl")
    inputs, expected = watching(target)
    inner = blurred_drafter("qwen2_5_vl", None)
    for drafter, ahead in (
        (ParallelDrafter(target, inner, 4, mode), True),
        (ParallelDrafter(target, inner, 4, mode).with_compressor(Prune(0.5)), True),
        (ParallelDrafter(target, inner, 4, mode).with_compressor(TopPUniform(0.5)), False),
    ):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=len(expected[0]))
        assert out.token_ids == expected and out.stats.num_accepted_draft_tokens
        first = out.stats.rounds[0].drafted_ahead
        assert out.stats.prompt_anticipated > 0 and (any(first) or not ahead)
        if not ahead:  # it goes by what the target looked at
            assert not any(first)


@cache
def watching(target) -> tuple[dict, list[list[int]]]:
    assert "video" in FAMILIES["qwen2_5_vl"].kinds
    return batch_of("qwen2_5_vl")


def test_rounds_without_the_target_and_under_guidance(target):
    gated = Gated(Greedy(), Every(2))
    alone = mmspec.generate(target, TextOnlyDrafter(target, model("near"), tree=Chain(3)), verifier=gated, **ragged())
    out = mmspec.generate(target, drafter_of(target, "near", window=3), verifier=gated, **ragged())
    assert alone.stats.num_unverified_tokens and out.stats.num_unverified_tokens and not out.stats.lossless
    asked = ragged(guidance_scale=1.5)
    led = mmspec.generate(target, drafter_of(target, "same"), **asked)
    assert led.token_ids == mmspec.generate(target, **asked).token_ids and led.stats.windows_ahead


def test_the_writer_forgets_what_did_not_come_true(target):
    """Whatever it has read in vain, and wherever it was stopped, it goes on as one that has only read the text."""

    def writer(texts):
        request = mmspec.inputs.prepare(target, inputs={"input_ids": torch.tensor([text[:5] for text in texts])})
        drafter = TextOnlyDrafter(target, model("near"))
        read, opening = drafter.opening(request, None)
        session = mmspec.models.session.ModelSession(drafter.draft_target, read.batch_size, 64)
        session.prefill(*opening)
        return ChainWriter(session, [[*text] for text in texts], [True] * len(texts), Proposals(), VOCAB)

    texts = [[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]]
    used = writer(texts)
    used.write(5, [True, True])
    used.correct([8, 11], [[11, 12, 13], []])
    stopped = used.write(6, [True, False], lambda first: used.stop.set())
    assert [*map(len, stopped.tokens)] == [1, 0] and used.stop.is_set()
    used.stop.clear()
    used.correct([7, 6], [[1, 2], [3]])
    fresh = writer([text[:6] for text in used.texts])
    fresh.correct([6, 6], [text[6:] for text in used.texts])
    assert used.write(4, [True, True]).tokens == fresh.write(4, [True, True]).tokens
    assert used.session.cache.lengths_list == fresh.session.cache.lengths_list == [12, 10]


@pytest.mark.slow
def test_draws_do_not_depend_on_where_the_window_before_was_cut(target):
    asked = ragged(temperature=1.0, seed=2, verifier=RejectionSampling())

    class Never(ParallelDrafter):
        def hear(self, tree, verdict):
            """Go on in vain."""

    eager, patient = drafter_of(target, "near", overlap=True), drafter_of(target, "near", overlap=False)
    patient.__class__ = Never
    assert mmspec.generate(target, eager, **asked).token_ids == mmspec.generate(target, patient, **asked).token_ids


def test_a_drafter_stops_early_where_its_first_token_fails(target, monkeypatch):
    """The target is done before the second token is written."""
    written, go = [], threading.Event()
    write = ChainWriter.write

    def noted(self, count, rows, told=None):
        def wait(first):
            told(first)
            go.wait(10)
            go.clear()

        found = write(self, count, rows, told and wait)
        written.append(max(map(len, found.tokens)))
        return found

    class Going(ParallelDrafter):
        def hear(self, tree, verdict):
            self._heard.wait()  # until its guess is known
            super().hear(tree, verdict)
            go.set()

    monkeypatch.setattr(ChainWriter, "write", noted)
    drafter = drafter_of(target, "other", after_rejection="check", window=6)
    drafter.__class__ = Going
    rounds = mmspec.generate(target, drafter, inputs=inputs_for("llama", [0], [9]), max_new_tokens=16).stats.rounds
    used = [any(record.drafted_ahead) for record in rounds]
    assert written[0] == 6 and [count == 6 for count in written[1:-1]] == used[1:] and 1 in written


def test_the_window_follows_from_both_sides_times():
    pace = Pace(2, 16, first=4)
    assert pace.window == 4
    pace.learn(target=0.42, draft=0.0576)
    assert pace.window == 7
    for seconds, window in ((1.0, 3), (0.001, 16)):
        pace.draft = None
        pace.learn(draft=seconds if window == 16 else 0.42 / 3.5)
        assert pace.window == window


def test_in_turn_the_clock_tells_what_overlap_would_give(target):
    stats = mmspec.generate(target, drafter_of(target, "near", overlap=False), **ragged()).stats
    saved = sum(min(record.anticipated, record.seconds["score"]) for record in stats.rounds)
    assert all(record.in_turn and 0 < record.anticipated <= record.seconds["draft"] for record in stats.rounds)
    assert stats.projected_decode_seconds == pytest.approx(stats.decode_seconds - saved) and saved > 0
    assert stats.summary()["projected_tokens_per_second"] > stats.tokens_per_second
    beside = mmspec.generate(target, drafter_of(target, "near", overlap=True), **ragged()).stats
    assert beside.projected_decode_seconds is None and "windows_ahead" in beside.summary()


def test_what_is_refused(target):
    inner = TextOnlyDrafter(target, model("near"))
    parallel = ParallelDrafter(target, inner)
    seeing = ParallelDrafter(target_of("llava", "sdpa"), blurred_drafter("llava", "sdpa"))
    for call, said in {
        lambda: ParallelDrafter(target, NGramDrafter(target)): "drafter=NGramDrafter ... is no DraftModelDrafter",
        lambda: ParallelDrafter(Target(llama(seed=3)), inner): "the TextOnlyDrafter was made for another target",
        lambda: ParallelDrafter(target, inner, window=1): "window=1 must be auto, or a whole number, 2 or more",
        lambda: ParallelDrafter(target, inner, after_rejection="wait"): "after_rejection='wait' is unknown",
        lambda: ParallelDrafter(target, inner, process=1): "process=1 must be true or false",
        lambda: seeing.with_compressor(Routing(2)): "Routing chooses before every round",
        lambda: parallel.with_compressor(Prune(0.5)): "reads no pictures",
        lambda: parallel.save_pretrained("x"): "save its draft model",
        lambda: mmspec.generate(target, parallel, tree=Chain(3), **ragged()): "proposes whole trees of its own",
        lambda: ArmSelector(target, parallel, [Chain(1), Chain(2)]): "works while the target does",
        lambda: parallel_of(target, "ngram"): "ngram",
    }.items():
        refused(call, said)


def test_a_target_that_is_divided_among_processes_is_refused(target, monkeypatch):
    monkeypatch.setattr("mmspec.drafters.parallel.drafter.is_divided", lambda model: model is target)
    refused(lambda: drafter_of(target, "near"), "the heads of LlamaForCausalLM are divided among processes")


def interrupted(self):
    raise KeyboardInterrupt


@pytest.mark.product
def test_a_process_of_its_own(target, plain, monkeypatch):
    """Exact, with the text and the windows of the thread; one that is killed is named in one line, and replaced, as is
    one whose answer nobody has waited for."""
    beside, apart = drafter_of(target, "near"), drafter_of(target, "near", process=True)
    for options in (
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 1.0, "seed": 4, "verifier": RejectionSampling()},
    ):
        ours, theirs = (mmspec.generate(target, one, **ragged(), **options) for one in (beside, apart))
        assert theirs.token_ids == ours.token_ids and theirs.stats.windows_ahead == ours.stats.windows_ahead
        assert options or theirs.token_ids == plain
    helper = apart.helpers["process"]
    with pytest.raises(MMSpecError, match="cannot send the request, or one of its logits processors"):
        mmspec.generate(target, apart, logits_processor=lambda ids, scores: scores, **ragged(), **options)
    assert helper.alive and apart.fork().helpers is apart.helpers
    running = mmspec.stream(target, apart, **ragged())
    next(running)
    helper._child.kill()
    said = refused(lambda: [*running], f"the process that drafts (pid {helper.pid}) has ended with code -9; ask again")
    assert "process=false" in said and not helper.alive
    assert mmspec.generate(target, apart, **ragged()).token_ids == plain
    again = apart.helpers["process"]
    assert again.pid != helper.pid
    with monkeypatch.context() as patch:
        patch.setattr(DraftProcess, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mmspec.generate(target, apart, **ragged())
    assert mmspec.generate(target, apart, **ragged()).token_ids == plain, "an answer to what was asked before"
    again = apart.helpers["process"]
    assert os.getpgid(again.pid) != os.getpgid(0), "a terminal interrupts it while it starts"
    apart.close()
    assert not again.alive and again._child.returncode == 0 and not apart.helpers
    refused(lambda: mmspec.generate(target, apart, **ragged(guidance_scale=2.0)), "process=true has no guidance")
