"""WorkerProcess: a process that runs `worker.py` with the Python of another environment, asked line by line."""

from __future__ import annotations

import collections
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, cut

WORKER = Path(__file__).with_name("worker.py")
DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING"}
"""Variables of the environment that the process gets where they are not set."""
ON_A_PROCESSOR = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, which is one import and one start in place of three
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # to cores, on which others may be busy
    "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled, so nothing has to be built at the first start
}
"""Further ones where there is no GPU."""
VARIABLE = "MMSPEC_VLLM"
"""Variable that names the folder of the environment that holds vLLM."""
PATIENCE = 5.0
"""Seconds that the process has to end by itself."""
REMEMBERED = 40
"""Lines of what it has printed that are kept, for an error."""

MEANINGS = {
    "SIGILL": ": this processor lacks instructions that a library there was built for (AVX-512?): install a build "
    "for it",
    "SIGKILL": ": most likely the memory ran out: take a smaller model, engine.options={max_model_len: N}, or lower "
    "VLLM_CPU_KVCACHE_SPACE",
    "SIGSEGV": ": a compiled library there is broken, or made for another version: make the environment anew",
    "SIGABRT": ": a compiled library there has given up",
    "SIGTERM": ": somebody has ended it",
}
"""Names of signals that end a process, and the end of a sentence about it: the likely cause, and the way out."""


class WorkerProcess:
    """A process that is asked one thing at a time, and ends with the object, or with this process.

    Args:
        python: the Python that runs it, see `found_python`.
        environment: variables of the environment, besides this process's and in place of them.
        defaults: further ones, where they are not set.
        script: file that it runs.

    Raises:
        MMSpecError: if there is no such Python.
    """

    def __init__(
        self,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        script: Path = WORKER,
    ):
        self.python = found_python(python)
        variables = DEFAULTS | dict(defaults or {}) | dict(os.environ) | dict(environment or {})
        self._process = subprocess.Popen(
            [self.python, "-P", str(script)],  # its folder is no place to import from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=variables,
            start_new_session=True,  # an interrupt from the terminal is for this process, which ends the other
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._printed: collections.deque[str] = collections.deque(maxlen=REMEMBERED)
        for read, into in ((self._process.stdout, self._lines.put), (self._process.stderr, self._printed.append)):
            threading.Thread(target=_forward, args=(read, into, read is self._process.stdout), daemon=True).start()
        self.close = weakref.finalize(self, _end, self._process)

    def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        """Return the answer to one request.

        Args:
            request: the request, see `worker`.
            seconds: how long the answer may take; then the process is ended.

        Raises:
            MMSpecError: if it takes longer, the process has ended, or the answer is an error.
        """
        what = next(iter(request))
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise MMSpecError(
                f"the process of {self.python} has not answered {what!r} within {seconds:g} s and was ended: "
                f"give it more time (engine.patience), or a smaller model{self._last_words()}"
            ) from None
        except (OSError, ValueError):  # a pipe that nobody reads, or that was closed
            line = None
        if line is None:
            self.close()
            raise MMSpecError(
                f"the process of {self.python} has ended while it was asked {what!r}{self._death()}{self._last_words()}"
            )
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"done", "error"}:
            self.close()
            raise MMSpecError(f"{self.python} runs no Python here, it says {cut(line.strip(), 100)!r}: correct python=")
        if "error" in answer:
            raise MMSpecError(f"vLLM failed at {what!r}: {answer['error']}{self._last_words()} (python={self.python})")
        return answer["done"]

    def _death(self) -> str:
        """Return the signal that has ended the process, and what that mostly means, for a message."""
        number = -(self._process.returncode or 0)
        if number <= 0:
            return ""
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f", by {name}{MEANINGS.get(name, '')}"

    def _last_words(self) -> str:
        """Return the last line that the process has printed about an error, for a message."""
        telling = [line.strip() for line in self._printed if "Error" in line]
        return f"; it printed: {cut(telling[-1], 400)}" if telling else ""


def found_python(python: str | None) -> str:
    """Return the path of a Python; by default that of the environment whose folder the variable `MMSPEC_VLLM` names, or
    else this one.

    Raises:
        MMSpecError: if there is none.
    """
    folder = os.environ.get(VARIABLE)
    if python is None and not folder:
        return sys.executable
    wanted = python or str(Path(folder or "", "bin", "python"))
    found = shutil.which(os.path.expanduser(wanted))
    if found is None:
        raise MMSpecError(
            f"python={wanted} is no program that can be run: name the Python of the environment that holds vLLM "
            "(scripts/vllm_environment.sh DIR makes one: python=DIR/bin/python, or MMSPEC_VLLM=DIR)"
        )
    return found


def _forward(stream: Any, into: Any, mark_end: bool) -> None:
    """Hand on the lines of a stream as they come, and None at its end."""
    for line in stream:
        into(line)
    if mark_end:
        into(None)


def _end(process: subprocess.Popen) -> None:
    """End a process, and those that it has started, which share its session."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, AttributeError):  # it has just ended; no sessions on this system
        process.kill()
    process.wait(PATIENCE)
