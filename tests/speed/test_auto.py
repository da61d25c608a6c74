"""AutoTree: which shape it picks, how it adapts, what it keeps on disk, and that the text is the target's."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise

import pytest
import torch
from models import inputs_for
from tiny_drafters import blurred_drafter, eagle3_drafter
from tiny_requests import RAGGED, case

import mmspec
from mmspec.errors import MMSpecError
from mmspec.outcome import Verdict
from mmspec.speed import Acceptance, AutoTree, Costs, Curve, Line, store
from mmspec.speed.learning import AcceptanceTracker
from mmspec.trees import Growth, Proposals
from mmspec.verifiers import PointMassSampling, RejectionSampling

NEW = 30


def costs(draft: float, node: float = 0.05) -> Costs:
    """A target of 8 seconds a step, and a drafter of so many seconds a level."""
    score = Curve((1, 33), (8.0, 8.0 + 32 * node))
    return Costs(score, 0.5, Line(0.5, 0.01), 0.2, Line(draft), Line(draft, 0.01), Line(0.1), Line(0.1, 0.1))


CHEAP, DEAR = costs(0.2), costs(6.0, node=0.5)


class Run:
    """Rounds of a builder without a model: the drafter's ranks are hits with given chances."""

    def __init__(self, tree: AutoTree, proposal: str = "point", rows: int = 1):
        self.tree, self.rows = tree.fork(), rows
        self.tree.check(proposal)
        self.generator = torch.Generator().manual_seed(0)
        self.shapes = []

    def rounds(self, count: int, *chances: float) -> list:
        for _ in range(count):
            logits = torch.arange(20, 0, -1.0).expand(self.rows, -1)
            growth = Growth(
                torch.zeros(self.rows, dtype=torch.long),
                lambda logits=logits: logits,
                lambda block, logits=logits: logits[:, None].expand(-1, block.tokens.shape[1], -1),
                Proposals(),
            )
            tree = self.tree.build(growth)
            self.shapes.append(self.tree.chosen.shape)
            last = torch.tensor([self.walk(parents, chances) for parents in tree.parents.tolist()])
            path, length = tree.path_to(last)
            self.tree.observe(tree, None, Verdict(path, length, torch.zeros(self.rows, dtype=torch.long)))
        return self.shapes

    def walk(self, parents, chances) -> int:
        node = 0
        while True:
            draw = torch.rand(1, generator=self.generator).item()
            children = [i for i, parent in enumerate(parents) if parent == node]
            rank = next((r for r in range(len(chances)) if draw < sum(chances[: r + 1])), None)
            if rank is None or rank >= len(children):
                return node
            node = children[rank]


def test_dear_and_poor_drafts_are_short_and_cheap_good_ones_deep():
    short = Run(AutoTree(costs=DEAR)).rounds(128, 0.05)[16:]
    # Of wider trees of one level it has a try now and then, because ranks that are not drafted are forgotten.
    assert {shape.passes for shape in short} == {1} and sum(shape.nodes == 1 for shape in short) > len(short) / 2
    deep = Run(AutoTree(costs=CHEAP)).rounds(64, 0.97)[-1]
    assert deep.kind == "chain" and deep.nodes == 8
    wide = Run(AutoTree(costs=costs(1.0, node=0.0))).rounds(64, 0.4, 0.3, 0.2)[-1]
    assert wide.kind != "chain" and wide.nodes >= 16


def test_it_adapts_when_the_text_changes():
    run = Run(AutoTree(costs=costs(1.0), decay=0.95))
    good, poor, again = (
        sum(shape.passes for shape in run.rounds(100, chance)[-32:]) / 32 for chance in (0.97, 0.05, 0.97)
    )
    assert good > 6 and poor < 2 and again > 6


def test_it_changes_now_and_then_and_for_a_reason():
    shapes = Run(AutoTree(costs=CHEAP, every=10)).rounds(60, 0.7, 0.1)
    changes = [i for i, (a, b) in enumerate(pairwise(shapes), start=1) if a != b]
    assert changes and all(i % 10 == 0 or i in (2, 4, 8) for i in changes)
    stubborn = Run(AutoTree(costs=CHEAP, margin=100.0)).rounds(60, 0.05)
    assert len(set(stubborn)) == 1


def test_finished_rows_teach_nothing():
    tree = AutoTree(costs=CHEAP).fork()
    run = Run(tree, rows=2)
    run.rounds(1, 0.9)
    before = run.tree._tracker.tries[0][0]
    growth = Growth(
        torch.zeros(2, dtype=torch.long),
        lambda: torch.ones(2, 9),
        lambda b: torch.ones(2, b.tokens.shape[1], 9),
        Proposals(),
    )
    drafted = run.tree.build(growth)
    path, length = drafted.path_to(torch.tensor([0, 0]))
    run.tree.observe(drafted, None, Verdict(path, length * torch.tensor([1, 0]), torch.zeros(2, dtype=torch.long)))
    assert run.tree._tracker.tries[0][0] == pytest.approx(0.98 * before + 1)
    known = run.tree._tracker.acceptance()
    run.tree.observe(drafted, None, Verdict(path, length, torch.zeros(2, dtype=torch.long), settled=True))
    assert run.tree._tracker.acceptance() == known, "nobody asked the target"


def test_what_is_learnt_by_hand():
    tracker = AcceptanceTracker((0.5, 0.25), levels=2, decay=0.5, weight=1.0)
    # Root 0 has children 1 and 2, node 2 has child 3; the path goes 0, 2, and stops although 3 was there.
    tracker.add([-1, 0, 0, 2], [0, 2])
    assert tracker.tries == [[1, 1], [1, 0]] and tracker.hits == [[0, 1], [0, 0]]
    pooled = (0.5 / 3, (1 + 0.25) / 2)
    # Level 1: ranks 0 and 1 come to (0 + pooled) / 2 and (1 + pooled) / 2; no rank has more than an earlier one.
    first = pooled[0] / 2
    assert tracker.acceptance().chances[0] == pytest.approx((first, first))
    assert tracker.acceptance().chances[1] == pytest.approx((first, first))
    tracker.fade()
    assert tracker.tries == [[0.5, 0.5], [0.5, 0]]
    assert AcceptanceTracker((0.5, 0.25), 2, 0.9, 1.0).acceptance() == Acceptance(((0.5, 0.25),) * 2)


def test_ranks_that_were_never_tried_take_nothing_from_the_first():
    """A chain tells nothing of siblings; that its guesses were all right must not be doubted for their sake."""
    tracker = AcceptanceTracker((0.7, 0.2, 0.1), levels=3, decay=1.0, weight=2.0)
    for _ in range(10):
        tracker.add([-1, 0, 1], [0, 1, 2])
    first, *others = tracker.acceptance().chances[0]
    assert first == pytest.approx((10 + 2 * (20 + 1.4) / 22) / 12)
    assert sum(others) == pytest.approx(1 - first) and others[0] == pytest.approx(2 * others[1])


def test_requests_begin_alike_unless_they_are_to_remember():
    fresh = AutoTree(costs=costs(2.0))
    first = Run(fresh).rounds(60, 0.05)
    assert first[-1] != first[0] and Run(fresh).rounds(1, 0.05) == first[:1]
    lasting = AutoTree(costs=costs(2.0), remember=True)
    assert Run(lasting).rounds(60, 0.05)[:1] == first[:1]
    assert Run(lasting).rounds(1, 0.05)[0].passes == 1 < first[0].passes


def test_what_was_learnt_of_one_drafter_is_not_told_of_another():
    tree, inputs = AutoTree(costs=costs(2.0), remember=True), case("llava", "sdpa", (1,), (9,), 60)[0]
    for make in (blurred_drafter, eagle3_drafter):
        drafter = make("llava", "sdpa")
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=60, tree=tree)
    blurred, eagle = (tracker.acceptance() for tracker, _ in tree._learnt.values())
    assert blurred.chance(1, 0) > 1.2 * eagle.chance(1, 0)


def test_drawn_children_get_fixed_shapes_only():
    for node, chances in ((0.0, (0.4, 0.3, 0.2)), (0.05, (0.9,)), (1.0, (0.1,))):
        shapes = Run(AutoTree(costs=costs(0.5, node)), "sampled").rounds(48, *chances)
        assert {shape.kind for shape in shapes} <= {"chain", "static"}
    with pytest.raises(MMSpecError, match="remember=False"):
        AutoTree(costs=CHEAP, remember=True).check("sampled")


@pytest.mark.parametrize("settings", [CHEAP, DEAR, costs(0.5, node=0.0)], ids=["cheap", "dear", "wide"])
@pytest.mark.parametrize("make", [blurred_drafter, eagle3_drafter])
def test_no_costs_change_the_text(make, settings):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = make("llava", "sdpa")
    tree = AutoTree(costs=settings, every=3, margin=0.0)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected and out.stats.lossless
    sampled = {"temperature": 0.8, "seed": 5, "inputs": inputs, "max_new_tokens": NEW, "verifier": PointMassSampling()}
    plain = mmspec.generate(drafter.target, **sampled)
    assert mmspec.generate(drafter.target, drafter, tree=tree, **sampled).token_ids == plain.token_ids


def test_the_shape_really_changes_within_a_request():
    drafter = blurred_drafter("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", (1,), (9,), 120)
    tree = AutoTree(costs=costs(2.0), every=4, margin=0.0, decay=0.9)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=120, tree=tree)
    assert len({record.depth for record in out.stats.rounds}) > 1
    again = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=120, tree=tree)
    assert [r.drafted for r in again.stats.rounds] == [r.drafted for r in out.stats.rounds]
    assert tree.chosen is None  # all state is the request's


def test_rejection_sampling_runs_and_repeats():
    drafter = blurred_drafter("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    options = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 0.9, "verifier": RejectionSampling(), "seed": 2}
    tree = AutoTree(costs=costs(0.5, node=0.0), every=3)
    one, two = (mmspec.generate(drafter.target, drafter, tree=tree, **options) for _ in range(2))
    assert one.token_ids == two.token_ids and one.stats.lossless


# Measuring and keeping


def answer(tree: AutoTree, rows=((1,), (9,))) -> list:
    drafter = blurred_drafter("llava", "sdpa")
    inputs = inputs_for("llava", *map(list, rows))
    return mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=6, tree=tree).token_ids


@pytest.fixture
def measured(monkeypatch, measuring):
    """The calls of `measure_costs`, which is the real one, made short."""
    from mmspec.speed import auto_tree

    calls, real = [], auto_tree.measure_costs

    def counted(*arguments, **options):
        calls.append(options)
        return real(*arguments, **options | {"repeats": 1, "warmup": 0})

    monkeypatch.setattr(auto_tree, "measure_costs", counted)
    return calls


def files(folder) -> list:
    return sorted((folder / "costs").glob("*"))


def test_costs_are_measured_once_and_kept(measured, measuring):
    text = answer(AutoTree(limit=8))
    assert len(measured) == 1 and len(files(measuring)) == 1
    kept = json.loads(files(measuring)[0].read_text())["costs"]
    assert kept["conditions"]["drafter"].endswith("DraftModelDrafter") and kept["conditions"]["batch_size"] == 1
    assert max(kept["score"]["counts"]) <= 9
    assert answer(AutoTree(limit=8)) == text and len(measured) == 1
    answer(AutoTree(limit=4))  # other trees
    answer(AutoTree(limit=8), ((1, 1), (9, 5)))  # another batch
    assert len(measured) == 3 and len(files(measuring)) == 3


def test_measuring_again_is_once_for_all_requests_of_an_object(measured, measuring):
    answer(AutoTree(limit=8))
    tree = AutoTree(limit=8, remeasure=True)
    answer(tree)
    answer(tree)
    assert len(measured) == 2 and len(files(measuring)) == 1


@pytest.mark.parametrize("damage", ["", "{", '{"format": 99}', '{"format": 1, "costs": {}}', "[1]", "\udcff"])
def test_a_damaged_file_is_measured_again_with_a_warning(measured, measuring, damage):
    answer(AutoTree(limit=8))
    (file,) = files(measuring)
    file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match=r"cannot be read .*measuring again"):
        answer(AutoTree(limit=8))
    assert len(measured) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(AutoTree(limit=8))
    assert len(measured) == 2 and files(measuring) == [file]


def test_a_folder_that_cannot_be_written_is_a_warning(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="MMSPEC_CACHE"):
        assert answer(AutoTree(limit=8))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path))
    assert store.cache_folder() == tmp_path
    monkeypatch.delenv("MMSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_folder() == tmp_path / "xdg" / "mmspec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_folder().parts[-2:] == (".cache", "mmspec")


def test_costs_as_written_are_taken():
    tree = AutoTree(costs=CHEAP.to_dict())
    assert tree.costs == CHEAP
    with pytest.raises(MMSpecError, match="not costs"):
        AutoTree(costs={"score": 1})


def test_whose_tree_it_is_must_be_known():
    growth = Growth(torch.zeros(1, dtype=torch.long), lambda: None, lambda block: None, Proposals())
    with pytest.raises(MMSpecError, match="pass costs="):
        AutoTree().fork().build(growth)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_depth": 0},
        {"limit": 1.5},
        {"every": 0},
        {"repeats": 0},
        {"decay": 0},
        {"decay": 1.1},
        {"margin": -1},
        {"weight": -0.1},
    ],
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(MMSpecError, match=f"AutoTree: {name}="):
        AutoTree(**wrong)
    with pytest.raises(MMSpecError, match="sum to 1"):
        AutoTree(prior=(0.8, 0.3))
