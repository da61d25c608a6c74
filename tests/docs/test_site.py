"""The site, unbuilt: the navigation names every page, links and anchors lead somewhere, every paper has an entry."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
import yaml
from snippets import PAGES, ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not a checkout")

DOCS, REFERENCE = ROOT / "docs", ROOT / "docs" / "reference"
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"(?<!\\)\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?\s*\)")
ARXIV = re.compile(r"(?<![\d.])(2\d{3}\.\d{5})(?!\d)")
LARGEST = 60_000


def text_of(page: Path) -> str:
    """A page without its blocks of code and what is code in a line."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def slug(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    plain = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        name = base = slug(heading)
        number = 0
        while name in found:
            number += 1
            name = f"{base}_{number}"
        found.append(name)
    return {*found, *re.findall(r'<a (?:id|name)="([^"]+)"', text)}


def broken(page: Path, base: Path) -> list[str]:
    """The links of a page that lead nowhere, or out of a folder."""
    wrong = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path).resolve() if path else page
        there = goal.exists() and goal.is_relative_to(base)
        if not there or (anchor and (goal.suffix != ".md" or anchor not in anchors(goal))):
            wrong.append(link)
    return wrong


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [page for part in values for page in pages_of(part)]


def test_the_navigation_names_every_page_once():
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = [page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)]
    assert sorted(named) == sorted(there)


def test_the_site_fetches_nothing():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False and not {"extra_javascript", "extra_css"} & config.keys()
    plugins = {name for plugin in config["plugins"] for name in ([plugin] if isinstance(plugin, str) else plugin)}
    assert plugins == {"search", "mkdocstrings"}  # the plugin `offline` adds a script from elsewhere
    embedded = r"<(?:img|script|iframe|link)[^>]*https?:|!\[[^\]]*\]\(https?:"
    assert [page.name for page in PAGES if re.search(embedded, text_of(page))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page):
    # The site holds what is in docs/ and nothing else; the README is read in the repository.
    assert broken(page, ROOT if page.name == "README.md" else DOCS) == []


def test_what_leads_nowhere_is_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A *heading*, twice\n\n# A heading, twice\n\n```bash\n# no heading\n```\n")
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-twice_1) [c](https://x.example) `[d](none.md)`\n"
        "![e](none.png) [f](other.md#no-heading) [g](#here) [h](../out.md)\n\n# There\n[i](#there)\n"
    )
    assert broken(page, tmp_path) == ["none.png", "other.md#no-heading", "#here", "../out.md"]


def test_figures_of_the_concepts_are_small_and_all_are_shown():
    figures = [file for file in (DOCS / "concepts").iterdir() if file.suffix in (".png", ".svg")]
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert figures and all(file.stat().st_size < LARGEST for file in figures)
    assert [file.name for file in figures if f"{file.name})" not in shown] == []


def entries() -> dict[str, dict[str, str]]:
    text = (DOCS / "papers.bib").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^@misc\{(\w+),\n(.*?)^\}$", text, re.M | re.S):
        found[key] = dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, re.M))
        assert len(found[key]) == body.count("\n"), f"{key}: a line is no field"
    assert len(found) == text.count("\n@"), "an entry is not read, or there twice"
    return found


def test_every_paper_that_the_code_names_has_an_entry():
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "docs", "mmspec", "configs", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("not a repository")
    files = [ROOT / name for name in tracked.stdout.splitlines() if name.endswith((".md", ".py", ".yaml"))]
    named = {paper for file in files if file.exists() for paper in ARXIV.findall(file.read_text(encoding="utf-8"))}
    listed = {entry["eprint"] for entry in entries().values()}
    assert named - {"2406.04334"} <= listed  # DeepStack: a part of a model, no method of ours
    assert listed <= named | {"2508.16201"}


def test_entries_are_whole_and_cited():
    cited = set(re.findall(r"`(\w+20\d\d\w+)`", (DOCS / "citing.md").read_text(encoding="utf-8")))
    found = entries()
    for key, entry in found.items():
        assert {"title", "year", "eprint", "archivePrefix"} <= entry.keys(), key
        assert entry["year"][2:] == entry["eprint"][:2], key
        # Where authors are not known in full, a note says so.
        assert ("author" in entry and "others" not in entry["author"]) or "author" in entry["note"], key
    assert cited <= set(found) and set(found) - cited <= {"hass2024"}


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.stem)
def test_what_the_reference_names_exists(page):
    import importlib

    for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
