"""Take docs/demo.png: the page of `mmspec demo` after an answer, with the tree of a round.

    python scripts/screenshot_demo.py [FILE]

Needs the extra `demo`, `pip install playwright`, and Chromium: the system's, or that of `playwright install chromium`.
"""

from __future__ import annotations

import io
import shutil
import socket
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from mmspec.demo.choices import Choices
from mmspec.demo.page import Page
from mmspec.demo.session import Desk

FILE = Path(__file__).resolve().parents[1] / "docs" / "demo.png"
WIDTH, HEIGHT = 1280, 1230
ROUND = 4  # one with a branch worth seeing
LARGEST = 200_000  # bytes


def main(file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = Page(Desk(Choices()), {"temperature": 0.0, "max_new_tokens": 128, "seed": 0})
    address = page.launch("127.0.0.1", port)
    try:
        shot = photograph(address)
    finally:
        page.close()
    # A page has few colours: a palette of them is half the size, and k-means keeps what is small but of its own colour.
    palette = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, kmeans=5, dither=Image.Dither.NONE)
    palette.save(file, optimize=True)
    size = file.stat().st_size
    print(f"wrote {file} ({size / 1000:.0f} kB)")
    if size > LARGEST:
        raise SystemExit(f"{file} is larger than {LARGEST / 1000:.0f} kB: make HEIGHT smaller")


def photograph(address: str) -> bytes:
    """Ask the question that the page begins with, twice, because the first answer is also the warm-up."""
    with sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(address)
        tab.wait_for_selector("#examples img")
        for _ in range(2):
            tab.click("#ask")
            tab.wait_for_selector("#status .mm-answering", timeout=60_000)
            tab.wait_for_selector("#status .mm-done", timeout=60_000)
        number = tab.locator("#round input[type=number]")
        number.fill(str(ROUND))
        number.press("Enter")
        tab.wait_for_function(f"document.querySelector('.mm-said').innerText.startsWith('Round {ROUND} of')")
        number.blur()
        shot = tab.screenshot()
        browser.close()
    return shot


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
