"""`mmspec distill`: from flags to a folder of answers."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from rich.console import Console
from tiny_training import ANSWERS, small_model

from mmspec import cli, zoo
from mmspec.commands import distill as distill_command
from mmspec.commands import progress
from mmspec.training.answers import Answers
from mmspec.training.distill import Progress


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small target."""
    folder = tmp_path_factory.mktemp("model")
    for part in small_model():
        part.save_pretrained(folder)
    return folder


def command(model, output, *more: str) -> list[str]:
    small = ["source.count=1", "max_new_tokens=3", "batch_size=2", "json=true"]
    return ["distill", f"target={model}", "--output", str(output), *small, *more]


def test_the_command_answers_the_embedded_prompts(model, tmp_path, capsys):
    assert cli.main(command(model, tmp_path)) == 0
    summary, last = capsys.readouterr().out.splitlines()
    assert summary.startswith("4 answers of 3.0 tokens on average | 0 skipped | ") and summary.endswith(str(tmp_path))
    figures = json.loads(last)
    assert (figures["answers"], figures["tokens"], figures["folder"]) == (4, 12, str(tmp_path))
    assert {example.task for example in Answers(tmp_path)} == set(zoo.TASKS)
    assert cli.main(command(model, tmp_path)) == 0
    assert "nothing was left to ask" in capsys.readouterr().out


def test_the_command_reads_pictures_and_conversations(model, tmp_path, capsys):
    pictures, data = tmp_path / "pictures", tmp_path / "data.json"
    pictures.mkdir()
    Image.new("RGB", (9, 9)).save(pictures / "a.png")
    data.write_text(json.dumps([{"image": "a.png", "prompt": "Is it, {really} ${so}?"}]))
    arguments = command(model, tmp_path / "of pictures", "--data", str(pictures), "--prompt", "What's 'this', [1]?")
    arguments.remove("source.count=1")
    assert cli.main([*arguments, "--prompt", "${why}"]) == 0
    assert [example.prompt for example in Answers(tmp_path / "of pictures")] == ["What's 'this', [1]?", "${why}"]
    arguments = command(model, tmp_path / "of data", "--data", str(data), "--images", str(pictures))
    assert cli.main(arguments) == 0
    assert [example.prompt for example in Answers(tmp_path / "of data")] == ["Is it, {really} ${so}?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/no/such.json"], "data '/no/such.json' does not exist"),
        (["--images", "/no/such"], "--images sets 'images', which this source of prompts does not have; it has tasks"),
        (["source=conversations"], "source needs a value for source.path"),
        (["source.tasks=[scene]"], "task 'scene' is unknown. Did you mean 'scenes'?"),
        (["tree=chain"], "mmspec distill has no group 'tree'."),
        (["shard=3"], "shard=3 of shards=1"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, model, tmp_path, capsys):
    assert cli.main(["distill", f"target={model}", "--output", str(tmp_path / "out"), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("mmspec: ") and message in shown.err
    assert shown.err.count("\n") == 1


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    states = [Progress(8, done, 1, 40, new, 2.0) for done, new in ((3, 0), (5, 20))]
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with progress.Display("answers", console) as display:
            report = distill_command.ProgressReport(display, "runs/answers")
            for state in states:
                report(state)
        assert report.last == states[-1]
        assert "going on in runs/answers, which has 4 of 8 answers" in console.file.getvalue()
        assert ("answers, 10 tokens/s, 1 skipped" in console.file.getvalue()) == terminal
        assert ("6/8" in console.file.getvalue()) == terminal
        printed = capsys.readouterr().err.splitlines()
        lines = ["4 of 8 answers, 1 skipped", "6 of 8 answers, 10 tokens/s, 1 skipped"]
        assert printed == ([] if terminal else lines)


@pytest.mark.slow
def test_an_interrupted_command_says_what_is_kept_and_goes_on(model, tmp_path, capfd):
    arguments = command(model, tmp_path / "answers", "source.count=10", "max_new_tokens=20")
    process = subprocess.Popen(
        [sys.executable, "-m", "mmspec", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs inherit an ignored SIGINT, and the tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    answers = tmp_path / "answers" / ANSWERS
    while process.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    kept = answers.read_bytes().count(b"\n")
    assert errors == (
        f"{kept} of 40 answers are in {answers.parent}; the same command goes on from here\n\nmmspec: interrupted\n"
    )
    assert cli.main(arguments) == 0
    assert cli.main(command(model, tmp_path / "whole", "source.count=10", "max_new_tokens=20")) == 0
    assert answers.read_bytes() == (tmp_path / "whole" / ANSWERS).read_bytes()
