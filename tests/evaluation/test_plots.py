"""The plots: files that show something, and looks that mean the same in all of them."""

from __future__ import annotations

import sys
import warnings

from bundles import eagle3, lookup, plain, write_bundle
from PIL import Image

from mmspec.evaluation import report
from mmspec.evaluation.plots import CAPTIONS, PLOTS, front, plot_budget, plot_speedup, save_plots
from mmspec.evaluation.style import COLOURS, DRAFTERS, Looks, write


def rows_of(tmp_path, sides):
    return report(write_bundle(tmp_path / "bundle", sides, {"scenes": [9, 17], "charts": [5, 9]})).rows


def test_every_plot_is_a_picture_with_something_on_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests may have imported it
    sides = [plain(), eagle3(), eagle3(label="wide", tree="dynamic", budget=16, drafted=16), lookup()]
    paths = save_plots(rows_of(tmp_path, sides), tmp_path)
    assert {path.stem for path in paths} == PLOTS.keys() == CAPTIONS.keys()
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
    figure = plot_speedup(rows, Looks(rows))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("not measured") == 2  # the task and the mean


def test_bars_and_points_are_at_their_values(tmp_path):
    rows = rows_of(tmp_path, [plain(), eagle3(), eagle3(label="wide", budget=16, drafted=16, pass_seconds=1.0)])
    figure = plot_speedup(rows, Looks(rows))
    assert [axes.get_title() for axes in figure.axes] == ["scenes", "charts", "mean of tasks"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[row.tasks[task].speedup.value for row in rows[1:]] for task in ("scenes", "charts")] + [
        [row.mean.speedup.value for row in rows[1:]]
    ]
    axes = plot_budget(rows, Looks(rows)).axes[0]
    joined = axes.lines[-2].get_xdata()  # the last is the line at 1
    assert sorted(joined) == [4, 16]


def test_a_drafter_has_one_colour_and_a_tree_one_marker(tmp_path):
    sides = [plain(), eagle3(), eagle3(label="wide", tree="dynamic", budget=16), eagle3(label="e", drafter="eagle")]
    sides += [lookup(), lookup(label="again", settings={"prompt_lookup_num_tokens": 6})]
    rows = {row.method: row for row in rows_of(tmp_path, sides)}
    looks = Looks(list(rows.values()))
    assert looks.colour(rows["eagle3 chain"]) == looks.colour(rows["wide"]) != looks.colour(rows["e"])
    assert looks.marker(rows["eagle3 chain"]) == looks.marker(rows["e"]) != looks.marker(rows["wide"])
    assert looks.colour(rows["plain"]) not in COLOURS
    assert looks.marker(rows["transformers lookup"]) != looks.marker(rows["again"])


def test_two_dozen_methods_never_look_alike(tmp_path):
    """24 drafters of one tree, and 24 trees of one drafter."""
    many = [eagle3(label=f"d{i}", drafter=f"d{i}") for i in range(24)]
    many += [eagle3(label=f"t{i}", tree=f"t{i}", budget=i + 1) for i in range(24)]
    rows = rows_of(tmp_path, [plain(), *many])
    looks = Looks(rows)
    drafting = [row for row in rows if not row.baseline]
    points = {(looks.colour(row), looks.marker(row), looks.face(row) == "none") for row in drafting}
    bars = {(looks.colour(row), looks.hatch(row)) for row in drafting}
    assert len(points) == len(bars) == len(drafting) == 48
    assert len(set(COLOURS)) == len(COLOURS) == 12


def test_a_method_looks_the_same_whatever_is_beside_it(tmp_path):
    shipped = [eagle3(label=name, drafter=name) for name in DRAFTERS]
    rows = {row.method: row for row in rows_of(tmp_path, [plain(), *shipped])}
    looks = Looks(list(rows.values()))
    assert len({looks.colour(rows[name]) for name in DRAFTERS}) == len(DRAFTERS)
    for name in DRAFTERS:
        alone = Looks([rows[name]])
        look = [(way.colour(rows[name]), way.hatch(rows[name]), way.marker(rows[name])) for way in (looks, alone)]
        assert look[0] == look[1]


def test_a_drafter_that_never_guesses_is_drawn_without_a_warning(tmp_path):
    rows = rows_of(tmp_path, [plain(), eagle3(accepted=[0], drafted=0, depth=0, pass_seconds=1e-4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(PLOTS["pareto"](rows, Looks(rows)), tmp_path / "pareto.png")


def test_front():
    #        best of its cost, beaten, longer for more, dearer and shorter, as long and dearer
    assert front([1.0, 1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 5.0, 4.0, 5.0]) == [0, 2]
    assert front([], []) == []
