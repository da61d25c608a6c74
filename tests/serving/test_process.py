"""The process that runs another Python: it is asked by lines, never waited for without end, and leaves nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest
import tiny_training
from refusals import refused

import mmspec
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import MedusaDrafter
from mmspec.serving import process as module
from mmspec.serving.asking import asked_of
from mmspec.serving.engine import VLLMEngine, sampling_of
from mmspec.serving.process import WORKER, WorkerProcess
from mmspec.serving.worker import _one_line
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import Greedy

TALKS = """
import json, os, sys, time
print("Error of a library", file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "sleep" in asked:
        time.sleep(60)
    if "die" in asked:
        os._exit(3)
    if "killed" in asked:
        os.kill(os.getpid(), asked["killed"])
    if "chat" in asked:
        print(asked["chat"], flush=True)
    elif "fail" in asked:
        print(json.dumps({"error": "ValueError: no"}), flush=True)
    else:
        print(json.dumps({"done": [os.environ.get(name) for name in asked["variables"]]}), flush=True)
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Whatever holds vLLM on this machine is not asked here."""
    monkeypatch.delenv("MMSPEC_VLLM", raising=False)


@pytest.fixture
def talking(tmp_path, monkeypatch):
    """Start processes that say what they are told."""
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    (tmp_path / "talks.py").write_text(TALKS)
    return lambda **more: WorkerProcess(None, script=tmp_path / "talks.py", **more)


def test_it_answers_and_has_the_variables_that_are_given(talking, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    process = talking(environment={"ONE": "1"})
    names = {"variables": ["ONE", "VLLM_LOGGING_LEVEL"]}
    assert process.ask(names, 30) == ["1", "DEBUG"] == process.ask(names, 30)
    refused(lambda: process.ask({"fail": 1}, 30), "failed at 'fail': ValueError: no; it printed: Error of a library")
    assert process.ask(names, 30) == ["1", "DEBUG"], "an error is not its end"
    process.close()


@pytest.mark.parametrize(("what", "words"), [("die", "has ended while it was asked"), ("sleep", "within 0.3 s")])
def test_one_that_ends_or_hangs_is_not_waited_for(what, words, talking):
    process, started = talking(), time.perf_counter()
    process.ask({"variables": []}, 30)
    refused(lambda: process.ask({what: 1}, 0.3 if what == "sleep" else 30), words)
    assert time.perf_counter() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)
    refused(lambda: process.ask({"variables": []}, 30), "has ended")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, ", by SIGILL: this processor lacks instructions that a library there was built for"),
        (signal.SIGKILL, ", by SIGKILL: most likely the memory ran out"),
        (signal.SIGUSR1, "while it was asked 'killed', by SIGUSR1"),
    ],
)
def test_one_that_a_signal_ends_says_which(number, words, talking):
    refused(lambda: talking().ask({"killed": number}, 30), words)


@pytest.mark.parametrize("line", ["hello", "5", '{"other": 1}'])
def test_a_program_that_is_no_python(line, talking):
    refused(lambda: talking().ask({"chat": line}, 30), f"runs no Python here, it says {line!r}: correct python=")


def test_it_ends_with_the_object(talking):
    process = talking()
    process.ask({"variables": []}, 30)
    handle = process._process
    del process
    assert handle.poll() is not None


def test_the_worker_says_what_is_installed_and_what_fails():
    process = WorkerProcess()
    assert set(process.ask({"installed": None}, 60)) == {"vllm", "speculators"}
    refused(lambda: process.ask({"load": {"model": "none"}}, 60), "failed at 'load': ModuleNotFoundError")
    assert WORKER.name == "worker.py"


def test_settings_that_vllm_refuses_are_told_in_its_own_words():
    words = [{"msg": "Value error, V1 does not support: this"}, {"msg": "Field\nrequired"}]
    refusal = type("ValidationError", (ValueError,), {"errors": lambda self: words, "__module__": "pydantic_core"})
    told = _one_line(refusal("2 validation errors for Config ... input_value=ArgsKwargs(...)"))
    assert told == "ValidationError: V1 does not support: this; Field required"
    assert _one_line(ValueError("no\nsuch thing")) == "ValueError: no such thing"


def test_a_python_that_is_not_there(monkeypatch):
    refused(lambda: WorkerProcess("/nowhere/python"), "python=/nowhere/python is no program ... vllm_environment.sh")
    monkeypatch.setenv("MMSPEC_VLLM", "/else/where")
    refused(WorkerProcess, "python=/else/where/bin/python is no program")


@pytest.mark.parametrize(
    ("tree", "verifier", "words"),
    [
        (DynamicTree(2, 2, 4), None, "engine=vllm drafts chains, and no DynamicTree: set tree=chain tree.length=N"),
        (None, Greedy(), "its own rule of acceptance: leave verifier=auto"),
    ],
)
def test_what_vllm_has_no_counterpart_of_is_refused(tree, verifier, words):
    target = tiny_training.target()
    drafter = MedusaDrafter(target, heads=2)
    refused(lambda: VLLMEngine(target, drafter, tree, verifier, Sampling(), 4), words)


def test_a_target_without_a_name_cannot_be_loaded_again():
    refused(lambda: VLLMEngine(tiny_training.target(), None, None, None, Sampling(), 4), "was not loaded by a name")
    refused(
        lambda: VLLMEngine(tiny_training.target(), None, Chain(3), None, Sampling(), 4), "drafts chains, and no Chain"
    )


def test_sampling_means_the_same():
    assert sampling_of(Sampling(), 7) == {"temperature": 0.0, "max_tokens": 7}
    drawn = sampling_of(Sampling(0.7, top_k=5, min_p=0.1, repetition_penalty=1.2), 7)
    assert drawn == {
        "temperature": 0.7, "max_tokens": 7, "top_k": 5, "top_p": 1.0, "min_p": 0.1, "repetition_penalty": 1.2,
    }  # fmt: skip


def test_a_prompt_is_sent_before_its_pictures_are_put_in():
    target, (image, prompt, _) = tiny_training.target(), mmspec.zoo.sample("scenes", "train", 0)
    request = mmspec.inputs.prepare(target, [prompt, "Hello!"], [[image, image], []])
    first, second = asked_of(target, request)
    placeholder = target.tokenizer.convert_tokens_to_ids("<image>")
    assert first.ids.count(placeholder) == len(first.images) == 2 and not second.images
    for ids, asked in zip(request.token_ids(), (first, second), strict=True):
        assert [token for token in ids if token != placeholder] == [
            token for token in asked.ids if token != placeholder
        ]
    (message,) = second.messages()
    assert message == {"role": "user", "content": "Hello!"}
    request.conversations = None
    refused(lambda: asked_of(target, request), "made from inputs=")
