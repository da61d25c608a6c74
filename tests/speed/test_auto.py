"""AutoTree: what it drafts, when it rests, what it keeps, and that the text is the target's."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from models import inputs_for
from refusals import refused
from tiny_drafters import blurred_drafter, eagle3_drafter
from tiny_requests import RAGGED, case

import mmspec
from mmspec.outcome import Verdict
from mmspec.speed import AutoTree, Costs, Curve, Line, auto_tree, store
from mmspec.speed.knowledge import Knowledge
from mmspec.trees import Growth, Proposals
from mmspec.verifiers import PointMassSampling, RejectionSampling

NEW = 30


def costs(draft: float, node: float = 0.05, branching: float = 0.2) -> Costs:
    """A target of 8 seconds a step, and a drafter of so many seconds a level."""
    score = Curve((1, 33), (8.0, 8.0 + 32 * node))
    return Costs(score, 0.5, Line(0.5, 0.01), branching, Line(draft), Line(draft, 0.01), Line(0.1), Line(0.1, 0.1))


CHEAP, DEAR = costs(0.2), costs(6.0, node=0.5)
CHAINS = costs(0.2, branching=50.0)


class Run:
    """Rounds of a builder without a model: every guess has a probability, and the first ranks are hits with given
    chances."""

    def __init__(self, tree: AutoTree, proposal: str = "point", rows: int = 1, drafter=None):
        self.tree, self.rows, self.drafter = tree.fork(), rows, drafter
        self.tree.check(proposal)
        self.generator = torch.Generator().manual_seed(0)
        self.shapes, self.emitted = [], 0

    def rounds(self, count: int, *chances: float, sure: float = 0.8) -> list:
        others = (1 - sure) / 19
        logits = torch.tensor([sure, *[others * (1 + 0.001 * n) for n in range(19, 0, -1)]]).log()
        logits = logits.expand(self.rows, -1)
        start = len(self.shapes)
        for _ in range(count):
            growth = Growth(
                torch.zeros(self.rows, dtype=torch.long),
                lambda: logits,
                lambda block: logits[:, None].expand(-1, block.tokens.shape[1], -1),
                Proposals(),
                drafter=self.drafter,
            )
            if self.drafter is not None:
                self.drafter.marginals = lambda depth: logits[:, None].expand(-1, depth, -1)
            tree = self.tree.build(growth)
            self.shapes.append(self.tree.shape)
            last = torch.tensor([self.walk(parents, chances) for parents in tree.parents.tolist()])
            path, length = tree.path_to(last)
            self.emitted += int(length.sum())
            self.tree.observe(tree, None, Verdict(path, length, torch.zeros(self.rows, dtype=torch.long)))
        return self.shapes[start:]

    def walk(self, parents, chances) -> int:
        node = 0
        while True:
            draw = torch.rand(1, generator=self.generator).item()
            children = [i for i, parent in enumerate(parents) if parent == node]
            rank = next((r for r in range(len(chances)) if draw < sum(chances[: r + 1])), None)
            if rank is None or rank >= len(children):
                return node
            node = children[rank]

    def seconds(self, given: Costs) -> float:
        """What the rounds so far take at given costs."""
        total = 0.0
        for shape in self.shapes:
            if shape.kind == "plain":
                total += given.plain
                continue
            levels = given.first(1) + sum(given.level(nodes) for nodes in shape.levels[1:])
            total += levels + given.score(shape.nodes + 1) + given.overhead(shape.nodes)
        return total


def mean_nodes(shapes) -> float:
    return sum(shape.nodes for shape in shapes) / len(shapes)


def test_cheap_good_drafts_are_deep_and_dear_or_poor_ones_short():
    deep = Run(AutoTree(costs=CHEAP)).rounds(64, 0.97, sure=0.97)[32:]
    assert {shape.kind for shape in deep} == {"chain"} and mean_nodes(deep) > 12
    poor = Run(AutoTree(costs=CHAINS)).rounds(64, 0.3, sure=0.3)[32:]
    dear = Run(AutoTree(costs=costs(3.0, branching=50.0))).rounds(64, 0.8, sure=0.8)[32:]
    assert mean_nodes(poor) < 3.5 and mean_nodes(dear) < 3.5
    wide = Run(AutoTree(costs=costs(1.0, node=0.0))).rounds(80, 0.4, 0.3, 0.2, sure=0.4)[-1]
    assert wide.kind != "chain" and wide.nodes >= 8


def test_lengths_follow_the_drafter_s_own_probabilities():
    run = Run(AutoTree(costs=CHEAP))
    run.rounds(32, 0.9, sure=0.9)
    assert mean_nodes(run.rounds(4, 0.9, sure=0.99)) > 1.5 * mean_nodes(run.rounds(4, 0.9, sure=0.6))


def test_a_drafter_that_is_too_sure_of_itself_is_believed_less_and_less():
    run = Run(AutoTree(costs=CHAINS))
    shapes = run.rounds(64, 0.4, sure=0.98)
    assert mean_nodes(shapes[-16:]) < 4 < 8 <= shapes[0].nodes


@pytest.mark.parametrize("hit", [0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("level", [0.2, 1.0, 3.0])
def test_it_is_nearly_as_fast_as_the_best_chain_of_fixed_length(hit, level):
    """Here all guesses are equally sure, so a chain that ends early has nothing to gain; nothing but what it learns."""
    given = costs(level, branching=50.0)
    run = Run(AutoTree(costs=given))
    run.rounds(400, hit, sure=hit)
    reached = run.emitted / run.seconds(given)
    accepted = lambda n: sum(hit**k for k in range(1, n + 1))  # noqa: E731
    round_of = lambda n: given.first(1) + (n - 1) * given.level(1) + given.score(n + 1) + given.overhead(n)  # noqa: E731
    best = max([(1 + accepted(n)) / round_of(n) for n in range(1, 33)] + [1 / given.plain])
    assert reached > 0.93 * best


def test_a_drafter_that_only_costs_rests_and_is_tried_again():
    run = Run(AutoTree(costs=DEAR))
    shapes = run.rounds(400, 0.05, sure=0.5)
    drafted = [place for place, shape in enumerate(shapes) if shape.kind != "plain"]
    pauses = [b - a - 1 for a, b in pairwise(drafted) if b > a + 1]
    assert pauses[:4] == [32, 64, 128, 128] and len(drafted) < 8
    run = Run(AutoTree(costs=costs(3.0)))
    assert not all(shape.nodes for shape in run.rounds(100, 0.05, sure=0.5))
    assert all(shape.nodes for shape in run.rounds(200, 0.97, sure=0.97)[-32:]), "it is good again"


def test_an_answer_that_the_drafter_does_not_suit_is_known_after_a_few_guesses(monkeypatch):
    """By what earlier answers were like; and one that it suits is known as fast, also behind others."""
    given = costs(4.0, branching=50.0)
    known = Knowledge(given)
    monkeypatch.setattr(AutoTree, "_what_is_known", lambda tree, drafter: setattr(tree, "_clock", None) or known)

    def answer(hit: float) -> list:
        return Run(AutoTree(costs=given)).rounds(24, hit, sure=0.8)

    for hit in (0.85, 0.2, 0.85, 0.2, 0.85, 0.2):
        shapes = answer(hit)
    assert sum(shape.kind != "plain" for shape in shapes) <= 3, "it rests after three rounds at most"
    assert all(shape.kind != "plain" for shape in answer(0.98)), "a text of the other kind is not given up"
    suited, unsuited = known.kinds.chances
    assert suited > 0.75 and unsuited < 0.5


def test_rounds_that_nobody_or_only_finished_rows_took_part_in_teach_nothing():
    run = Run(AutoTree(costs=CHEAP), rows=2)
    run.rounds(1, 0.9)
    growth = Growth(
        torch.zeros(2, dtype=torch.long),
        lambda: torch.ones(2, 9),
        lambda block: torch.ones(2, block.tokens.shape[1], 9),
        Proposals(),
    )
    drafted = run.tree.build(growth)
    path, length = drafted.path_to(torch.tensor([0, 0]))
    bonus, known = torch.zeros(2, dtype=torch.long), run.tree._known
    before = known.ranks.tries[0][0]
    run.tree.observe(drafted, None, Verdict(path, length * torch.tensor([1, 0]), bonus))
    assert known.ranks.tries[0][0] == pytest.approx(before + 1)
    run.tree.build(growth)
    run.tree.observe(drafted, None, Verdict(path, length, bonus, settled=True))
    assert known.ranks.tries[0][0] == pytest.approx(before + 1), "nobody asked the target"


def test_drawn_children_get_chains_and_static_trees_only():
    for node, chances in ((0.0, (0.4, 0.3, 0.2)), (0.05, (0.9,)), (1.0, (0.1,))):
        shapes = Run(AutoTree(costs=costs(0.5, node)), "sampled").rounds(80, *chances, sure=chances[0])
        assert {shape.kind for shape in shapes} <= {"chain", "static", "plain"}


def one_pass(cheap: bool = True) -> SimpleNamespace:
    """A drafter of eight levels, all of them from one pass."""
    return SimpleNamespace(max_depth=8, independent=cheap, cheap_levels=cheap)


def test_trees_from_marginals_are_drafted_where_levels_are_cheap():
    """By what the rounds cost: a tree of any depth for one pass, but every node has to be scored."""
    chances = (0.5, 0.25, 0.1)

    def shapes(node: float, *how: str, drafter: SimpleNamespace) -> list:
        return Run(AutoTree(costs=costs(1.0, node)), *how, drafter=drafter).rounds(100, *chances, sure=0.5)

    wide = shapes(0.005, drafter=one_pass())
    assert {shape.kind for shape in wide[64:]} == {"best_first"} and wide[-1].passes == 1 and wide[-1].nodes >= 8
    assert wide == shapes(0.005, drafter=one_pass()), "given costs repeat the shapes"
    others = [shapes(2.0, drafter=one_pass())[64:], shapes(0.005, drafter=one_pass(False))]
    others.append(shapes(0.005, "sampled", drafter=one_pass()))
    assert all(shape.kind != "best_first" for rounds in others for shape in rounds)


def test_an_answer_begins_with_the_tree_that_the_last_one_chose(monkeypatch):
    """Choosing takes as long as a level: it is not done once an answer."""
    run = Run(AutoTree(costs=costs(1.0, 0.005)), drafter=one_pass())
    last = run.rounds(100, 0.5, 0.3, 0.1, sure=0.5)[-1]
    assert last.kind == "best_first"

    def known(self, drafter):
        self._clock = None
        return run.tree._known

    def unwanted(*args, **kwargs):
        raise AssertionError("chosen anew")

    monkeypatch.setattr(AutoTree, "_what_is_known", known)
    monkeypatch.setattr(auto_tree, "candidates", unwanted)
    options = {"costs": costs(1.0, 0.005)}
    kinds = [shape.kind for shape in Run(AutoTree(**options), drafter=one_pass()).rounds(5, 0.5, sure=0.5)]
    assert kinds == ["chain"] * 2 + ["best_first"] * 3
    with pytest.raises(AssertionError, match="chosen anew"):  # within other bounds
        Run(AutoTree(limit=5, **options), drafter=one_pass()).rounds(1, 0.5, sure=0.5)


@pytest.mark.parametrize("given", [CHEAP, DEAR, costs(0.5, node=0.0)], ids=["cheap", "dear", "wide"])
@pytest.mark.parametrize("make", [blurred_drafter, eagle3_drafter])
def test_no_costs_change_the_text(make, given):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = make("llava", "sdpa")
    tree = AutoTree(costs=given, margin=0.0)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected and out.stats.lossless
    sampled = {"temperature": 0.8, "seed": 5, "inputs": inputs, "max_new_tokens": NEW, "verifier": PointMassSampling()}
    plain = mmspec.generate(drafter.target, **sampled)
    assert mmspec.generate(drafter.target, drafter, tree=tree, **sampled).token_ids == plain.token_ids
    assert tree.shape is None, "all state is the request's"


def test_the_shape_changes_within_a_request_and_given_costs_repeat_it():
    drafter = blurred_drafter("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", (1,), (9,), 120)
    tree = AutoTree(costs=costs(2.0))
    one, two = (
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=120, tree=tree) for _ in range(2)
    )
    assert len({record.depth for record in one.stats.rounds}) > 1
    assert [r.drafted for r in one.stats.rounds] == [r.drafted for r in two.stats.rounds]


def test_drawn_children_repeat_with_their_seed_whatever_was_learnt(learns):
    drafter = blurred_drafter("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    options = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 0.9, "verifier": RejectionSampling(), "seed": 2}
    one = mmspec.generate(drafter.target, drafter, tree=AutoTree(), **options)
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=AutoTree())
    two = mmspec.generate(drafter.target, drafter, tree=AutoTree(), **options)
    assert one.token_ids == two.token_ids and one.stats.lossless


# Keeping


@pytest.fixture
def kept(tmp_path, monkeypatch, learns):
    """The folder in which this test's knowledge is kept; nothing is known at first."""
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path / "cache"))
    store.forget()
    yield lambda: sorted((tmp_path / "cache" / "rounds").glob("*"))
    store.forget()


def answer(tree: AutoTree, rows=((1,), (9,)), new: int = 60) -> list:
    drafter = eagle3_drafter("llava", "sdpa")
    inputs = inputs_for("llava", *map(list, rows))
    return mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=new, tree=tree).token_ids


def known_in(file):
    return json.loads(file.read_text())["knowledge"]


def test_what_was_learnt_is_kept_per_batch_size_and_taken_up_again(kept):
    text = answer(AutoTree())
    (file,) = kept()
    assert known_in(file)["costs"]["rounds"] >= 8
    store.forget()
    assert answer(AutoTree()) == text
    known = store._loaded(file, 0.1, False)
    assert known.learnt.rounds > 8 and known.usual is not None
    answer(AutoTree(), ((1, 1), (9, 5)))
    assert len(kept()) == 2


def test_short_answers_of_short_processes_add_up(kept):
    seen = []
    for _ in range(4):
        store.forget()
        answer(AutoTree(), new=24)
        seen += [known_in(file)["costs"]["rounds"] for file in kept()]
    assert seen[-1] >= 24 and seen == sorted(seen)


def test_nothing_is_kept_unless_it_is_to_be_remembered(kept):
    answer(AutoTree(remember=False))
    answer(AutoTree(costs=CHEAP))
    assert not kept() and not store._KNOWN


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", '{"format": 99}', '{"format": 2, "knowledge": {}}', "[1]", "\udcff", "[" * 100_000),
        *(("usual", "NaN"), ("unit", "-1"), ("unit", "Infinity"), ("rounds", "Infinity"), ("unit", "1" + "0" * 400)),
    ],
)
def test_a_damaged_file_is_left_out_with_a_warning_and_mended(kept, damage):
    answer(AutoTree(), new=40)
    (file,) = kept()
    if isinstance(damage, tuple):
        name, value = damage
        damage = re.sub(
            rf'"{name}": \[?[^,\]}}]*', f'"{name}": {"[" * (name == "usual")}{value}', file.read_text(), count=1
        )
    file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    store.forget()
    with pytest.warns(UserWarning, match=r"cannot be read .*learning again"):
        answer(AutoTree(), new=40)
    store.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(AutoTree(), new=4)
    assert kept() == [file]


def test_a_folder_that_cannot_be_written_is_a_warning(kept, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="MMSPEC_CACHE"):
        assert answer(AutoTree())


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path))
    assert store.cache_folder() == tmp_path
    monkeypatch.delenv("MMSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_folder() == tmp_path / "xdg" / "mmspec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_folder().parts[-2:] == (".cache", "mmspec")


def test_costs_as_written_are_taken():
    assert AutoTree(costs=CHEAP.to_dict()).costs == CHEAP
    refused(lambda: AutoTree(costs={"score": 1}), "not costs")
    without_time = {"score": {"counts": [1], "seconds": [0.0]}, "plain_overhead": 0.0}
    refused(lambda: AutoTree(costs=CHEAP.to_dict() | without_time), "no time for plain decoding: measure again")
    before_now = {"first": {"base": -1.0, "slope": 0.0}}
    refused(lambda: AutoTree(costs=CHEAP.to_dict() | before_now), "Costs: first=-1.0 must be a number of at least 0")


def test_whose_tree_it_is_must_be_known(learns):
    growth = Growth(torch.zeros(1, dtype=torch.long), lambda: None, lambda block: None, Proposals())
    refused(lambda: AutoTree().fork().build(growth), "pass costs=")


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 1.5},
        {"limit": 0},
        {"margin": -1},
        {"margin": "a"},
        {"margin": float("nan")},
        {"remember": "no"},
        {"costs": 3},
    ],
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    refused(lambda: AutoTree(**wrong), f"AutoTree: {name}=")
