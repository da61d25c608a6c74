"""Every block of Python and every mmspec command in the README and in docs/ runs, unless a note before it says why."""

from __future__ import annotations

import io
import json
import logging
import re
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from snippets import OWN_TEST, PAGES, ROOT, Snippet, read

from mmspec import zoo
from mmspec.cli import COMMANDS, main
from mmspec.settings import configuration

pytestmark = [pytest.mark.product, pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not a checkout")]


def holding(what: str) -> list[Path]:
    """The pages whose text has something; what it is, a page's own test finds out."""
    return [page for page in PAGES if page != OWN_TEST and re.search(what, page.read_text(encoding="utf-8"), re.M)]


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """What pages suppose to be there, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("things")

    def make(thing: str) -> Path:
        path = folder / thing
        if path.exists():
            return path
        if thing == "photo":
            zoo.demo_image().save(folder / "photo.png")
            (folder / "photo.png").rename(path)
        elif thing == "pictures":
            path.mkdir()
            for index in range(4):
                zoo.sample("scenes", "train", index).image.save(path / f"{index}.png")
        elif thing == "conversations":
            asked = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "There is a small blue ring."}]
            shown = [{"from": "human", "value": "<image>\nWhat is it?"}, asked[1]]
            pictured = [{"image": str(picture), "conversations": shown} for picture in make("pictures").iterdir()]
            path.write_text(json.dumps([*pictured, *[{"conversations": asked}] * 4]))
        elif thing == "answers":
            assert main(["distill", "source.count=2", "max_new_tokens=24", "--output", str(path)]) == 0
        elif thing in ("target", "drafter"):
            embedded = {"target": "target", "drafter": "eagle"}[thing]
            shutil.copytree(Path(zoo.__file__).parent / "weights" / "tiny" / embedded, path)
        else:
            short = ["task=scenes", "limit=1", "repeats=1", "warmup=0", "max_new_tokens=16"]
            assert main(["bench", "drafter=eagle3", "tree=chain", *short, "--output", str(path)]) == 0
        return path

    return make


def give(thing: Path, place: Path) -> None:
    if place.exists():  # given before
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if thing.is_dir() else shutil.copyfile)(thing, place)


def runnable(words: list[str]) -> bool:
    return words[0] == "mmspec" or (words[:2] == ["python", "-m"] and words[2].startswith("mmspec."))


def spelled(words: list[str]) -> None:
    """Compose a command that is not run."""
    title = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
    assert title in COMMANDS, f"there is no command mmspec {title}"
    name = title.rpartition(" ")[2]
    settings = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    settings = [word for word in settings if not re.match(r"(target|drafter)=.*/", word)]  # folders are not there
    if name in ("generate", "train", "distill", "export", "demo") and "--config-dir" not in words:
        configuration.compose(name, settings)


def run_command(words: list[str], monkeypatch) -> None:
    """Run a command, which may say what it likes but no warning of another library."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.WARNING)  # tests of random models silence it
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("error", category=kind, module=r"(mmspec|transformers)\.")
            warnings.filterwarnings("error", category=FutureWarning)
            _run_command(words, monkeypatch)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said.getvalue() == "", " ".join(words)


def _run_command(words: list[str], monkeypatch) -> None:
    if words[0] == "mmspec":
        AcceleratorState._reset_state(reset_partial_state=True)  # two trainings in one process may differ in precision
        assert main(words[1:]) == 0, " ".join(words)
        return
    monkeypatch.setattr(sys, "argv", [words[2], *words[3:]])
    try:
        runpy.run_module(words[2], run_name="__main__")
    except SystemExit as end:
        assert not end.code, " ".join(words)


def follow(page: Path, snippets: list[Snippet], things, monkeypatch) -> None:
    """Do what the page says, in the folder that is current."""
    names: dict = {"__name__": page.stem}
    for snippet in snippets:
        for thing, place in snippet.given:
            give(things(thing), Path(place))
        where = f"{page.name}, line {snippet.line}"
        if snippet.language == "python":
            if snippet.skip is None:
                exec(snippet.where, names)
                exec(compile("\n" * snippet.line + snippet.text, str(page), "exec"), names)
            else:
                compile(snippet.text, where, "exec")
        else:
            for words in snippet.commands:
                if snippet.skip is not None:
                    if words[0] == "mmspec":
                        spelled(words)
                    continue
                assert runnable(words), f"{where}: {' '.join(words)!r} is no mmspec command; say `skip: REASON`"
                run_command([*words, *snippet.added(words)], monkeypatch)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name == "tutorial_first_hour.md" else [])
        for page in holding("^```(python|bash)")
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_its_blocks_run(page, folder, things, no_plots, monkeypatch):
    follow(page, [one for one in read(page) if not one.slow], things, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", holding(r"<!-- test:[^>]*\bslow\b"), ids=lambda page: str(page.relative_to(ROOT)))
def test_its_blocks_run_with_the_long_ones(page, folder, things, monkeypatch):
    follow(page, read(page), things, monkeypatch)


def test_a_command_that_lets_a_library_warn_is_found(folder, things, monkeypatch, capsys):
    from mmspec.commands import generate

    page = a_page(folder, "```bash\nmmspec generate\n```\n")
    for warn in (
        lambda: warnings.warn("`old` is deprecated", FutureWarning, stacklevel=2),
        lambda: logging.getLogger("transformers.generation").warning("`old` is deprecated"),
    ):
        monkeypatch.setattr(generate, "run", lambda arguments, warn=warn: warn() or 0)
        with pytest.raises((FutureWarning, AssertionError), match="deprecated|mmspec generate"):
            follow(page, read(page), things, monkeypatch)


def a_page(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\npip install something\n```\n", "is no mmspec command; say `skip: REASON`"),
        ("```bash\nmmspec generate tree=bush\n```\n", "tree=bush"),
        ("```python\nassert 1 == 2\n```\n", ""),
        ("<!-- test: skip: no weights -->\n```bash\nmmspec train recipe=eagle9\n```\n", "eagle9"),
        ("<!-- test: skip: no weights -->\n```bash\nmmspec trian\n```\n", "no command mmspec trian"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(text, message, folder, things, monkeypatch, capsys):
    page = a_page(folder, text)
    with pytest.raises(Exception) as caught:
        follow(page, read(page), things, monkeypatch)
    assert message in f"{caught.value}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- test: skip -->\n```bash\nmmspec generate\n```\n",  # no reason
        "<!-- test: later -->\n```bash\nmmspec generate\n```\n",
        "<!-- test: with seed=1 -->\n```python\npass\n```\n",
        "<!-- test: slow -->\n\nwords\n\n```python\npass\n```\n",
        "<!-- test: slow -->\n```yaml\na: 1\n```\n",
        '<!-- test: reading "a = 2" as "a = 1" -->\n```python\na = 3\n```\n',
    ],
)
def test_a_note_that_means_nothing_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="note"):
        read(a_page(tmp_path, text))


def test_notes_are_read(tmp_path):
    text = (
        "<!-- test: slow; with seed=1; with train: steps=2; given photo as a.png -->\n"
        "```bash\nmmspec generate --image a.png | tail -n 1  # words\nmmspec train \\\n    recipe=eagle3\n```\n"
        "<!-- test: where a = 1; where b = a -->\n\n```python\nassert b == 1\n```\n```text\nno code\n```\n"
    )
    bash, python = read(a_page(tmp_path, text))
    assert bash.slow and bash.given == [("photo", "a.png")] and bash.line == 2
    assert bash.commands == [["mmspec", "generate", "--image", "a.png"], ["mmspec", "train", "recipe=eagle3"]]
    assert [bash.added(words) for words in bash.commands] == [["seed=1"], ["seed=1", "steps=2"]]
    assert python.where == "a = 1\nb = a\n" and not python.slow


def test_add_your_own_has_a_test_of_its_own():
    assert OWN_TEST.exists() and (ROOT / "tests" / "docs" / "test_add_your_own.py").exists()
