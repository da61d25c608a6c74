"""A target whose layers are divided among processes, by transformers' own plans, writes what it writes alone.

Among the drafters are those that learn from the time of rounds, which every process would measure by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import models
import pytest
from tiny_drafters import eagle_drafter
from tiny_requests import one_picture

import mmspec
from mmspec.speed import AutoTree

HERE = Path(__file__).parent


def ranks(folder: Path, model: Path, processes: int) -> list[dict]:
    """What each of several processes found."""
    folder.mkdir()
    (folder / "model").symlink_to(model)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = [str(HERE.parents[1]), str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), str(HERE / "several_ranks.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict]:
    """A target whose heads can be divided among four, and what is found with it in one process."""
    folder = tmp_path_factory.mktemp("alone")
    text = models.TEXT | {"model_type": "llama", "num_key_value_heads": 4}
    settings = {"image_token_index": models.IMAGE, "image_seq_length": 4, "vision_feature_layer": -1}
    models.of_parts("Llava", "sdpa", 0, text, models.CLIP_VISION, **settings).save_pretrained(folder / "target")
    return folder / "target", ranks(folder / "run", folder / "target", 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_kind_of_drafter(alone, tmp_path, processes):
    """With static and dynamic trees, greedily and drawn, over a ragged batch: the texts of one process, from drafts
    that are as good as there, so that no head reads another state than it would."""
    model, expected = alone
    plain = expected["drafters"]["none, 0.0"]["texts"]
    for found in ranks(tmp_path / "run", model, processes):
        assert processes * found["heads"] == expected["heads"], "every process keeps its share of the cache"
        refused = {label: result.pop("refused") for label, result in found["drafters"].items() if "refused" in result}
        assert refused.keys() == {"dream, guided", "aasd", "std"}
        assert all("under tensor parallelism each process has only its own" in message for message in refused.values())
        for label, result in found["drafters"].items():
            assert label in refused or result == expected["drafters"][label], label
            assert label in refused or label.endswith("0.9") or result["texts"] == plain, label
        assert len(found["drafters"]) > 4 * 20


class Watching(AutoTree):
    """Notes whether there is a clock to learn from, in the newest round."""

    def build(self, growth):
        tree = super().build(growth)
        clocks.append((growth.drafter.context.clock, self._clock))
        return tree


clocks: list = []


@pytest.mark.usefixtures("learns")
@pytest.mark.parametrize("processes", [None, 2])
def test_no_process_of_several_goes_by_its_own_time(monkeypatch, processes):
    """Each has another, and would draft another tree: the passes would then wait for one another for ever."""
    head = eagle_drafter("llava", "sdpa")
    monkeypatch.setattr(head.target.model, "_tp_size", processes)
    mmspec.generate(
        head.target, head, inputs=one_picture("llava"), max_new_tokens=6, tree=Watching(limit=4, remember=False)
    )
    assert [clock is None for clock in clocks[-1]] == [processes is not None] * 2
