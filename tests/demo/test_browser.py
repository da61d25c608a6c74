"""The page in a real browser: no errors in its console, no other server, and what happens to those who leave.

Needs the extra `demo`, `pip install playwright`, and Chromium: the system's, or that of `playwright install chromium`.
"""

from __future__ import annotations

import shutil
import socket
import time

import pytest
from PIL import Image

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from mmspec.demo.choices import Choices  # noqa: E402
from mmspec.demo.limits import PageLimits  # noqa: E402
from mmspec.demo.page import Page  # noqa: E402
from mmspec.demo.session import Desk  # noqa: E402

pytestmark = [pytest.mark.product, pytest.mark.slow]  # minutes, and a browser

GRADIOS = "warning: Method not implemented."
"""What Gradio's own client remarks at every upload."""
LEAVING = ("AbortError: signal is aborted", "Connection errored out")
"""What it remarks when a page is left while it receives an answer."""

LONG = 60_000
"""Milliseconds that a busy machine may take to answer."""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        try:
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desk():
    return Desk(Choices(), PageLimits(longest=4000))


@pytest.fixture(scope="module")
def address(desk):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = Page(desk, {"temperature": 0.0, "max_new_tokens": 64, "seed": 0})
    yield page.launch("127.0.0.1", port)
    page.close()


class Tab:
    """A tab at the page, which fails the test for any word in the console and any request to another server.

    Args:
        browser, address: of the page.
        width: in pixels.
        leaving: whether the test leaves a page that receives an answer.
    """

    def __init__(self, browser, address: str, width: int = 1280, leaving: bool = False):
        self.complaints: list[str] = []
        self.known = LEAVING if leaving else ()
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda said: self._said(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self._said(str(error)))
        self.page.on("request", lambda request: self._request(request.url, address))
        self.load(address)

    def load(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("#examples img")
        self.page.wait_for_function("document.readyState === 'complete'")

    def _said(self, words: str) -> None:
        if words != GRADIOS and not any(known in words for known in self.known):
            self.complaints.append(words)

    def _request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.complaints.append(f"asked {url}")

    def set(self, name: str, value: str) -> None:
        box = self.page.locator(f"#{name} input, #{name} textarea").first
        box.fill(value)
        box.press("Tab")

    def choose(self, group: str, option: str) -> None:
        self.page.locator(f"#choice-{group} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def ask(self) -> None:
        self.page.click("#ask")

    def upload(self, path) -> None:
        if (away := self.page.locator("#picture button[aria-label='Clear'], #picture button[title='Clear']")).count():
            away.first.click()
        self.page.locator("#picture input[type=file]").set_input_files(str(path))

    def state(self, name: str) -> str:
        """Wait for a state and return what the page says."""
        return self.page.wait_for_selector(f"#status .mm-{name}", timeout=LONG).inner_text()

    def text(self, kind: str) -> str:
        return self.page.inner_text(f".mm-{kind} .mm-text")

    def writing(self) -> None:
        """Wait until both sides have written something."""
        for kind in ("plain", "speculative"):
            self.page.wait_for_function(
                f"document.querySelector('.mm-{kind} .mm-text').innerText.length > 20", timeout=LONG
            )


@pytest.fixture
def tab(browser, address):
    tabs = []

    def opened(**options) -> Tab:
        tabs.append(Tab(browser, address, **options))
        return tabs[-1]

    yield opened
    for one in tabs:
        if not one.page.is_closed():
            one.page.close()
    assert [complaint for one in tabs for complaint in one.complaints] == []


def at_rest(desk) -> None:
    """Wait until nobody is in the line, and see that no more rounds are decoded."""
    end = time.monotonic() + 20
    while len(desk.line) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(desk.line) == 0
    steps = desk.steps
    time.sleep(1.5)
    assert desk.steps == steps


def endless(one: Tab, desk) -> None:
    """Ask for more than anybody waits for; sampled far from the text, so that no end comes soon."""
    one.set("max_new_tokens", "4000")
    one.set("temperature", "3")
    one.ask()
    one.writing()


def test_an_answer_and_its_rounds(tab, desk):
    one = tab()
    one.ask()
    assert "Both wrote the same text, token for token." in one.state("done")
    assert one.text("plain") == one.text("speculative") and len(one.text("plain")) > 50
    assert one.page.locator(".mm-speculative .mm-text span").count() > 30
    trees = []
    for number in ("1", "4", "2"):
        box = one.page.locator("#round input[type=number]")
        box.fill(number)
        box.press("Enter")
        one.page.wait_for_function(f"document.querySelector('.mm-said').innerText.startsWith('Round {number} of')")
        trees.append(one.page.inner_html(".mm-tree"))
    assert len(set(trees)) == 3 and all("<svg" in tree for tree in trees)
    one.page.locator("#round input[type=range]").press("End")
    last = one.page.locator("#round input[type=range]").get_attribute("max")
    one.page.wait_for_function(f"document.querySelector('.mm-said').innerText.startsWith('Round {last} of {last}')")
    at_rest(desk)


def test_it_is_usable_on_a_narrow_screen(tab):
    one = tab(width=420)
    one.ask()
    one.state("done")
    one.page.wait_for_selector(".mm-tree svg")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 420
    places = [one.page.locator(name).bounding_box()["y"] for name in ("#ask", "#status", "#tree", "#choice-drafter")]
    assert places == sorted(places)


def test_examples_and_choices(tab):
    one = tab()
    one.page.locator("#examples button").nth(2).click()
    one.page.wait_for_function("document.querySelector('#question textarea').value.includes('bar chart')")
    one.choose("drafter", "ngram")
    one.page.wait_for_function("document.querySelector('.mm-chosen').innerText.includes('copies what followed')")
    one.ask()
    assert "same text" in one.state("done") and "|" in one.text("plain")


def test_what_does_not_go_together_is_said_in_words(tab):
    one = tab()
    one.choose("tree", "sage")
    one.choose("verifier", "rejection")
    one.ask()
    assert one.state("refused") == "verifier=rejection samples: give temperature= above 0, or use verifier=greedy"
    one.set("temperature", "1")
    one.choose("drafter", "draft_model")
    one.ask()
    one.state("done")


def test_a_large_file_and_one_that_is_no_picture(tab, tmp_path):
    one = tab()
    large = tmp_path / "large.png"
    Image.effect_noise((100, 100), 50).save(large)
    large.write_bytes(large.read_bytes().ljust(20_000_000, b"\0"))
    one.upload(large)
    assert "image 'large.png' has 20.0 MB, but this page takes 10 MB at most" in one.state("refused")
    text = tmp_path / "notes.png"
    text.write_text("These are notes.")
    one.upload(text)
    one.page.wait_for_function("document.querySelector('#status').innerText.includes('notes.png')")
    assert "is not in a picture format that this page reads" in one.state("refused")
    small = tmp_path / "small.png"
    Image.new("RGB", (96, 96), "red").save(small)
    one.upload(small)
    one.page.wait_for_selector("#status .mm-idle")
    one.ask()
    one.state("done")


def test_stop_keeps_the_trees(tab, desk):
    one = tab()
    endless(one, desk)
    one.page.click("#stop")
    assert one.state("stopped").startswith("Stopped.")
    one.page.wait_for_selector(".mm-tree svg")
    at_rest(desk)


def test_a_closed_tab_ends_the_work(tab, desk):
    one = tab()
    endless(one, desk)
    before = desk.steps
    time.sleep(1)
    assert desk.steps > before  # it is at work until then
    one.page.close()
    at_rest(desk)


def test_a_refresh_ends_the_work_and_the_page_goes_on(tab, desk, address):
    one = tab(leaving=True)
    endless(one, desk)
    one.load(address)
    assert "Ask a question" in one.page.inner_text("#status")
    at_rest(desk)
    one.ask()
    one.state("done")


def test_two_people_at_once(tab, desk):
    one, two = tab(), tab()
    endless(one, desk)
    two.page.locator("#examples button").nth(2).click()
    two.page.wait_for_function("document.querySelector('#question textarea').value.includes('bar chart')")
    two.ask()
    assert "1 question is before yours" in two.state("waiting")
    one.page.click("#stop")
    one.state("stopped")
    assert "same text" in two.state("done")
    assert "|" in two.text("plain") and one.text("plain") != two.text("plain")
    at_rest(desk)
