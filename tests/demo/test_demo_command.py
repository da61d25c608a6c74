"""`mmspec demo` from the command line, as far as it goes without Gradio."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import pytest

from mmspec import cli
from mmspec.commands import demo as command
from mmspec.demo.limits import PageLimits
from mmspec.settings import configuration

pytestmark = pytest.mark.product


@pytest.fixture
def without_gradio(monkeypatch):
    real = builtins.__import__

    def importing(name, *arguments, **options):
        if name.partition(".")[0] == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "gradio" or name == "mmspec.demo.page"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", importing)
    import mmspec.demo

    monkeypatch.delattr(mmspec.demo, "page", raising=False)


class Served:
    """Stands for the page."""

    def __init__(self, desk, start):
        self.desk, self.start, self.closed = desk, start, False
        Served.last = self

    def launch(self, host, port):
        self.host, self.port = host, port
        return f"http://{host}:{port}/"

    def close(self):
        self.closed = True


@pytest.fixture
def served(monkeypatch):
    """The command with a page that is no page, and a Ctrl+C as soon as it waits."""
    monkeypatch.setattr(command, "_page", lambda: SimpleNamespace(Page=Served))

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_wait", interrupted)


def run(*overrides: str) -> int:
    return cli.main(["demo", *overrides])


def test_without_the_extra_it_says_what_to_install(without_gradio, capsys):
    assert run() == 2
    error = capsys.readouterr().err
    way = "pip install -e '.[demo]' in the checkout of mmspec"
    assert error == f"mmspec: mmspec demo needs gradio, which is not installed: {way}\n"


def test_another_missing_module_is_not_taken_for_gradio(without_gradio, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    real = builtins.__import__

    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        if "page" in (fromlist or ()):
            raise ModuleNotFoundError("No module named 'orjson'", name="orjson")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ModuleNotFoundError, match="orjson"):
        command._page()


def test_settings_reach_the_page(served, capsys):
    overrides = [
        "tree=chain",
        "tree.length=3",
        "port=7999",
        "upload_mb=3",
        "at_once=2",
        "waiting=5",
        "seed=4",
        "longest=99",
    ]
    assert run(*overrides, "max_new_tokens=50") == 130
    page = Served.last
    assert (page.host, page.port, page.closed) == ("127.0.0.1", 7999, True)
    assert page.start == {"temperature": 0.0, "max_new_tokens": 50, "seed": 4}
    assert page.desk.limits == PageLimits(megabytes=3, megapixels=40, characters=4000, longest=99)
    assert (page.desk.line.at_once, page.desk.line.waiting) == (2, 5)
    shown = capsys.readouterr()
    assert shown.out == "the page is at http://127.0.0.1:7999/ (Ctrl+C ends it)\n"
    assert "warning" not in shown.err


def test_another_host_is_warned_of(served, capsys):
    assert run("host=0.0.0.0", "drafter=ngram") == 130
    warning = capsys.readouterr().err
    assert "warning: host=0.0.0.0 lets everyone who reaches this machine" in warning and "ssh -L 7860" in warning


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["port=0"], "port=0 must be from 1 to 65535"),
        (["port=http"], "port=http is not valid: it must be of type int"),
        (["upload_mb=0"], "upload_mb=0.0 must be above 0"),
        (["characters=0"], "characters=0 must be above 0"),
        (["max_new_tokens=600"], "max_new_tokens=600 is above longest=512"),
        (["at_once=0"], "at_once=0 must be 1 or more"),
        (["drafter=egle"], "drafter 'egle' is unknown. Did you mean"),
        (["drafter=vispec", "compressor=pool"], "was trained with Resampler"),
    ],
)
def test_mistakes_are_one_line(served, overrides, words, capsys):
    assert run(*overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmspec: ") and words in error and error.count("\n") == 1


def test_help_lists_what_the_page_takes(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for word in ("host=127.0.0.1", "upload_mb=10", "eagle3 *", "at_once=1"):
        assert word in shown


def test_the_page_offers_what_generate_has():
    ours, theirs = (configuration.settings(name)[0] for name in ("demo", "generate"))
    assert list(ours) == list(theirs)
