"""Plots of one answer, or of several answers side by side, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.axis import Axis
from matplotlib.ticker import AutoLocator

from ..decoding.clock import PHASES
from ..errors import MMSpecError
from ..metrics import SHOWN
from .colours import COLOURS, LINES, MARKERS, PHASE_COLOURS
from .figures import Plot, figure, legend, titled

if TYPE_CHECKING:
    from ..generation import Output


def acceptance_by_position(outs: Mapping[str, Output]) -> Plot:
    """Plot the share of passes that keep the first drafted token, the second, and so on: one line per answer.

    Args:
        outs: names with their answers.
    """
    plot = figure(6.5, 3.2)
    axes = titled(plot.add_subplot(), SHOWN["acceptance_rate_per_position"])
    for look, (name, out) in zip(_looks(outs), outs.items(), strict=True):
        rates = out.stats.acceptance_rate_per_position
        axes.plot(range(1, len(rates) + 1), rates, label=name, **look)
    axes.set(xlabel="position in the draft", ylabel="share of passes", ylim=(0, 1.02))
    _whole_numbers(axes.xaxis)
    legend(axes)
    return plot


def acceptance_over_time(outs: Mapping[str, Output], row: int = 0) -> Plot:
    """Plot the tokens that each pass of the target gave, over the answer.

    Args:
        outs: names with their answers.
        row: index of the row in the batch.
    """
    plot = figure(7.5, 3.2)
    axes = titled(plot.add_subplot(), f"{SHOWN['mean_acceptance_length']}, over the answer")
    for look, (name, out) in zip(_looks(outs), outs.items(), strict=True):
        emitted = [record.emitted[row] for record in out.stats.rounds if record.emitted[row]]
        starts = [1 + sum(emitted[:number]) for number in range(len(emitted))]
        axes.step(
            [*starts, starts[-1] + emitted[-1]] if starts else [],
            [*emitted, *emitted[-1:]],
            where="post",
            label=name,
            **look | {"ms": 3},
        )
    axes.set(xlabel="token of the answer", ylabel=SHOWN["mean_acceptance_length"], ylim=(0, None))
    _whole_numbers(axes.yaxis)
    legend(axes)
    return plot


def entropy_and_depth(outs: Mapping[str, Output]) -> Plot:
    """Plot the depth of each round's tree, and the number of tokens kept, against the target's entropy before the
    round. An adaptive tree is deep where the entropy is low.

    Args:
        outs: names with their answers, made with `trace=True`.

    Raises:
        MMSpecError: for an answer without a trace.
    """
    plot = figure(8, 3.4)
    left, right = plot.subplots(1, 2, sharex=True)
    for axes, title in ((left, SHOWN["levels"]), (right, SHOWN["mean_accepted_draft_tokens"])):
        titled(axes, title)
        axes.set_xlabel("entropy of the target (nats)")
        _whole_numbers(axes.yaxis)
    for look, (name, out) in zip(_looks(outs), outs.items(), strict=True):
        rounds = list(out.trace)
        entropy = [one.entropy for one in rounds]
        dots = look | {"ls": "", "alpha": 0.6, "label": name}
        left.plot(entropy, [one.depth for one in rounds], **dots)
        right.plot(entropy, [one.accepted for one in rounds], **dots)
    for axes in (left, right):
        axes.set_ylim(0, None)
    legend(right)
    return plot


def phase_times(outs: Mapping[str, Output]) -> Plot:
    """Plot the time that each phase of decoding took: one bar per answer, in milliseconds per token.

    Args:
        outs: names with their answers.
    """
    _looks(outs)  # refuses what is empty
    plot = figure(7.5, 1.2 + 0.4 * len(outs))
    axes = titled(plot.add_subplot(), "time per token, by phase")
    left = [0.0] * len(outs)
    for phase in PHASES:
        shares = [1000 * out.stats.seconds.get(phase, 0) / sum(out.stats.new_tokens) for out in outs.values()]
        axes.barh(range(len(outs)), shares, left=left, color=PHASE_COLOURS[phase], label=phase)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(outs)), outs)
    axes.invert_yaxis()
    axes.set_xlabel("ms per token")
    legend(axes)
    return plot


def _whole_numbers(axis: Axis) -> None:
    """Put the ticks of an axis on whole numbers only."""
    locator = AutoLocator()
    locator.set_params(integer=True)
    axis.set_major_locator(locator)


def _looks(outs: Mapping[str, Output]) -> list[dict[str, Any]]:
    """Return a colour, a marker and a line style for each answer. After the last colour they begin again with the
    first, with another marker and line style."""
    if not outs:
        raise MMSpecError("there is nothing to plot: give a dictionary with a name for each answer")
    looks = []
    for number in range(len(outs)):
        again, colour = divmod(number, len(COLOURS))
        look = {"marker": MARKERS[again % len(MARKERS)], "ls": LINES[again % len(LINES)]}
        looks.append({"color": COLOURS[colour], **look})
    return looks
