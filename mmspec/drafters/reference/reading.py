"""Files of reference texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import MMSpecError, first_line, shown
from ...settings.arguments import file_path

PARSED = "parsing_res_list"
"""Where PP-StructureV3 of PaddleOCR writes the regions of a page; the text of each is its `block_content`."""


def read_references(path: str | Path) -> list[str]:
    """Return the texts in a file: a plain text is one; a `.json` file holds a list of texts, or
    `{"references": [...]}`, or what PP-StructureV3 writes about a page.

    Raises:
        MMSpecError: for what is no name of a file, a file that cannot be read, or holds something else.
    """
    path = file_path(path, "file")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise MMSpecError(f"the file of references {str(path)!r} cannot be read: {reason}") from error
    if path.suffix.lower() != ".json":
        return [content.strip("\n")]
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MMSpecError(f"the file of references {str(path)!r} is not JSON: {first_line(error)}") from None
    if isinstance(found, dict) and isinstance(found.get(PARSED), list):
        found = [block.get("block_content") for block in found[PARSED] if isinstance(block, dict)]
    elif isinstance(found, dict):
        found = found.get("references")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise MMSpecError(
            f"the file of references {str(path)!r} holds {shown(found, 60)}: give a list of texts, "
            f'{{"references": [...]}}, or a page of PP-StructureV3'
        )
    return found
