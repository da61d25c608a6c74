"""Plots have the right data: read back from their axes. And what a notebook or a script makes of them."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from models import inputs_for
from PIL import Image
from tiny_drafters import blurred_drafter
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError, visualization
from mmspec.decoding.clock import PHASES
from mmspec.trees import Chain, DynamicTree

pytestmark = pytest.mark.product

PLOTS = (
    visualization.acceptance_by_position,
    visualization.acceptance_over_time,
    visualization.entropy_and_depth,
    visualization.phase_times,
)


@pytest.fixture(scope="module")
def outs():
    target, drafter = target_of("llama", "sdpa"), blurred_drafter("llama", "sdpa")
    options = {"inputs": inputs_for("llama", [0, 0], [9, 6]), "max_new_tokens": 16, "trace": True}
    return {
        "chain": mmspec.generate(target, drafter, tree=Chain(3), **options),
        "tree": mmspec.generate(target, drafter, tree=DynamicTree(4, 3, 12), **options),
        "plain": mmspec.generate(target, **options),
    }


def lines(plot, number: int = 0) -> dict[str, tuple[list, list]]:
    axes = plot.axes[number]
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}


def test_acceptance_by_position(outs):
    drawn = lines(visualization.acceptance_by_position(outs))
    assert list(drawn) == list(outs)
    for name, out in outs.items():
        rates = out.stats.acceptance_rate_per_position
        assert drawn[name] == (list(range(1, len(rates) + 1)), rates)
    assert len(drawn["tree"][0]) == 4 and drawn["plain"] == ([], [])


@pytest.mark.parametrize("row", [0, 1])
def test_acceptance_over_time(outs, row):
    drawn = lines(visualization.acceptance_over_time(outs, row))
    for name, out in outs.items():
        x, y = drawn[name]
        emitted = [record.emitted[row] for record in out.stats.rounds if record.emitted[row]]
        assert y == [*emitted, emitted[-1]]
        assert [b - a for a, b in pairwise(x)] == emitted, "a step is as long as it is high"
        assert (x[0], x[-1]) == (1, 16)


def test_entropy_and_depth(outs):
    plot = visualization.entropy_and_depth(outs)
    for name, out in outs.items():
        entropy = [one.entropy for one in out.trace]
        assert lines(plot, 0)[name] == (entropy, [one.depth for one in out.trace])
        assert lines(plot, 1)[name] == (entropy, [one.accepted for one in out.trace])
    assert set(lines(plot, 0)["chain"][1]) == {3} and max(lines(plot, 1)["tree"][1]) > 0


def test_more_answers_than_colours_all_look_different(outs):
    many = {f"answer {number}": outs["tree"] for number in range(40)}
    for plot in PLOTS[:3]:
        drawn = plot(many).axes[0].get_lines()
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}
        assert len(looks) == len(drawn) == 40
    assert len({line.get_color() for line in drawn[:8]}) == 8


def test_titles_are_the_names_of_the_figures(outs):
    titles = [axes.get_title(loc="left") for plot in PLOTS for axes in plot(outs).axes]
    assert titles == [
        "acceptance by position",
        "tokens per pass, over the answer",
        "levels per pass",
        "accepted drafts per pass",
        "time per token, by phase",
    ]


def test_entropy_without_a_trace_is_refused(outs):
    out = mmspec.generate(target_of("llama", "sdpa"), inputs=inputs_for("llama", [0]), max_new_tokens=2)
    with pytest.raises(MMSpecError, match="trace=True"):
        visualization.entropy_and_depth({**outs, "untraced": out})


def test_phase_times(outs):
    (axes,) = visualization.phase_times(outs).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(outs)
    bars = {bar.get_label(): bar for bar in axes.containers}
    assert tuple(bars) == PHASES
    for number, out in enumerate(outs.values()):
        patches = [bars[phase].patches[number] for phase in PHASES]
        for phase, patch in zip(PHASES, patches, strict=True):
            assert patch.get_width() == pytest.approx(1000 * out.stats.seconds[phase] / 32)
        ends = [0.0, *(patch.get_x() + patch.get_width() for patch in patches)]
        assert [patch.get_x() for patch in patches] == pytest.approx(ends[:-1])
        assert ends[-1] == pytest.approx(1000 * out.stats.total_seconds / 32)


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_to_plot_is_refused_and_an_answer_of_one_token_is_not(plot):
    with pytest.raises(MMSpecError, match="nothing to plot"):
        plot({})
    one = mmspec.generate(target_of("llama", "sdpa"), inputs=inputs_for("llama", [0]), max_new_tokens=1, trace=True)
    assert plot({"one": one})._repr_png_()


def test_figures_show_themselves_and_leave_nothing_in_pyplot(outs):
    import matplotlib.pyplot as pyplot

    before = pyplot.get_fignums()
    for plot in PLOTS:
        picture = Image.open(io.BytesIO(plot(outs)._repr_png_()))
        assert picture.format == "PNG" and picture.width > 300 and len(picture.convert("L").getcolors()) > 2
    assert pyplot.get_fignums() == before


def test_a_script_gets_as_files_what_a_notebook_shows(outs, tmp_path, capsys):
    picture = Image.new("RGB", (4, 3), "red")
    shown = {
        "tree.svg": outs["tree"].trace[1],
        "plot.png": visualization.acceptance_by_position(outs),
        "picture.png": picture,
        "answer.html": outs["tree"],
    }
    for name, thing in shown.items():
        path = tmp_path / "new" / name
        assert visualization.show(thing, path.with_suffix("")) == path
        assert capsys.readouterr().out == f"saved {path}\n"
    assert (tmp_path / "new" / "tree.svg").read_text(encoding="utf-8") == outs["tree"].trace[1].svg()
    assert (tmp_path / "new" / "answer.html").read_text(encoding="utf-8") == outs["tree"]._repr_html_()
    with Image.open(tmp_path / "new" / "picture.png") as saved:
        assert saved.tobytes() == picture.tobytes() and saved.size == picture.size
    assert [visualization.show(thing, tmp_path / "none") for thing in ({"a": 1}, None)] == [None, None]
    assert capsys.readouterr().out == "{'a': 1}\n" and len(list((tmp_path / "new").iterdir())) == 4


def test_what_is_not_there_is_no_attribute():
    assert set(visualization.__all__) <= {name for name in visualization.__all__ if getattr(visualization, name)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = visualization.nothing
