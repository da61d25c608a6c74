"""The plots: files that show something, and looks that mean the same in all of them."""

from __future__ import annotations

import sys
import warnings

import pytest
from bundles import eagle3, lookup, plain, write_bundle
from PIL import Image

from mmspec.evaluation import report
from mmspec.evaluation.plots import DRAFTERS, PLOTS, front, looks_of, plot_budget, plot_speedup, save_plots, write
from mmspec.visualization.colours import COLOURS

pytestmark = pytest.mark.product


def rows_of(tmp_path, sides):
    return report(write_bundle(tmp_path / "bundle", sides, {"scenes": [9, 17], "charts": [5, 9]})).rows


def looks_by_name(rows):
    looks = looks_of(rows)
    return {row.method: looks[id(row)] for row in rows}


def test_every_plot_is_a_picture_with_something_on_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests may have imported it
    sides = [plain(), eagle3(), eagle3(label="wide", tree="dynamic", budget=16, drafted=16), lookup()]
    paths = save_plots(rows_of(tmp_path, sides), tmp_path)
    assert {path.stem for path in paths} == PLOTS.keys() - {"batches", "lengths"}, "those need several sizes"
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 150 and len(image.convert("RGB").getcolors(10_000)) > 10
        assert path.stat().st_size < 100_000
    assert "matplotlib.pyplot" not in sys.modules


def test_without_drafts_only_the_round_is_shown(tmp_path):
    assert [path.stem for path in save_plots(rows_of(tmp_path, [plain()]), tmp_path)] == ["rounds"]


def test_a_method_without_a_task_leaves_a_gap(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9], "charts": [5]})
    write_bundle(tmp_path / "b", [plain(), lookup()], {"scenes": [9]})
    rows = report(tmp_path).rows
    texts = [text.get_text() for axes in plot_speedup(rows, looks_of(rows)).axes for text in axes.texts]
    assert texts.count("not measured") == 2  # the task and the mean


def test_bars_and_points_are_at_their_values(tmp_path):
    rows = rows_of(tmp_path, [plain(), eagle3(), eagle3(label="wide", budget=16, drafted=16, pass_seconds=1.0)])
    panels = {axes.get_title(): axes for axes in plot_speedup(rows, looks_of(rows)).axes}
    widths = {name: [bar.get_width() for bar in axes.patches] for name, axes in panels.items()}
    assert widths == {
        "scenes": [row.tasks["scenes"].speedup.value for row in rows[1:]],
        "charts": [row.tasks["charts"].speedup.value for row in rows[1:]],
        "mean of tasks": [row.mean.speedup.value for row in rows[1:]],
    }
    (mean,) = (row.mean.speedup for row in rows[1:2])
    segments = panels["mean of tasks"].collections[0].get_segments()
    assert segments[0][:, 0].tolist() == pytest.approx([mean.low, mean.high])
    joined = plot_budget(rows, looks_of(rows)).axes[0].lines[-2]  # the last is the line at 1
    assert sorted(joined.get_xdata()) == [4, 16]


def test_a_drafter_has_one_colour_and_a_tree_one_number(tmp_path):
    sides = [plain(), eagle3(), eagle3(label="wide", tree="dynamic", budget=16), eagle3(label="e", drafter="eagle")]
    sides += [lookup(), lookup(label="again", settings={"prompt_lookup_num_tokens": 6})]
    looks = looks_by_name(rows_of(tmp_path, sides))
    chain, wide, other = (looks[name] for name in ("eagle3 chain", "wide", "e"))
    assert chain.colour == wide.colour != other.colour and chain.number == other.number != wide.number
    assert looks["plain"].colour not in COLOURS
    assert looks["transformers lookup"].point["marker"] != looks["again"].point["marker"]


def test_four_dozen_methods_never_look_alike(tmp_path):
    """24 drafters of one tree, and 24 trees of one drafter."""
    many = [eagle3(label=f"d{i}", drafter=f"d{i}") for i in range(24)]
    many += [eagle3(label=f"t{i}", tree=f"t{i}", budget=i + 1) for i in range(24)]
    looks = looks_by_name(rows_of(tmp_path, [plain(), *many]))
    del looks["plain"]
    for kind in ("point", "bar"):
        assert len({tuple(getattr(look, kind).items()) for look in looks.values()}) == len(looks) == 48
    assert len(set(COLOURS)) == 12


def test_a_method_looks_the_same_whatever_is_beside_it(tmp_path):
    rows = rows_of(tmp_path, [plain(), *(eagle3(label=name, drafter=name) for name in DRAFTERS)])
    looks = looks_of(rows)
    assert len({looks[id(row)].colour for row in rows}) == 1 + len(DRAFTERS)
    assert all(looks_of([row]) == {id(row): looks[id(row)]} for row in rows)


def test_a_drafter_that_never_guesses_is_drawn_without_a_warning(tmp_path):
    rows = rows_of(tmp_path, [plain(), eagle3(accepted=[0], drafted=0, depth=0, pass_seconds=1e-4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(PLOTS["pareto"].draw(rows, looks_of(rows)), tmp_path / "pareto.png")


def test_front():
    #        best of its cost, beaten, longer for more, dearer and shorter, as long and dearer
    assert front([1.0, 1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 5.0, 4.0, 5.0]) == [0, 2]
    assert front([], []) == []
