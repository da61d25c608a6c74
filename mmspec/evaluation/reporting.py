"""One report from any number of bundles: its table, its figures, its files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from ..errors import MMSpecError
from ..files.storage import atomic_write_text
from .conventions import UnitTable, in_units
from .figures import Row, rows_of
from .grouping import PLAIN, BundleGroup, columns_of, open_groups
from .limits import LimitsTable
from .plots import PLOTS, save_plots
from .prompt_costs import PromptTable
from .table import MethodTable

if TYPE_CHECKING:
    from rich.console import RenderableType


def marks(section: str = "") -> tuple[str, str]:
    """Return the comments between which a report stands in a Markdown file.

    Raises:
        MMSpecError: for a section that is not one word.
    """
    if re.fullmatch(r"[\w.,=+-]*", section) is None:
        raise MMSpecError(f"the section {section!r} must be one word of letters, digits and the signs , . = + - _")
    name = f" {section}" if section else ""
    return f"<!-- mmspec report{name}: begin -->", f"<!-- mmspec report{name}: end -->"


@dataclass
class Report:
    """The contents of bundles, merged. In a notebook it shows as its table.

    Args:
        groups: the bundles by the conditions that they were measured under; usually one.
        rows: one per method: the baseline of a group first, then by mean speed-up; those that failed come last.
    """

    groups: list[BundleGroup]
    rows: list[Row]

    def table(self) -> MethodTable:
        """Return the table, which prints in a terminal with rich, and has `.markdown()` and `.csv()`."""
        return MethodTable(self.rows, self.groups)

    def frame(self) -> pd.DataFrame:
        """Return the frame from which all figures are computed: a row per method, request and repeat.

        In front of the columns of `mmspec.evaluation.frame` stand the conditions (`target`, `fingerprint`, `dtype`,
        `device`, `batch`, `max_new_tokens`, and those of sampling under their own names), `method`, `baseline`,
        `engine`, `drafter`, `tree` and `lossless`.

        The table shows ratios of sums over requests: the speed-up of a task is the sum of `tokens` over that of
        `seconds`, divided by the sum of `plain_tokens` over that of `plain_seconds`. Of the seconds of a request it
        takes the median over repeats first.
        """
        frames = []
        for group in self.groups:
            about = [
                columns_of(group.conditions)
                | {"method": method.label, "baseline": method.baseline}
                | {name: method.side.get(name) for name in ("engine", "drafter", "tree", "lossless")}
                for method in group.methods
            ]
            methods = pd.DataFrame(about).loc[group.answers["side"]].set_index(group.answers.index)
            frames.append(pd.concat([methods, group.answers.drop(columns=["side", "answer", "ids"])], axis=1))
        return pd.concat(frames, ignore_index=True)

    def limits(self) -> LimitsTable:
        """Return what share of its own limit every method reaches, and what each lever would buy."""
        return LimitsTable(self.rows, self.groups)

    def prompt(self) -> PromptTable:
        """Return what the prompt costs every method, task by task: time by phase, and memory."""
        return PromptTable(self.rows, self.groups)

    def units(self, name: str) -> UnitTable:
        """Return the same runs as EAGLE, MMSpec, ViSpec or vLLM count them; see `mmspec.evaluation.conventions`."""
        return in_units(self.groups, name)

    def as_json(self) -> dict[str, Any]:
        """Return every figure, and the manifests, as plain JSON values."""
        whole = {bundle.folder: bundle.whole.manifest for group in self.groups for bundle in group.bundles}
        bundles = [{"folder": str(folder), **manifest} for folder, manifest in whole.items()]
        return {"notes": self.table().notes, "rows": [asdict(row) for row in self.rows], "bundles": bundles}

    def save(self, folder: str | Path, limits: bool = False, prompt: bool = False) -> list[Path]:
        """Write table.md, table.csv, report.json and the plots into a folder; return the files.

        Args:
            folder: made if it does not exist.
            limits: also write limits.md and limits.json.
            prompt: also write prompt.md.

        Raises:
            MMSpecError: if it cannot be written.
        """
        folder = Path(folder)
        texts = {
            "table.md": self.table().markdown(),
            "table.csv": self.table().csv(),
            "report.json": json.dumps(self.as_json(), indent=1) + "\n",
        }
        if limits:
            table = self.limits()
            texts |= {"limits.md": table.markdown(), "limits.json": json.dumps(table.as_json(), indent=1) + "\n"}
        if prompt:
            texts["prompt.md"] = self.prompt().markdown()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                atomic_write_text(folder / name, text)
            return [*(folder / name for name in texts), *save_plots(self.rows, folder)]
        except OSError as error:
            raise MMSpecError(f"the report cannot be written to {folder}: {error.strerror or error}") from error

    def put_into(self, file: str | Path, section: str = "", limits: bool = False, prompt: bool = False) -> list[Path]:
        """Put the table and the plots into a Markdown file, in place of those of an earlier time.

        What stands between the two comments is replaced; without them it goes to the end of the file, which is made if
        it does not exist. The plots are in a folder beside the file that is named like it.

        Args:
            file: to write to.
            section: a word that tells this report from others in the same file.
            limits: also the table of limits, between table and plots.
            prompt: also the table of what the prompt costs.

        Raises:
            MMSpecError: if the file has one of the comments only, or cannot be written.
        """
        file = Path(file)
        begin, end = marks(section)
        plots = (file.with_suffix("") if file.suffix else file.with_name(f"{file.name}.plots")) / section
        try:
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            before, after = _around(text, file, begin, end)
            plots.mkdir(parents=True, exist_ok=True)
            pictures = save_plots(self.rows, plots)
            links = [
                f"![{PLOTS[path.stem].caption}]({quote(os.path.relpath(path, file.parent).replace(os.sep, '/'))})"
                for path in pictures
            ]
            tables: list[MethodTable | LimitsTable | PromptTable] = [
                self.table(),
                *([self.limits()] if limits else []),
                *([self.prompt()] if prompt else []),
            ]
            parts = [begin, *(table.markdown().rstrip("\n") for table in tables), *links, end]
            atomic_write_text(file.resolve(), before + "\n\n".join(parts) + after)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MMSpecError(f"the report cannot be put into {file}: {reason}") from error
        return [file, *pictures]

    def __rich__(self) -> RenderableType:
        return self.table()

    def _repr_markdown_(self) -> str:
        return self.table().markdown()


def _around(text: str, file: Path, begin: str, end: str) -> tuple[str, str]:
    """Return what stands before and after the report in a file."""
    found = text.count(begin), text.count(end)
    if found == (0, 0):
        return (text.rstrip("\n") + "\n\n" if text.strip() else ""), "\n"
    if found != (1, 1) or text.index(begin) > text.index(end):
        raise MMSpecError(
            f"{file} must have {begin!r} once and {end!r} once after it, or neither; it has {found[0]} and {found[1]}"
        )
    before, rest = text.split(begin)
    return before, rest.split(end)[1]


def report(
    bundles: Sequence[str | Path] | str | Path, *, baseline: str = PLAIN, mixed: bool = False, partial: bool = False
) -> Report:
    """Read bundles into one report.

    Args:
        bundles: folders that `mmspec bench` wrote, or folders that hold such.
        baseline: the label of the method that all are compared with; every bundle must have it.
        mixed: whether bundles of different targets, dtypes, devices or settings of sampling may come together. Each is
            compared with its own baseline, and its rows say what it is.
        partial: whether to use what there is of a bundle that is not complete.

    Raises:
        MMSpecError: for what is no bundle, is not complete, or does not go together.
    """
    folders = [bundles] if isinstance(bundles, str | Path) else list(bundles)
    groups = open_groups(folders, baseline, mixed, partial)
    return Report(groups, [row for group in groups for row in rows_of(group)])
