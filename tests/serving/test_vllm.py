"""vLLM itself, in an environment of its own: its text is ours, token for token, whichever way it drafts.

`scripts/vllm_environment.sh DIR` makes the environment; `MMSPEC_VLLM=DIR pytest -n 0 -m engine` runs these tests.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from refusals import refused
from running import tiny
from safetensors.torch import load_file, save_file

import mmspec
from mmspec.cli import main
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import MedusaDrafter, NGramDrafter
from mmspec.exactness import divergences
from mmspec.formats.export import export_drafter
from mmspec.inputs import prepare
from mmspec.serving.engine import VLLMEngine
from mmspec.serving.server_engine import ServerEngine
from mmspec.trees import Chain

WHERE = os.environ.get("MMSPEC_VLLM")
TASKS, PICTURES, TOKENS = ("scenes", "charts", "documents", "questions"), 8, 64
STARTING = 300
"""Seconds that a server has to start."""

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not WHERE, reason="MMSPEC_VLLM names no environment of vLLM")]


def python() -> str:
    return str(Path(WHERE or "", "bin", "python"))


def requests(target, tasks=TASKS):
    for task in tasks:
        samples = [mmspec.zoo.sample(task, "test", number) for number in range(PICTURES)]
        yield prepare(target, [one.prompt for one in samples], [[one.image] for one in samples])


def engine(target, drafter=None, tree=None, **options) -> VLLMEngine:
    return VLLMEngine(target, drafter, tree, None, Sampling(), TOKENS, python=python(), **options)


def compared(target, side, tasks=TASKS) -> tuple[int, int, list]:
    """Return how many answers there are, how many equal ours, and the differences of the others."""
    total = same = 0
    found = []
    for request in requests(target, tasks):
        plain = mmspec.generate(target, inputs=request, max_new_tokens=TOKENS).token_ids
        theirs = side.answer(request, 0).token_ids
        total, same = total + len(plain), same + sum(a == b for a, b in zip(plain, theirs, strict=True))
        found += divergences(target, request, plain, theirs)
    return total, same, found


@pytest.mark.parametrize("name", [None, "ngram", "eagle3", "text_only", "medusa"])
def test_in_float32_every_id_is_ours_on_eight_pictures_of_each_task(name):
    target = tiny()
    made = {None: lambda: None, "ngram": lambda: NGramDrafter(target), "medusa": lambda: MedusaDrafter(target)}
    drafter = made.get(name, lambda: mmspec.load_drafter(f"tiny/{name}", target))()
    total, same, found = compared(target, engine(target, drafter))
    print(f"{name}: {same} of {total} answers are the same; {found}")
    assert total == len(TASKS) * PICTURES and same == total


def test_in_bfloat16_differences_are_near_ties():
    target = mmspec.load_target("tiny", dtype=torch.bfloat16)
    total, same, found = compared(target, engine(target), TASKS[:2])
    print(f"bfloat16: {same} of {total} answers are the same, {sum(one['tie'] for one in found)} left at near-ties")
    assert all(one["tie"] for one in found) and same > total // 2


def test_its_counters_in_our_units_are_those_of_our_loop():
    target = tiny()
    drafter = mmspec.load_drafter("tiny/eagle3", target)
    (request, *_) = requests(target)
    answer = engine(target, drafter, Chain(5)).answer(request, 0)
    ours = mmspec.generate(target, drafter, inputs=request, tree=Chain(5), max_new_tokens=TOKENS).stats
    theirs = sum(one.emitted[0] for one in answer.rounds) / len(answer.rounds)
    assert sum(one.emitted[0] for one in answer.rounds) == sum(map(len, answer.token_ids)) - request.batch_size
    assert theirs == pytest.approx(ours.mean_acceptance_length, rel=0.1)


def test_an_export_is_checked_by_the_programs_that_read_it(tmp_path, capsys):
    assert main(["export", "--output", str(tmp_path), "--check", f"python={python()}"]) == 0
    said = capsys.readouterr().out
    assert "loads it as Eagle3" in said and "its token ids are the target's own" in said


def test_a_server_that_was_started_by_the_printed_command(tmp_path):
    target = tiny()
    drafter = mmspec.load_drafter("tiny/eagle3", target)
    made = export_drafter(drafter, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *printed = shlex.split(made.command)
    command = [str(Path(WHERE or "", "bin", program)), *printed, "--enforce-eager", "--port", str(port)]
    # What the page has a reader type on a processor, and no more.
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1"} | dict(os.environ)
    server = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + STARTING
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, "it does not start"
                time.sleep(1)
        side = ServerEngine(target, None, None, None, Sampling(), TOKENS, url=url)
        total, same, found = compared(target, side, TASKS[:1])
        assert same == total, found
        (request, *_) = requests(target, TASKS[:1])
        rounds = side.answer(request, 0).rounds
        ours = mmspec.generate(target, drafter, inputs=request, tree=Chain(5), max_new_tokens=TOKENS).stats
        length = sum(one.emitted[0] for one in rounds) / len(rounds)
        print(f"server: {same} of {total} answers are the same, {length:.2f} tokens a pass")
        assert length == pytest.approx(ours.mean_acceptance_length, rel=0.1)
        export_other(target, tmp_path / "other")
        other = mmspec.load_target(str(tmp_path / "other"))
        refused(lambda: ServerEngine(other, None, None, None, Sampling(), TOKENS, url=url), "it serves another model")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def export_other(target, folder: Path) -> None:
    """Write the target with other weights, and so another model with the same tokenizer."""
    shutil.copytree(target.model.config.name_or_path, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "language_model" in name and re.search(r"\.layers\.[6-9]\.", name) and weight.ndim == 2:
            weights[name] = torch.randn(weight.shape, generator=generator).mul(0.1).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
