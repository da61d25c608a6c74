"""Progress of a long command: a bar on standard error, or a line now and then where that is no terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import printable

SECONDS_BETWEEN_LINES = 30  # where standard error is no terminal


class Display:
    """A context manager that shows progress.

    Args:
        name: name of the things that are counted, such as `answers`.
        console: console on standard error; by default a new one.
        quiet: whether to show nothing, as all processes but the first should.
    """

    def __init__(self, name: str, console: Console | None = None, quiet: bool = False):
        console = console or Console(stderr=True)
        self.name, self.quiet, self.terminal = name, quiet, console.is_terminal
        description = TextColumn("{task.description}", markup=False)  # a name is no markup
        columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=quiet or not self.terminal, transient=True)
        self._task = self._bar.add_task(name, total=None)
        self._begun, self._shown = False, time.monotonic()

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self._bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def show(self, done: int, total: int, text: str = "") -> None:
        """Show the progress; as lines at most every half minute, except for the last one.

        Args:
            done: number of things that are done, by earlier runs too.
            total: number of things in all.
            text: further information to show beside the numbers.
        """
        text = printable(", ".join(part for part in (self.name, text) if part))
        if not self._begun:  # what earlier runs did says nothing about the time that is left
            self._bar.reset(self._task, total=total, completed=done)
            self._begun = True
        self._bar.update(self._task, completed=done, description=text)
        if self.quiet or self.terminal:
            return
        if done == total or time.monotonic() - self._shown > SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(f"{done} of {total} {text}", file=sys.stderr, flush=True)
