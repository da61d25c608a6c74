"""The roofline and the projection, against numbers worked out by hand; and `mmspec bench simulate`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bundles import eagle3, lookup, plain, write_bundle
from refusals import refused

from mmspec import cli
from mmspec.errors import MMSpecError
from mmspec.evaluation.reporting import report
from mmspec.speed.deployment import Deployment
from mmspec.speed.projection import MeasuredMethod, methods_of, project
from mmspec.speed.roofline import DEVICES, MODELS, Architecture, Device, device_of, model_of, pass_seconds
from mmspec.speed.structure import BlockStructure, Structure

pytestmark = pytest.mark.product

# Layers of 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8 = 144 weights, and a head of 4 * 10.
SMALL = Architecture(hidden=4, layers=2, intermediate=8, heads=2, key_value_heads=1, head_dim=2, vocabulary=10)
WEIGHTS = 2 * (4 * (2 * 4 + 2 * 2 + 3 * 8)) + 40
CACHED = 2 * 2 * 1 * 2
FAST = Device(bandwidth=1e-6, compute=1e3, memory=1.0)  # 1000 bytes a second, and sums for nothing
STRONG = Device(bandwidth=1e3, compute=1e-9, memory=1.0)  # 1000 operations a second, and bytes for nothing
HEAD = Structure("head", layers=1.5, vocabulary=0.5)


def test_sizes():
    assert SMALL.parameters == WEIGHTS and SMALL.cached == CACHED
    billions = {name: model.parameters / 1e9 for name, model in MODELS.items()}
    # What their cards say, less the embeddings, which are looked up.
    assert billions == pytest.approx({"7b": 6.6, "13b": 12.9, "qwen-7b": 7.1, "72b": 71.5}, rel=0.01)


def test_a_pass_is_the_slower_of_bytes_and_sums():
    options = {"prefix": 5, "batch": 3, "width": 2, "launch": 0.25}
    assert pass_seconds(SMALL, FAST, 7, **options) == pytest.approx(2 * (WEIGHTS + 3 * 5 * CACHED) / 1e3 + 2 * 0.25)
    sums = 3 * 7 * (2 * WEIGHTS + 4 * 2 * 4 * 5)
    assert pass_seconds(SMALL, STRONG, 7, **options) == pytest.approx(sums / 1e3 + 2 * 0.25)


def test_drafters_are_sized_by_their_structure():
    head = HEAD.sized(SMALL)
    assert head.parameters == 1.5 * (WEIGHTS - 40) / 2 + 0.5 * 40 and head.cached == 1.5 * CACHED / 2
    small = Structure("model", layers=0.5, share=0.25).sized(SMALL)
    assert small.parameters == pytest.approx(WEIGHTS / 4) and small.layers == 1
    assert Structure("lookup").sized(SMALL) is None
    assert Structure.of("head") == Structure("head") and Structure.of(0.125) == Structure("model", 0.5, 0.125)
    for wrong in ("heads", 0, 1.5, True, None):
        with pytest.raises(MMSpecError, match="give lookup, head"):
            Structure.of(wrong)


def test_a_method_by_hand():
    setting = Deployment(FAST, prefix=0, width=1, launch=0.0, overhead=0.125)
    step, head = WEIGHTS / 1e3, HEAD.sized(SMALL).parameters / 1e3
    one = project(MeasuredMethod("a", 3.0, 16, 5, 4, HEAD), SMALL, setting)
    assert one.draft == pytest.approx(5 * head) and one.score == one.step == pytest.approx(step)
    assert one.speedup == pytest.approx(3 * (step + 0.125) / (5 * head + step + 0.125))
    assert one.limit == pytest.approx(3 * (step + 0.125) / (5 * head + step))
    block = project(MeasuredMethod("d", 3.0, 8, 4, 4, replace(HEAD, one_pass=True)), SMALL, setting)
    assert block.draft == setting.seconds(HEAD.sized(SMALL), 3.0 + 4), "one pass over what is new and the block"
    free = project(MeasuredMethod("b", 1.5, 8, 3, 1, Structure("lookup")), SMALL, setting)
    assert free.draft == 0 and free.speedup == pytest.approx(1.5)
    # Where sums are what counts, sixteen nodes and the root cost as much as seventeen tokens.
    busy = project(
        MeasuredMethod("a", 3.0, 16, 5, 4, HEAD), SMALL, Deployment(STRONG, prefix=0, launch=0.0, overhead=0.0)
    )
    assert busy.score == pytest.approx(17 * busy.step) and busy.speedup < 1
    assert project(MeasuredMethod("a", 3.0, 16, 5, 4, HEAD), SMALL, Deployment(FAST, batch=2)).rows == 2


def test_a_block_by_hand():
    """Four slots pass 1.5 layers of 144 weights, three go through half a head of 40; two layers keep entries of 4."""
    sizes = {"slots": 4, "layers": 1.5, "read": 2.0, "entering": 0.25, "cached": 2, "guesses": 3, "heads": 0.5}
    block, layer = BlockStructure(**sizes), (WEIGHTS - 40) / 2
    method = MeasuredMethod("d", 3.0, 6, 3, 2, block)
    setting = Deployment(FAST, prefix=5, batch=2, width=2, launch=0.25, overhead=0.0)
    moved = 2 * (2 * layer + 20 + 2 * 5 * 2 * CACHED / 2)
    assert project(method, SMALL, setting).draft == pytest.approx(moved / 1e3 + 1.5 * 0.25)
    slow = replace(setting, device=STRONG)
    sums = 2 * (2 * (4 * 1.5 * layer + 3 * 0.25 * layer + 3 * 20) + 4 * 4 * 2 * 4 * 5)
    assert project(method, SMALL, slow).draft == pytest.approx(sums / 1e3 + 1.5 * 0.25)
    deeper = replace(method, nodes=12, passes=6)
    assert project(deeper, SMALL, setting).draft == project(method, SMALL, setting).draft, "depth costs nothing"
    corrected = replace(method, structure=replace(block, level=0.5, level_heads=0.25))
    level = 0.5 * layer + 10
    assert project(corrected, SMALL, setting).draft == pytest.approx(
        moved / 1e3 + 1.5 * 0.25 + 3 * (2 * level / 1e3 + 0.25)
    )
    assert project(corrected, SMALL, slow).draft == pytest.approx(
        sums / 1e3 + 1.5 * 0.25 + 3 * (2 * 2 * 2 * level / 1e3 + 0.25)
    )
    assert project(replace(method, passes=0), SMALL, setting).draft == 0


def test_names_and_numbers():
    assert device_of("h100") == DEVICES["h100"] and device_of("h100", compute=500.0).compute == 500
    assert device_of("h100", count=2).bandwidth == 2 * DEVICES["h100"].bandwidth
    for call, message in (
        (lambda: device_of("h10"), "Did you mean 'h100'"),
        (lambda: device_of("h100", bandwidth=-1.0), "bandwidth=-1.0"),
        (lambda: device_of("h100", count=0), "gpus=0"),
        (lambda: model_of("7"), "Did you mean '7b'"),
        (lambda: Deployment(FAST, batch=0), "batch=0"),
        (lambda: Deployment(FAST, width=0), "bytes=0"),
    ):
        with pytest.raises(MMSpecError, match=message):
            call()


# From a bundle

STRUCTURE = {"kind": "head", "layers": 1.5, "vocabulary": 0.5}


class Described(type(eagle3())):
    """A side whose bundle says how its drafter is made."""

    structure = STRUCTURE

    def manifest(self, baseline):
        return super().manifest(baseline) | {"drafter_structure": self.structure}


def described(**changes) -> Described:
    return Described(**vars(eagle3(**changes)))


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "drafter=eagle3,tree=chain"  # as hydra names the folders of a sweep
    return write_bundle(folder, [plain(), described(), lookup()], {"scenes": [9, 17]})


def test_what_a_bundle_says(bundle):
    rows = report(bundle).rows
    (method,) = methods_of(rows, {})
    assert method == MeasuredMethod("eagle3 chain", 2.0, 4.0, 3.0, 4 / 3, Structure(**STRUCTURE))
    (method,) = methods_of(rows, {"eagle3": 0.125}, share=0.5)
    assert method.structure == Structure("model", 0.5, 0.125)


def test_the_width_of_a_dynamic_tree_is_its_own(tmp_path):
    side = described(settings={"tree": {"depth": 3, "top_k": 6, "total": 9}}, drafted=8)
    rows = report(write_bundle(tmp_path / "b", [plain(), side], {"scenes": [9]})).rows
    assert methods_of(rows, {})[0].width == 6


def test_a_small_model_may_be_given_another_size(tmp_path):
    side = described()
    side.structure = {"kind": "model", "layers": 0.25, "share": 0.4}
    rows = report(write_bundle(tmp_path / "b", [plain(), side], {"scenes": [9]})).rows
    assert methods_of(rows, {})[0].structure.share == 0.4
    assert methods_of(rows, {}, share=0.1)[0].structure.share == 0.1


def test_a_block_is_read_from_its_description(tmp_path):
    side = described()
    sizes = {"slots": 4, "layers": 1.5, "read": 2.0, "entering": 0.25, "cached": 2, "guesses": 3, "heads": 0.5}
    side.structure = {"kind": "block", **sizes}
    rows = report(write_bundle(tmp_path / "b", [plain(), side], {"scenes": [9]})).rows
    assert methods_of(rows, {})[0].structure == BlockStructure(**sizes)
    assert methods_of(rows, {}, share=0.1)[0].structure == BlockStructure(**sizes)
    side.structure = {"kind": "block", "slots": 4}
    rows = report(write_bundle(tmp_path / "c", [plain(), side], {"scenes": [9]})).rows
    refused(lambda: methods_of(rows, {}), "the bundle gives drafter 'eagle3' the structure")


def test_what_cannot_be_projected(tmp_path):
    old = write_bundle(tmp_path / "old", [plain(), eagle3()], {"scenes": [9]})
    refused(lambda: methods_of(report(old).rows, {}), "structures={eagle3:head}")
    assert methods_of(report(old).rows, {"eagle3": "head"})
    bare = write_bundle(tmp_path / "bare", [plain(), lookup()], {"scenes": [9]})
    refused(lambda: methods_of(report(bare).rows, {}), "no method")


def test_bench_records_how_drafters_are_made():
    import mmspec
    from mmspec.drafters import NGramDrafter
    from mmspec.evaluation.methods import structure_of

    target = mmspec.load_target("tiny")
    assert structure_of(None) is None and structure_of(NGramDrafter(target)) == {"kind": "lookup"}
    layer = sum(p.numel() for p in target.family.layers[0].parameters())
    eagle = mmspec.load_drafter("tiny/eagle3", target)
    found = structure_of(eagle)
    own = sum(p.numel() for p in eagle.parameters())
    assert found["kind"] == "head" and found["layers"] == own / layer and 1 <= found["layers"] < 3
    assert found["vocabulary"] == (eagle.draft_vocab_size or target.vocab_size) / target.vocab_size
    small = structure_of(mmspec.load_drafter("tiny/draft_model", target))
    assert small["kind"] == "model" and 0 < small["share"] < 1 and 0 < small["layers"] < 1
    for one in (found, small):
        Structure(**one)


# The command


def run(*argv) -> int:
    return cli.main(["bench", "simulate", *map(str, argv)])


def test_it_prints_projections_and_says_so(bundle, capsys):
    assert run(bundle, "device=h100", "models=[7b,72b]") == 0
    shown = capsys.readouterr().out
    assert "PROJECTION to 7b" in shown and "PROJECTION to 72b" in shown and "to 13b" not in shown
    assert "projections, not measurements" in " ".join(shown.split()) and "eagle3 chain" in shown
    assert "72b does NOT fit" in shown and "transformers lookup" not in shown


def test_it_writes_what_it_prints(bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(bundle, "--output", out, "models=[7b]", "json=true", "batch=2") == 0
    shown = capsys.readouterr().out
    values = json.loads((out / "projection.json").read_text())
    assert json.loads(shown.splitlines()[-1]) == values
    one = values["models"]["7b"]["eagle3 chain"]
    setting = Deployment(DEVICES["a100-80gb"], batch=2)
    expected = project(methods_of(report(bundle).rows, {})[0], MODELS["7b"], setting)
    assert one["speedup_decode"] == pytest.approx(expected.speedup) and one["share"] == pytest.approx(expected.share)
    text = " ".join((out / "projection.md").read_text().split())
    assert f"| eagle3 chain | 2.00 | {1e3 * expected.draft:.1f} |" in text and "not measurements" in text


def test_help(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mmspec bench simulate [flags] BUNDLE [BUNDLE ...] [key=value]")
    assert "device=a100-80gb" in shown and "--output DIR" in shown and "groups" not in shown
    assert cli.main(["--help"]) == 0
    assert "bench simulate  project" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name the bundles"),
        (["gone"], "gone: there is no such folder"),
        (["{bundle}", "device=h10"], "Did you mean 'h100'"),
        (["{bundle}", "models=[8b]"], "model '8b' is unknown"),
        (["{bundle}", "prefx=3"], "Did you mean 'prefix'"),
        (["{bundle}", "prefix=many"], "must be of type int"),
        (["{bundle}", "structures={eagle3: hed}"], "give lookup, head"),
        (["{bundle}", "--ouput", "x"], "Did you mean '--output'"),
        (["{bundle}", "--output", "{bundle}/manifest.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(bundle, argv, message, capsys):
    assert run(*(argument.replace("{bundle}", str(bundle)) for argument in argv)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("mmspec: ")
