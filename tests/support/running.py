"""What the tests of measuring share: short runs on the embedded model, and verifiers that are wrong on purpose."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

import mmspec
from mmspec.data import Example, Source
from mmspec.decoding.sampling import Sampling
from mmspec.drafters import NGramDrafter
from mmspec.evaluation.bundle import Bundle, BundleWriter
from mmspec.evaluation.engines import MMSpecEngine
from mmspec.evaluation.measure import Measurement, Protocol
from mmspec.evaluation.methods import GROUPS, PLAIN, Method
from mmspec.verifiers import Greedy, PointMassSampling

SHORT = 6
QUICK = ("task.count=1", "repeats=1", "warmup=0", f"max_new_tokens={SHORT}", "threads=1")


class AcceptsAll(Greedy):
    """Wrong: takes the first drafted token unseen, and calls itself lossless."""

    def verify(self, tree, scores):
        if tree.num_nodes > 1:
            scores.logits[:, 0] = -1.0
            scores.logits[:, 0].scatter_(1, tree.tokens[:, 1:2], 1.0)
        return super().verify(tree, scores)


class OtherNoise(PointMassSampling):
    """Wrong: draws with noise of its own, so not what plain sampling with the same seed draws."""

    def start(self, seed):
        super().start(seed + 1)


@cache
def tiny(dtype: str = "float32"):
    return mmspec.load_target("tiny", dtype)


class Listed(Source):
    """Examples from a list."""

    def __init__(self, *examples: Example):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def describe(self):
        return {"source": "listed"}


def questions(*indices: int, tasks=("scenes",)) -> Listed:
    """Test pictures of the embedded generator."""
    places = [(task, f"{task}/test/{index}") for index in indices for task in tasks]
    return Listed(*(Example(name, "Describe the picture.", (f"tiny:{name}",), task) for task, name in places))


PAGE = Listed(Example("documents/test/100", "What does it say?", ("tiny:documents/test/100",), "documents"))
"""A question that the wrong verifier answers otherwise than plain decoding."""


def side(label: str, target, drafter=None, tree=None, verifier=None, temperature=0.0, tokens=SHORT) -> Method:
    engine = MMSpecEngine(target, drafter, tree, verifier, Sampling(temperature), tokens)
    return Method(label, (), OmegaConf.create(dict.fromkeys(GROUPS)), engine=engine)


def sides(target, *, verifier=None, temperature=0.0, tokens=SHORT) -> list[Method]:
    """Plain decoding and an n-gram drafter."""
    options = {"temperature": temperature, "tokens": tokens}
    return [side(PLAIN, target, **options), side("ngram", target, NGramDrafter(target), verifier=verifier, **options)]


def manifest(target) -> dict:
    return {
        "format": 1,
        "mmspec": "test",
        "started": "now",
        "git": {},
        "versions": {},
        "machine": {"cpu": "a processor", "cpus": 2, "threads": 1, "device": "cpu"},
        "target": {"name": "tiny", "dtype": "float32", "fingerprint": target.fingerprint},
        "sampling": {},
        "max_new_tokens": SHORT,
    }


def measure(
    folder: Path,
    source=None,
    target=None,
    chosen=None,
    progress=lambda done, total, what: None,
    notice=lambda line: None,
    **protocol,
) -> Bundle:
    """Run a measurement in a folder and open what it left."""
    target = target or tiny()
    protocol = Protocol(**{"repeats": 1, "warmup": 0, **protocol})
    with BundleWriter(folder, "config: 1\n") as writer:
        measurement = Measurement(
            target, chosen or sides(target), questions(100) if source is None else source, protocol, writer, notice
        )
        measurement.run(manifest(target), progress)
    return Bundle.open(folder)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupted_at(block: int):
    """Return a progress function that is Ctrl-C before a block."""

    def progress(done, total, what):
        if done == block:
            raise KeyboardInterrupt

    return progress
