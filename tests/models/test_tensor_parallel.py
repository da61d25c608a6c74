"""A target whose layers are divided among processes, by transformers' own plans, writes what it writes alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmspec
from mmspec import zoo


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(here / "two_ranks.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    target = mmspec.load_target("tiny")
    ask = {"prompt": zoo.DEMO_PROMPT, "images": [zoo.demo_image()], "max_new_tokens": 24}
    alone = {
        temperature: mmspec.generate(target, None, temperature=temperature, seed=3, **ask).token_ids
        for temperature in (0.0, 0.8)
    }
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert 2 * found["heads"] == target.cache_shapes[0][0].heads, "every process keeps its share of the cache"
        assert len(found["texts"]) == 5
        assert "under tensor parallelism every process has only its own" in found["refused"]
        for label, token_ids in found["texts"].items():
            assert token_ids == alone[0.8 if "sampled" in label else 0.0], label
