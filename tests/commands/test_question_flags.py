"""What the flags of `mmspec generate` ask, and its options for stops, several answers and the chat template."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import mmspec
from mmspec import cli
from mmspec.commands import question

pytestmark = pytest.mark.product


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.asarray(mmspec.zoo.demo_image())).save(tmp_path / "a.png")
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Describe it."}]},
    ]
    for name, content in {"talk": talk, "wrapped": {"messages": talk}, "two": [talk, talk], "none": []}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("[{")
    return tmp_path


def answer(capsys, *argv: str) -> dict:
    assert cli.main(["generate", "drafter=ngram", "max_new_tokens=8", "json=true", *argv]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_file_of_messages_and_the_flags_ask_the_same(folder, capsys, monkeypatch):
    flags = ["--image", str(folder / "a.png"), "--prompt", "Describe it.", "--system", "Be brief."]
    want = answer(capsys, *flags)
    monkeypatch.chdir(folder.parent)
    found = answer(capsys, "--messages", str(folder / "talk.json"))
    assert found["token_ids"] == want["token_ids"] and found["finish_reason"] == "length"
    assert found["stats"]["prompt_tokens"] == want["stats"]["prompt_tokens"]
    wrapped, plain = (question._messages(folder / f"{name}.json") for name in ("wrapped", "talk"))
    assert wrapped == plain and wrapped[1].parts[0].value == folder / "a.png"


def test_several_answers_and_stop_strings(capsys):
    found = answer(capsys, "temperature=4", "num_return_sequences=3", "stop=[e,o]", "seed=1")
    assert len(found["answers"]) == 3 and found["answers"][0]["text"] == found["text"]
    assert len({row["text"] for row in found["answers"]}) > 1
    ended = {row["finish_reason"] for row in found["answers"]}
    assert ended <= {"stop", "length"} and "stop" in ended
    assert cli.main(["generate", "drafter=ngram", "max_new_tokens=2", "temperature=1", "num_return_sequences=2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("answer 1: ") and said[1].startswith("answer 2: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--messages", "{}/talk.json", "--prompt", "What?"], "--messages and --prompt exclude one another"),
        (["--messages", "{}/talk.json", "--audio", "a.wav"], "--messages and --audio exclude one another"),
        (["--messages", "{}/absent.json"], "absent.json cannot be read: No such file or directory"),
        (["--messages", "{}/broken.json"], "broken.json is not JSON: "),
        (["--messages", "{}/two.json"], "two.json has 2 conversations: give a file with one"),
        (["--messages", "{}/none.json"], "messages=[] is no conversation"),
        (["--prompt", "What?", "--video", "a.mp4"], "1 videos were given but LlavaForConditionalGeneration takes none"),
        (["--video", "a.mp4"], "--video was given without a question: add --prompt TEXT"),
        (["--audio", "a.wav"], "give either prompt= (and images=), or messages="),
        (["num_return_sequences=2"], "num_return_sequences=2 at temperature 0 would give the same answer 2 times"),
        (["stop=''"], "stop='' must be a text, or a list of texts"),
        (["chat_template_kwargs.enable_thinking=false"], "LlavaProcessor has no variable 'enable_thinking'"),
        (["chat_template_kwargs=5"], "chat_template_kwargs=5 is not valid"),
    ],
)
def test_flags_that_make_no_sense(argv, message, folder, capsys):
    assert cli.main(["generate", "drafter=ngram", *[part.format(folder) for part in argv]]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
