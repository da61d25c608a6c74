"""`mmspec demo`: a local page on which a user drops a picture, asks a question, and watches two ways of decoding."""

from __future__ import annotations

import argparse
import sys
import threading
from dataclasses import dataclass
from types import ModuleType

from .. import extras
from ..errors import MMSpecError
from ..settings import configuration
from .generate import completed, note_on_drafter

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class DemoSettings:
    """Top-level keys of `configs/demo.yaml`, where their defaults and meanings are."""

    host: str
    port: int
    temperature: float
    max_new_tokens: int
    seed: int
    characters: int
    longest: int
    upload_mb: float
    megapixels: float
    at_once: int
    waiting: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec demo`."""
    parser.description = (
        "Serve a page on this machine that shows plain and speculative decoding side by side; Ctrl+C ends it. What is "
        "chosen here is what the page begins with, and it offers all other options as well."
    )


def run(arguments: argparse.Namespace) -> int:
    """Load the models, serve the page, and wait for Ctrl+C."""
    from ..demo.choices import Choices

    choices = Choices(completed(arguments.overrides), arguments.config_dir)
    settings = configuration.typed(choices.config, DemoSettings)
    _check(settings)
    page = _page()
    if note := note_on_drafter(arguments.overrides):
        print(note, file=sys.stderr)

    from rich.console import Console

    from ..demo.limits import PageLimits
    from ..demo.line import WaitingLine
    from ..demo.session import Desk

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("loading"):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        limits = PageLimits(settings.upload_mb, settings.megapixels, settings.characters, settings.longest)
        desk = Desk(choices, limits, WaitingLine(settings.at_once, settings.waiting))
        # What the page begins with has to fit together; the first question would come too late to say so.
        desk.models.method({name: group.start for name, group in choices.groups.items()})
        start = {name: getattr(settings, name) for name in ("temperature", "max_new_tokens", "seed")}
        served = page.Page(desk, start)
        address = served.launch(settings.host, settings.port)
    if settings.host not in LOCAL:
        console.print(
            f"warning: host={settings.host} lets everyone who reaches this machine ask questions and upload pictures, "
            "without a password and without encryption. For yourself alone leave host=127.0.0.1 and use an ssh tunnel: "
            f"ssh -L {settings.port}:127.0.0.1:{settings.port} THIS_MACHINE",
            style="bold red",
        )
    print(f"the page is at {address} (Ctrl+C ends it)", flush=True)
    try:
        _wait()
    finally:
        served.close()
    return 0


def _wait() -> None:
    """Wait for Ctrl+C; the page is served by another thread."""
    threading.Event().wait()


def _check(settings: DemoSettings) -> None:
    """Refuse settings with which no page can be served."""
    if not 1 <= settings.port <= 65535:
        raise MMSpecError(f"port={settings.port} must be from 1 to 65535, such as 7860")
    for name in ("longest", "characters", "upload_mb", "megapixels"):
        if getattr(settings, name) <= 0:
            raise MMSpecError(f"{name}={getattr(settings, name)} must be above 0")
    if settings.max_new_tokens > settings.longest:
        raise MMSpecError(
            f"max_new_tokens={settings.max_new_tokens} is above longest={settings.longest}: raise longest="
        )


def _page() -> ModuleType:
    """Import the module that needs Gradio."""
    try:
        from ..demo import page
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise MMSpecError(extras.missing("mmspec demo", "gradio")) from error
    return page
