"""docs/add_your_own.md, followed to the letter from outside the package: its files are written to an empty folder, its
commands are typed there, and what is broken on purpose is found out."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import models
import pytest
import torch
from toys import byte_tokenizer

import mmspec
from mmspec import zoo
from mmspec.drafters import Drafter
from mmspec.errors import MMSpecError
from mmspec.evaluation.bundle import COMPLETE, Bundle
from mmspec.outcome import Verdict
from mmspec.testing import check_lossless, watched
from mmspec.tree import DraftTree
from mmspec.trees import TreeBuilder
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling, Synthetic

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_your_own.md"
BLOCK = re.compile(r"^(?:\*\*`(?P<name>[^`\n]+)`\*\*\n\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)

pytestmark = [pytest.mark.product, pytest.mark.skipif(not PAGE.exists(), reason="not a checkout")]

BLOCKS = list(BLOCK.finditer(PAGE.read_text(encoding="utf-8"))) if PAGE.exists() else []
FILES = {block["name"]: block["text"] for block in BLOCKS if block["name"]}
COMMANDS = [line for block in BLOCKS if block["language"] == "bash" for line in block["text"].splitlines()]
SNIPPETS = [block["text"] for block in BLOCKS if block["language"] == "python" and not block["name"]]


def commands(kind: str) -> list[str]:
    return [line for line in COMMANDS if f"mmspec {kind}" in line or line.startswith(f"{kind} ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with the files of the page, and nothing else."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def mine(folder, monkeypatch):
    """Imports a class of the page's files into this process."""
    monkeypatch.syspath_prepend(folder)

    def load(name: str, cls: str):
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        assert Path(module.__file__).parent == folder
        return getattr(module, cls)

    return load


def type_in(folder: Path, line: str, *more: str) -> str:
    """Run a command of the page in a folder, as a shell would, and return what it prints."""
    words = shlex.split(line)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PYTEST"))}
    while re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    # -P: unlike `python -m`, an installed command does not look for modules in the folder where it is typed.
    command = [sys.executable, "-P", "-m", *words, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def target():
    return mmspec.load_target("tiny")


@cache
def plain() -> list[int]:
    """What the target alone says about the picture that `mmspec generate` shows."""
    return mmspec.generate(target(), None, zoo.DEMO_PROMPT, [zoo.demo_image()]).token_ids[0]


def test_the_page_has_a_file_and_a_yaml_for_each_kind_and_commands_for_all():
    options = [name for name in FILES if name.startswith("configs/")]
    assert [Path(name).parts[1] for name in options] == [
        "drafter",
        "tree",
        "compressor",
        "experiment",
        "verifier",
        "verifier",
        "drafter",
    ]
    assert len(FILES) == 2 * len(options)  # a file of Python for each; the experiment's is the one of tests
    assert len(commands("generate")) == 6 and len(commands("bench")) == len(commands("pytest")) == 1
    assert len(COMMANDS) == 8 and SNIPPETS


LOSSY = [line for line in commands("generate") if "verifier=" in line]


@pytest.mark.parametrize("line", [LOSSY[0], pytest.param(LOSSY[1], marks=pytest.mark.slow)], ids=["rule", "gate"])
def test_its_lossy_commands_run_and_say_that_they_are(folder, line):
    result, text = json.loads((printed := type_in(folder, line, "json=true")).splitlines()[-1]), plain()
    assert not result["stats"]["lossless"] and "NOT lossless" in printed
    assert (result["stats"]["num_unverified_tokens"] > 0) == ("trusting" in line)
    assert result["token_ids"][0] == text[0]


@pytest.mark.parametrize(
    "line",
    [line for line in commands("generate") if line not in LOSSY],
    ids=["drafter", "tree", "compressor", "mixture"],
)
def test_its_generate_commands_run_and_write_what_plain_decoding_writes(folder, line):
    printed = type_in(folder, line, "json=true")
    result = json.loads(printed.splitlines()[-1])
    assert result["token_ids"] == plain()[: len(result["token_ids"])] and len(result["token_ids"]) >= 64
    drafted, accepted = (result["stats"][f"num_{name}_tokens"] for name in ("draft", "accepted_draft"))
    assert drafted > accepted >= ("tree=" in line), "a drafter that is refused at once rests, unless a tree was chosen"
    assert ("compare=true" in line) == ("text identical" in printed)


def test_its_benchmark_runs_all_its_methods_without_a_divergence(folder):
    (line,) = commands("bench")
    type_in(folder, line)
    (bundle,) = (folder / "runs" / "bench").iterdir()
    bundle = Bundle.open(bundle)
    sides = {side["label"]: side for side in bundle.manifest["sides"]}
    assert bundle.manifest["status"] == COMPLETE and set(sides) == {"plain", "bigram", "wide", "eagle", "half"}
    assert sides["wide"]["budget"] == 7
    for label in sides:
        answers = [record for record in bundle.requests if record["side"] == label]
        rounds = [record for record in bundle.rounds if record["side"] == label]
        assert answers and not any(record["divergence"] for record in answers)
        told = "drafted" if label == "bigram" else "accepted"  # bigrams are refused at once, and then rest
        assert (sum(sum(record[told]) for record in rounds) > 0) == (label != "plain")


@pytest.mark.slow
def test_its_file_of_tests_passes(folder):
    (line,) = commands("pytest")
    assert "2 passed" in type_in(folder, line)


def test_its_other_examples_run(capsys, monkeypatch):
    module = ModuleType("add_your_own")  # dataclasses look for the module of a class
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    for text in SNIPPETS:
        exec(compile(text, str(PAGE), "exec"), names)
    assert float(capsys.readouterr().out) > 3  # the reference is what the model was trained to write
    guess, truth = (type("Guessed", (), {"logits": torch.randn(5, 9)}) for _ in range(2))
    assert ((names["Overlap"]()(guess, truth) < 0) & (names["Overlap"]()(guess, guess) <= -0.999)).all()


# What is broken on purpose.


class Credulous(Greedy):
    """Keeps whatever is drafted, and calls that lossless."""

    def verify(self, tree, scores):
        nodes = torch.full((tree.batch_size,), tree.num_nodes - 1)
        path, length = tree.path_to(nodes)
        return Verdict(path, length, scores.logits[:, -1].argmax(-1))


class OtherNoise(PointMassSampling):
    """Draws with noise of its own, so not what plain sampling with the same seed draws."""

    def start(self, seed):
        super().start(seed + 1)


def leaves_a_token_in_the_targets_cache(drafter, root, rows=slice(None)):
    """Asks the target what comes next, and lets it keep the token that it read for that."""
    counts = [0] * len(root)
    counts[rows] = [1] * len(counts[rows])
    drafter.context.score(DraftTree.root_only(root))
    drafter.context.keep(counts)
    return DraftTree.chain(_four(root))


class Broken(Drafter):
    """A drafter whose `draft` is a function of this module."""

    def __init__(self, target, draft):
        super().__init__(target)
        self.make = draft

    def start(self, context):
        self.context = context

    def draft(self, root):
        return self.make(self, root)


def test_a_verifier_that_lies_is_told_the_first_token_that_differs(mine):
    drafter = mine("bigram", "BigramDrafter")(target())
    with pytest.raises(AssertionError) as caught:
        check_lossless(drafter, verifier=Credulous())
    found = re.fullmatch(
        r"BigramDrafter with Credulous is not lossless: on prompt 'Describe the picture\.' at new token (\d+) it wrote "
        r"(\d+) '.*' where plain decoding wrote (\d+) '.*' \(the target prefers the latter by .*, in float32\), alone, "
        r"temperature 0\.0",
        str(caught.value),
    )
    assert found, caught.value
    position, wrong, right = map(int, found.groups())
    request = {"prompt": "Describe the picture.", "images": [zoo.sample("scenes", "test", 0).image]}
    texts = [
        mmspec.generate(target(), *method, max_new_tokens=position + 1, **request, **options).token_ids[0]
        for method, options in [((drafter,), {"verifier": Credulous()}), ((), {})]
    ]
    assert texts[0][:position] == texts[1][:position] and (texts[0][position], texts[1][position]) == (wrong, right)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (slice(None), r"on prompt 'Describe the .*, alone, temperature 0\.0"),
        (slice(2, None), r"on prompt 'Say what there is .*, in a batch of 3, temperature 0\.0"),
    ],
)
def test_a_drafter_that_spoils_the_targets_cache_is_found_out(rows, found):
    drafter = Broken(target(), partial(leaves_a_token_in_the_targets_cache, rows=rows))
    with pytest.raises(AssertionError, match=f"Broken is not lossless: {found}"):
        check_lossless(drafter, max_new_tokens=12)


def test_a_verifier_that_samples_another_text_is_found_out(mine):
    drafter = mine("bigram", "BigramDrafter")(target())
    with pytest.raises(AssertionError, match=r"BigramDrafter with OtherNoise is not lossless: .*, temperature 0\.7"):
        check_lossless(drafter, verifier=OtherNoise())


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (lambda d, root: _tree(root, [-1, 0, 2, 1], 3), "row 0 node 2 has parent 2, which does not stand before it"),
        (lambda d, root: _tree(root, [-1, 0, 1, 2], 2), "row 0 node 3 lies deeper than max_depth 2"),
        (
            lambda d, root: _tree(root, [-1, 0, 0, 0], 1, is_chain=True),
            "node 2 is not below the node before it",
        ),
        (lambda d, root: _tree(root, [-1, 0, 0, 0], 1, cache=DraftTree.chain(_four(root))._cache), "its ancestors is"),
        (lambda d, root: DraftTree.chain(_four(root) + 1), "node 0 is token"),
        (lambda d, root: DraftTree.chain(torch.cat([root[:, None], _four(root) * 0 + 10**6], 1)), "is token 1000000"),
        (
            lambda d, root: DraftTree.chain(_four(root).repeat(2, 1)),
            r"shape \(2, 4\), but the batch has 1 rows",
        ),
        (lambda d, root: DraftTree.root_only(root), "Broken drafted nothing for any prompt"),
    ],
)
def test_a_drafter_whose_trees_are_wrong_is_told_what_is_wrong(draft, message):
    with pytest.raises(MMSpecError, match=message):
        check_lossless(Broken(target(), draft), max_new_tokens=3)


def _four(root):
    return root[:, None].repeat(1, 4)


def _tree(root, parents, depth, cache=None, **fields):
    return DraftTree(_four(root), torch.tensor([parents] * len(root)), depth, _cache=cache or {}, **fields)


class Flat(TreeBuilder):
    """Says that its siblings are a chain."""

    def build(self, growth):
        growth.expand(growth.root, 3)
        return dataclasses.replace(growth.keep_all(), is_chain=True)


def test_a_tree_that_lies_about_its_shape_is_found_out(mine):
    drafter = mine("bigram", "BigramDrafter")(target())
    with pytest.raises(MMSpecError, match="in row 0 node 2 is not below the node before it, though is_chain says so"):
        check_lossless(drafter, Flat())


def test_what_the_check_cannot_judge_is_refused(mine):
    drafter = mine("bigram", "BigramDrafter")(target())
    half = mmspec.load_target("tiny", "bfloat16")
    for arguments, options, message in [
        ((None,), {}, "drafter=None is no Drafter"),
        ((type(drafter)(half),), {}, "the target is in torch.bfloat16"),
        ((drafter,), {"verifier": Synthetic(0.5)}, "Synthetic does not claim to be lossless"),
        ((drafter,), {"verifier": RejectionSampling()}, "RejectionSampling draws its proposals"),
        ((drafter,), {"verifier": Greedy(), "temperatures": [1.0]}, "Greedy serves none of the temperatures"),
        ((drafter,), {"compressor": mine("loudest", "Loudest")()}, "BigramDrafter takes no compressor"),
    ]:
        with pytest.raises(MMSpecError, match=message):
            check_lossless(*arguments, **options)


def test_a_target_that_takes_no_pictures_is_asked_without_any(mine):
    reader = mmspec.Target(models.llama(), byte_tokenizer())
    assert check_lossless(mine("bigram", "BigramDrafter")(reader), max_new_tokens=8).tokens > 3 * 2 * 2


def test_watching_leaves_a_drafter_as_it_was(mine):
    drafter = mine("bigram", "BigramDrafter")(target())
    kind = type(drafter)
    assert type(watched(drafter)).__name__ == "BigramDrafter" and isinstance(watched(drafter), kind)
    assert type(drafter) is kind and kind.draft is not type(watched(drafter)).draft
