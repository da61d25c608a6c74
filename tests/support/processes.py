"""Programs of several processes, none of which outlives its test."""

from __future__ import annotations

import subprocess

import psutil


def kill_all(process: subprocess.Popen) -> tuple[str, str | None]:
    """Kill a program and everything that it has started, as where a machine loses its power; return what it printed."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    return process.communicate()


def finish(process: subprocess.Popen, seconds: float = 500) -> tuple[str, str | None]:
    """Wait for the end of a program, and return what it printed. After so many seconds everything is killed that it has
    started, which would be in the way of other tests."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = "\n".join(each[-3000:] for each in kill_all(process) if each)
        raise AssertionError(f"it is still running after {seconds} s, and has said: {said}") from None
