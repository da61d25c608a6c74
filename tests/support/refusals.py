"""What every refusal is held to: an `MMSpecError` of one line that names the thing, the value and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmspec.errors import MMSpecError


def refused(call: Callable[[], Any], said: str) -> str:
    """Make a call that has to be refused, and return the line that says why.

    Args:
        call: is called without arguments.
        said: what the line must contain; ` ... ` stands for anything between two parts.
    """
    with pytest.raises(MMSpecError) as caught:
        call()
    line, place = str(caught.value), 0
    assert "\n" not in line and len(line) < 900, line
    for part in said.split(" ... "):
        found = line.find(part, place)
        assert found >= 0, f"{part!r} is not in {line[place:]!r}"
        place = found + len(part)
    return line
