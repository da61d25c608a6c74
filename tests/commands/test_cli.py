"""The command line: what it prints, its exit codes, and the real thing from flags to JSON on a small random model."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from refusals import refused
from rich.console import Console

from mmspec import cli
from mmspec.commands import generate as command
from mmspec.decoding.stats import Round, Stats
from mmspec.version import __version__
from mmspec.zoo.architecture import VISUAL_TOKENS

pytestmark = pytest.mark.product

PROMPTS = [
    "What's left, right & above?",
    "- a dash",
    "--prompt",
    "a=b",
    "${dtype}",
    'say "hi"',
    "[1,2]{3}",
    "zwei\nZeilen",
    "é漢",
]


def run(*argv: str) -> int:
    return cli.main(list(argv))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with a small random LLaVA and its processor."""
    from mmspec.zoo import architecture, vocabulary

    folder = tmp_path_factory.mktemp("model, of=random weights")
    processor = vocabulary.build_processor(vocabulary.build_tokenizer(examples=4))
    config = architecture.build_config(processor.tokenizer)
    # With its embeddings as head an untrained model would only repeat the last token.
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    architecture.build_model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a picture, 1=1.png"
    Image.radial_gradient("L").save(path)
    return path


FIGURES = r"([\d.]+) tokens/s, decoding \| (\d+) tokens = 1 from the prompt \+ ([\d.]+) tokens per pass x \d+ passes"


def asked(model, picture, *more: str) -> list[str]:
    flags = ["--image", str(picture), "--prompt", "Describe it."]
    return ["generate", f"target={model}", *flags, "max_new_tokens=12", "json=true", *more]


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# Flags and mistakes


def test_help_and_version(capsys):
    assert run() == run("--help") == 0
    shown = capsys.readouterr().out
    assert "generate        answer" in shown and "distill         let" in shown
    assert run("--version") == 0
    assert capsys.readouterr().out == f"mmspec {__version__}\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_module_itself_can_be_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmspec", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("mmspec.cli", run_name="__main__")
    assert capsys.readouterr().out == f"mmspec {__version__}\n"


def test_command_help_lists_flags_groups_and_keys(capsys, tmp_path):
    (tmp_path / "drafter").mkdir()
    (tmp_path / "drafter" / "mine.yaml").write_text("# my own\n_target_: builtins.dict\n")
    assert run("generate", "--config-dir", str(tmp_path), "--help") == 0
    shown = capsys.readouterr().out
    for word in ("--image PATH", "--prompt TEXT", "eagle3 *", "point_mass", "mine ", "my own", "max_new_tokens=256"):
        assert word in shown


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["generate"], [r"target\.name=tiny +the embedded one"]),
        (["generate", "tree=dynamic"], [r"tree\.depth=5 +levels of drafted nodes", r"tree\.total=24 +nodes kept"]),
        (["distill"], [r"source\.count=64 +pictures of each kind"]),
        (["distill", "source=images"], [r"source\.folder=\?\?\? +with the media"]),
        (
            ["train", "recipe=eagle1"],
            [r"recipe\.name=eagle1 +\w", r"recipe\.optimizer\.lr=0\.002 +largest learning rate"],
        ),
        (["train", "recipe=vispec"], [r"recipe\.objective\.losses\.1\.k=10 +how many likeliest tokens"]),
        (["train", "loss=dpace"], [r"recipe\.objective\.losses\.0\.alpha=0\.5 +smoothing of the drafter's"]),
        (["bench", "task=charts"], [r"task\.tasks=\[charts\] +kinds of pictures", r"sampling\.top_p=null +sample"]),
    ],
)
def test_help_lists_the_settings_of_what_is_chosen(argv, lines, capsys):
    assert run(*argv, "--help") == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert re.search(rf"^  {line}", shown, re.M), line


def test_help_of_an_option_that_does_not_exist(capsys):
    assert run("generate", "tree=bush", "--help") == 2
    shown = capsys.readouterr()
    unknown = "mmspec: tree 'bush' is unknown. Available: auto, best_first, chain"
    assert shown.out == "" and shown.err.startswith(unknown)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate"], "command 'genrate' is unknown. Did you mean 'generate'?"),
        (["generate", "--imgae", "x"], "flag '--imgae' is unknown. Did you mean '--image'?"),
        (["bench", "simulat", "runs"], "command 'bench simulat' is unknown. Did you mean 'bench simulate'?"),
        (["generate", "prompt=Why?"], "'prompt=Why?': prompt is a flag of mmspec generate: --prompt"),
        (["check", "tiny", "dtype=bfloat16"], "'dtype=bfloat16': dtype is a flag of mmspec check: --dtype"),
        (["generate", "--image"], "argument --image: expected one argument"),
        (["generate", "drafter=egle"], "drafter 'egle' is unknown."),
        (["generate", "max_new_tokens=many"], "max_new_tokens=many is not valid: it must be of type int"),
        (["generate", "what is this?"], "text goes to --prompt"),
        (["generate", "--config-dir", "/no/such/folder"], "--config-dir /no/such/folder: there is no such folder"),
        (["generate", "--image", "/no/such.png"], "'/no/such.png' does not exist"),
        (["generate", "--image", os.curdir], "'.' cannot be read"),
        (["generate", "--image", __file__], "is not in a picture format"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(argv, message, capsys):
    assert run(*argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mmspec: ") and message in shown.err
    assert shown.err.count("\n") == 1


def test_debug_shows_the_traceback():
    refused(lambda: run("generate", "drafter=egle", "debug=true"), "drafter 'egle' is unknown")


@pytest.mark.parametrize("prompt", [*PROMPTS, ""])
def test_any_text_is_a_prompt_and_any_path_an_image(prompt, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "run", lambda arguments: seen.append(arguments) or 0)
    assert run("generate", "tree=chain", "--prompt", prompt, "--image", "-a=b.png", f"--image={prompt}", "seed=1") == 0
    assert seen[0].prompt == prompt
    assert seen[0].image == ["-a=b.png", prompt]
    assert seen[0].overrides == ["tree=chain", "seed=1"]


def test_a_target_of_ones_own_gets_a_drafter_that_fits_it():
    assert command.completed(["seed=1"]) == ["seed=1"] and command.completed(["target=tiny"]) == ["target=tiny"]
    assert command.completed(["target=folder"]) == ["drafter=ngram", "target=folder"]
    assert command.completed(["target=folder", "drafter=none"]) == ["target=folder", "drafter=none"]


def test_the_drafter_that_was_taken_is_said_with_the_way_to_a_better_one():
    note = command.note_on_drafter(["seed=1", "target=my folder"])
    assert note.startswith(
        "note: took drafter=ngram, which goes with every target; the default, eagle3, is for target=t"
    )
    ways = ("drafter=FOLDER_OR_HUB_ID", "mmspec distill 'target=my folder'", "mmspec train 'target=my folder'")
    assert all(way in note for way in ways) and "\n" not in note
    for given in (["target=tiny"], [], ["target=folder", "drafter=none"]):
        assert command.note_on_drafter(given) is None


def test_help_marks_the_drafter_that_would_be_taken(capsys, tmp_path):
    for overrides, default in (([], "eagle3"), ([f"target={tmp_path}"], "ngram")):
        assert run("generate", *overrides, "--help") == 0
        shown = capsys.readouterr().out
        assert re.findall(r"^    (eagle3|ngram) \*", shown, re.M) == [default]
        assert "ngram for a target other than tiny" in shown
    assert "drafter.max_ngram=4" in shown


# What is printed


def streamed(*spans):
    yield from (SimpleNamespace(spans=[span]) for span in spans)
    return "outcome"


def test_drafted_text_is_coloured_on_a_terminal_only():
    spans = [("A [b] ", False), ("red\tsquare\n", True), ("and " * 60, True)]
    terminal, pipe = io.StringIO(), io.StringIO()
    assert command.show(streamed(*spans), Console(file=terminal, force_terminal=True, width=40)) == "outcome"
    assert command.show(streamed(*spans), Console(file=pipe, width=40)) == "outcome"
    assert "\x1b[1mA [b] \x1b[0m" in terminal.getvalue() and "\x1b[32mred" in terminal.getvalue()
    assert pipe.getvalue() == "".join(text for text, _ in spans) + "\n"


def outcome(speed: float, ids=(1, 2)):
    """Two tokens per pass in five passes, and half the speed end to end."""
    stats = Stats(
        [Round([4], [1], [2], 4)] * 5, [9], [11], {"prefill": 11 / (speed / 2) - 10 / speed, "score": 10 / speed}
    )
    assert abs(stats.tokens_per_second - speed) < 1e-9 and abs(stats.tokens_per_second_end_to_end - speed / 2) < 1e-9
    return SimpleNamespace(token_ids=[list(ids)], stats=stats)


def test_comparison_alternates_and_takes_medians():
    order = []

    def timed(name, speeds, ids):
        speeds = iter(speeds)
        return lambda: order.append(name) or outcome(next(speeds), ids)

    result = command.compare(timed("draft", [90, 20, 30], (1, 2)), timed("plain", [10, 15, 11], (1, 2)))
    assert order == ["plain", "draft"] * 3
    assert result == {
        "tokens_per_second": pytest.approx(30),
        "plain_tokens_per_second": pytest.approx(11),
        "speedup_decode": pytest.approx(30 / 11),
        "tokens_per_second_end_to_end": pytest.approx(15),
        "plain_tokens_per_second_end_to_end": pytest.approx(5.5),
        "speedup": pytest.approx(30 / 11),
        "identical": True,
    }
    line = command.summary_line(outcome(30).stats, result | {"speedup": 1.5}, sampled=False)
    assert line == (
        "30.0 tokens/s, decoding | 11 tokens = 1 from the prompt + 2.00 tokens per pass x 5 passes | "
        "plain: 11.0 tokens/s, decoding | speed-up, decoding 2.73 | speed-up, end to end 1.50 | text identical"
    )
    differing = command.compare(timed("draft", [1] * 3, (1, 2)), timed("plain", [1] * 3, (1, 3)))
    assert "text DIFFERS, similarity 0.50" in command.summary_line(outcome(30).stats, differing, sampled=False)
    lossy = replace(outcome(30).stats, lossless=False)
    line = command.summary_line(lossy, differing, sampled=False)
    assert "NOT lossless" in line and line.endswith("text differs, similarity 0.50")
    assert "may differ" in command.summary_line(outcome(30).stats, differing, sampled=True)


# The real thing


def test_every_drafter_prints_the_same_answer(model, picture, capsys):
    answers = []
    for overrides in (["drafter=none"], [], ["drafter=ngram", "drafter.length=2"], ["drafter.branches=2"]):
        assert run(*asked(model, picture, "--prompt", 'What\'s this, "then"?', *overrides)) == 0
        shown = capsys.readouterr()
        answer, summary, line = shown.out.removesuffix("\n").rsplit("\n", 2)
        result = json.loads(line)
        assert result["text"] == answer
        speed, tokens, passes = map(float, re.fullmatch(FIGURES, summary).groups())
        assert speed > 0 and tokens == 12 and round(1 + passes * result["stats"]["rounds"]) == 12
        taken = "drafter=ngram" in shown.err
        assert taken == (not any(override.startswith("drafter=") for override in overrides))
        assert "\x1b" not in shown.out
        answers.append((result["text"], result["token_ids"]))
    assert len(answers[0][1]) == 12
    assert all(answer == answers[0] for answer in answers)


def test_json_holds_statistics_and_comparison(model, picture, capsys):
    assert run(*asked(model, picture, "compare=true")) == 0
    result = last_line(capsys)
    assert result["stats"]["mean_acceptance_length"] >= 1
    assert result["compare"]["identical"] is True
    assert result["compare"]["speedup"] > 0 and result["compare"]["speedup_decode"] > 0


def test_one_token_has_no_speed(model, picture, capsys):
    assert run(*asked(model, picture, "compare=true", "max_new_tokens=1")) == 0
    shown = capsys.readouterr().out
    assert "tokens/s, decoding: n/a | 1 token = 1 from the prompt | nothing to compare" in shown
    assert "0.0" not in shown.splitlines()[-2] and "compare" not in json.loads(shown.splitlines()[-1])


def test_output_takes_the_answer(model, picture, tmp_path, capsys):
    for name in ("deep/answer.json", "answer.txt"):
        assert run(*asked(model, picture, "--output", str(tmp_path / name))) == 0
    result = last_line(capsys)
    written = json.loads((tmp_path / "deep" / "answer.json").read_text())
    assert (written["text"], written["token_ids"]) == (result["text"], result["token_ids"])
    assert (tmp_path / "answer.txt").read_text() == result["text"] + "\n"


def test_a_check_is_written_as_json_too(model, tmp_path, capsys):
    assert run("check", str(model), "--output", str(tmp_path / "check.json")) == 0
    shown = capsys.readouterr()
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["ok"] is True and written["family"] == "Llava" and written["model"] == str(model)
    assert len(written["findings"]) == shown.out.count(" ok\n") > 4 and shown.err == ""
    assert all(finding["ok"] and finding["relative"] < 3e-3 for finding in written["findings"])


def test_a_seed_repeats_a_sample(model, picture, capsys):
    results = []
    for seed in (1, 1, 2):
        assert run(*asked(model, picture, "temperature=1.5", "top_k=50", f"seed={seed}")) == 0
        results.append(last_line(capsys)["token_ids"])
    assert results[0] == results[1] != results[2]


def test_several_images_and_none(model, picture, capsys):
    assert run(*asked(model, picture, "--image", str(picture), "--prompt", "Compare.")) == 0
    two = last_line(capsys)["stats"]["prompt_tokens"][0]
    assert run("generate", f"target={model}", "--prompt", "Compare.", "max_new_tokens=12", "json=true") == 0
    assert two - last_line(capsys)["stats"]["prompt_tokens"][0] == 2 * VISUAL_TOKENS


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("max_new_tokens=0", "max_new_tokens=0 must be"),
        ("temperature=-1", "temperature=-1.0 is out of range"),
        ("tree=chain tree.length=0", "tree.length=0"),
        ("dtype=float31", "float31"),
        ("verifier=point_mass", "verifier=point_mass samples: give temperature= above 0, or use verifier=greedy"),
        ("device=abacus", "device 'abacus' is not there"),
        ("--output .", "--output . is a folder"),
        ("--output /dev/null/x.json", "--output /dev/null/x.json: '/dev/null' is no folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(override, word, model, picture, capsys, monkeypatch):
    import transformers

    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "from_pretrained", load)
    assert run(*asked(model, picture, *override.split())) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("mmspec: ") and word in shown[-1]
    assert all(line.startswith("note: took drafter=ngram") for line in shown[:-1])


def test_bad_folders_reach_the_user_as_one_line(model, picture, tmp_path, capsys):
    for override in (f"drafter={tmp_path}", "target=pretrained", f"target={tmp_path}"):
        assert run(*asked(model, picture, "drafter=ngram"), override) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("mmspec: ") and shown.count("\n") == 1


def test_interruption_is_quiet(model, picture):
    """In a process of its own, which says nothing but its answer until then."""
    argv = asked(model, picture, "max_new_tokens=4000", "drafter=none")
    process = subprocess.Popen(
        [sys.executable, "-m", "mmspec", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs inherit an ignored SIGINT, and the tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "\nmmspec: interrupted\n"


def test_a_reader_that_leaves_is_no_error(model, picture, monkeypatch, capsys):
    """The first thing that is written finds nobody; what is left in the buffer goes nowhere when it is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(BrokenPipeError):
            print("anything")
        assert run(*asked(model, picture, "drafter=none")) == 0
        print("what is left", end="")
    assert capsys.readouterr().err == ""


def test_without_arguments_it_answers_about_its_own_picture(capsys):
    assert run("generate") == 0
    shown = capsys.readouterr()
    answer, summary = shown.out.rstrip("\n").rsplit("\n", 1)
    assert shown.err == "" and answer.strip() and re.fullmatch(FIGURES, summary)


def test_help_imports_nothing_heavy():
    """Of no command; in one process, which names those after whose help something heavy is there."""
    code = f"""
import sys
from mmspec.cli import main
for name in {list(cli.COMMANDS)}:
    main([name, '--help'])
    if heavy := [m for m in ('torch', 'transformers', 'hydra', 'datasets') if m in sys.modules]:
        print(name, heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "" and done.stdout.count("usage: mmspec") == len(cli.COMMANDS)
