"""A target whose layers are divided among processes, by transformers' own plans, writes what it writes alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import models
import pytest

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
        assert {"dream, guided", "aasd"} <= refused.keys() <= {"dream, guided", "aasd", "std"}
        assert all("under tensor parallelism each process has only its own" in message for message in refused.values())
        for label, result in found["drafters"].items():
            assert label in refused or result == expected["drafters"][label], label
            assert label in refused or label.endswith("0.9") or result["texts"] == plain, label
        assert len(found["drafters"]) > 4 * 20
