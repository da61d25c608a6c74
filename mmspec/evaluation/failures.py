"""Why a method has failed: in one line, and as the bundle says it."""

from __future__ import annotations

import traceback

import torch

from ..errors import MMSpecError, cut, first_line
from .records import Failure


def wrapped(error: Exception, where: str) -> Exception:
    """Return an error that says where it happened, if the user can put it right; a fault of code stays as it is."""
    if isinstance(error, MMSpecError) or out_of_memory(error):
        kind = type(error) if isinstance(error, MMSpecError) else MMSpecError
        return kind(f"{where}: {reason_of(error)}")
    return error


def reason_of(error: Exception) -> str:
    """Return what went wrong, in one line."""
    if out_of_memory(error):
        return f"out of memory ({first_line(error)}): a smaller batch_size=, max_new_tokens= or tree needs less"
    return str(error) if isinstance(error, MMSpecError) else f"{type(error).__name__}: {first_line(error)}"


def out_of_memory(error: Exception) -> bool:
    """Return True if the machine or its device had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def failure(error: Exception, where: str = "") -> Failure:
    """Return what a bundle says of a side that failed; where it is a fault of code, its traceback too.

    `final` is a failure that trying again does not undo: the side has answered, and wrongly.
    """
    lines = None if isinstance(error, MMSpecError) else "".join(traceback.format_exception(error))
    final = getattr(error, "exit_code", None) == 1
    return {"reason": cut(f"{where}{reason_of(error)}", 500), "traceback": lines, "final": final}
