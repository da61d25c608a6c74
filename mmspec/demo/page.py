"""The page itself: the only module that imports Gradio."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before Gradio is imported, which reads it then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from .. import zoo
from ..errors import MMSpecError
from . import picture, rendering
from .gate import PICTURE, STATE, VALUE, RequestGate
from .question import PageQuestion
from .session import Desk, QuestionSession, View

STYLE = Path(__file__).parent / "style.css"
EXAMPLES = (("scenes", 100), ("charts", 101), ("documents", 100), ("questions", 102))
HARD_LIMIT = 8
"""Factor on the limit of uploads. The server cuts off an upload beyond limit times factor while it comes in; one
between the two is refused with a message."""
HOUR = 3600
FRAME, LETTER = 16_384, 12
"""Bytes of a request beside the question, and largest number of bytes per letter of the question: JSON may write a
letter as two escapes."""
QUEUED = 100
"""Number of calls that Gradio may hold; the line of `mmspec.demo.line` is much shorter."""
NUMBERS: dict[str, dict[str, Any]] = {
    "temperature": {"minimum": 0, "step": 0.1},
    "max_new_tokens": {"minimum": 1, "precision": 0},
    "seed": {"precision": 0},
}


class Page:
    """The components of the page and the functions that they call.

    Args:
        desk: answers the questions.
        start: first values of temperature, max_new_tokens and seed.
    """

    def __init__(self, desk: Desk, start: dict[str, float]):
        self.desk = desk
        self._sessions: dict[str, QuestionSession] = {}
        self.blocks = gr.Blocks(title="mmspec demo", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR))
        with self.blocks:
            self._lay_out(start)
            self._connect()

    def _lay_out(self, start: dict[str, float]) -> None:
        """Create the components of the page."""
        gr.HTML(
            "<h1>mmspec</h1><p>A picture, a question, and two ways to the answer: the model alone, one token per pass, "
            "and the same model with a drafter that guesses ahead.</p>",
            elem_classes="mm-head",
        )
        with gr.Row(elem_classes="mm-page"):
            with gr.Column(scale=1, min_width=300, elem_classes="mm-controls"):
                with gr.Column(elem_classes="mm-ask"):
                    self._lay_out_question()
                with gr.Column(elem_classes="mm-choices"):
                    self._lay_out_choices(start)
            with gr.Column(scale=3, min_width=300, elem_classes="mm-results"):
                self.status = gr.HTML(rendering.status(None), elem_id="status")
                self.answers = gr.HTML(rendering.answers(None), elem_id="answers")
                self.round = gr.Slider(1, 2, 1, step=1, label="round", visible=False, elem_id="round", buttons=[])
                self.tree = gr.HTML(rendering.tree((), 1), elem_id="tree")
        self.rounds = gr.State(list, time_to_live=HOUR)

    def _lay_out_question(self) -> None:
        """Create the components for the picture, the question and the examples."""
        self.drawn = _examples()
        path, prompt = self.drawn[0]
        self.picture = gr.Image(
            label="picture",
            value=path,
            type="filepath",
            sources=["upload", "clipboard"],
            height=220,
            buttons=[],
            elem_id="picture",
        )
        self.examples = gr.Dataset(
            components=[gr.Image(render=False, type="filepath")],
            samples=[[path] for path, _ in self.drawn],
            label="or one that mmspec draws itself",
            type="index",
            elem_id="examples",
        )
        self.prompt = gr.Textbox(
            prompt,
            label="question",
            lines=2,
            max_lines=6,
            max_length=self.desk.limits.characters,
            elem_id="question",
        )
        with gr.Row(elem_classes="mm-buttons"):
            self.ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
            self.stop = gr.Button("Stop", min_width=80, interactive=False, elem_id="stop")

    def _lay_out_choices(self, start: dict[str, float]) -> None:
        """Create the components for the options and the numbers."""
        groups = self.desk.choices.groups
        with gr.Row():
            self.choices = {
                name: gr.Dropdown(
                    list(group.options), value=group.start, label=name, min_width=120, elem_id=f"choice-{name}"
                )
                for name, group in groups.items()
            }
        self.chosen = gr.HTML(
            rendering.chosen(groups, [group.start for group in groups.values()]), elem_classes="mm-chosen"
        )
        with gr.Row():
            self.numbers = {
                name: gr.Number(start[name], label=name, min_width=130, elem_id=name, **options)
                for name, options in NUMBERS.items()
            }

    def _connect(self) -> None:
        """Connect the components with the functions that they call."""
        # Values come as the browser sent them: what is wrong with them is said here, in words, and not by Gradio.
        quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
        chosen = list(self.choices.values())
        gr.on(
            [choice.change for choice in chosen],
            lambda *options: rendering.chosen(self.desk.choices.groups, options),
            chosen,
            self.chosen,
            **quiet,
        )
        self.examples.click(self._example, self.examples, [self.picture, self.prompt], **quiet)
        self.picture.upload(self._look_at, self.picture, [self.picture, self.status], **quiet)
        asked = [self.picture, self.prompt, *chosen, *self.numbers.values()]
        shown = [self.status, self.answers, self.round, self.tree, self.rounds, self.ask, self.stop]
        # The line of `mmspec.demo.line` says who waits, so Gradio's own queue does not.
        gr.on(
            [self.ask.click, self.prompt.submit],
            self._answer,
            asked,
            shown,
            concurrency_limit=None,
            trigger_mode="once",
            **quiet,
        )
        self.stop.click(self._stop, None, None, queue=False, **quiet)
        self.round.change(
            rendering.tree, [self.rounds, self.round], self.tree, queue=False, trigger_mode="always_last", **quiet
        )

    def _example(self, number: Any) -> list[Any]:
        """Return a picture that mmspec draws itself, with its question."""
        known = type(number) is int and 0 <= number < len(self.drawn)
        return self.drawn[number] if known else [gr.skip(), gr.skip()]

    def _look_at(self, upload: dict[str, Any] | None) -> tuple[Any, str]:
        """Show at once what is wrong with a picture, and remove it."""
        try:
            if upload is not None:
                picture.read(upload["path"], self.desk.limits, upload.get("orig_name"))
        except MMSpecError as error:
            return None, rendering.status(View("refused", str(error)))
        return gr.skip(), rendering.status(None)

    def _answer(self, request: gr.Request, upload: dict[str, Any] | None, prompt: Any, *values: Any) -> Iterator[list]:
        """Ask a question and yield every view. Gradio closes this generator when the tab is closed or reloaded."""
        chosen = dict(zip(self.choices, values, strict=False))
        numbers = dict(zip(self.numbers, values[len(chosen) :], strict=True))
        image, name = (upload["path"], upload.get("orig_name")) if upload else (None, None)
        session = self.desk.ask(
            PageQuestion("" if prompt is None else prompt, image, chosen, **numbers, image_name=name)
        )
        tab = request.session_hash
        if tab in self._sessions:
            self._sessions[tab].stop()
        self._sessions[tab] = session
        busy = [gr.Button(interactive=False), gr.Button(interactive=True)]
        idle = [gr.Button(interactive=True), gr.Button(interactive=False)]
        views = session.views()
        try:
            yield [rendering.status(View("answering")), *[gr.skip()] * 4, *busy]
            for view in views:
                shown = [rendering.status(view), rendering.answers(view)]
                yield [*shown, *(self._trees(view) if view.ended else [gr.skip()] * 3), *(idle if view.ended else busy)]
        finally:
            views.close()
            if self._sessions.get(tab) is session:
                del self._sessions[tab]

    def _trees(self, view: View) -> list:
        """Return the trees of an answer, with the slider at the first one."""
        out = view.speculative.out
        rounds = [] if out is None else list(out.trace)
        slider = gr.Slider(maximum=max(2, len(rounds)), value=1, visible=len(rounds) > 1)
        return [slider, rendering.tree(rounds, 1), rounds]

    def _stop(self, request: gr.Request) -> None:
        """Stop the answer that is being written for a tab."""
        if session := self._sessions.get(request.session_hash):
            session.stop()

    def launch(self, host: str, port: int) -> str:
        """Serve the page from another thread, and return its address.

        Raises:
            MMSpecError: if the port is taken, or the address does not belong to this machine.
        """
        limits = self.desk.limits
        upload = int(limits.megabytes * 1e6 * HARD_LIMIT)
        gate = Middleware(
            RequestGate,
            kinds={number: [_kind(one) for one in called.inputs] for number, called in self.blocks.fns.items()},
            folder=get_upload_folder(),
            request=FRAME + LETTER * limits.characters,
            upload=upload + FRAME,
        )
        try:
            _, address, _ = self.blocks.queue(max_size=QUEUED).launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                show_error=False,
                max_file_size=upload,
                app_kwargs={"middleware": [gate]},
                theme=gr.themes.Base(
                    primary_hue="blue",
                    neutral_hue="slate",
                    # The system's own: Gradio's default ones would come from another server.
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ),
                css_paths=STYLE,
            )
        except OSError as error:
            raise MMSpecError(
                f"host={host} port={port}: the page cannot be served there, because the port is taken or the address "
                f"is not this machine's; choose another, such as port={port % 65535 + 1}"
            ) from error
        return address

    def close(self) -> None:
        """Stop serving the page."""
        self.blocks.close(verbose=False)


def _kind(component: Any) -> str:
    """Return the kind of argument that the gate accepts for a component."""
    if isinstance(component, gr.State):
        return STATE
    return PICTURE if isinstance(component, gr.Image) else VALUE


def _examples() -> list[list[str]]:
    """Return pictures with their questions, beginning with the one of `mmspec generate`."""
    folder = Path(tempfile.mkdtemp(prefix="mmspec-demo-"))
    drawn = [("demo", zoo.demo_image(), zoo.DEMO_PROMPT)]
    for task, index in EXAMPLES:
        image, prompt, _ = zoo.sample(task, "test", index)
        drawn.append((task, image, prompt))
    examples = []
    for name, image, prompt in drawn:
        image.save(folder / f"{name}.png")
        examples.append([str(folder / f"{name}.png"), prompt])
    return examples
