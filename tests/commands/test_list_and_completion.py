"""`mmspec list` shows everything that can be chosen, and the Tab key knows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmspec import cli
from mmspec.commands.completion import SCRIPTS, continuations
from mmspec.settings import configuration

pytestmark = pytest.mark.product

HIVIS = (
    *("detach", "keep_within", "losses.0.weight", "losses.1.weight", "losses.2.k", "losses.2.weight"),
    *("noise.scale", "steps"),
)


def test_every_option_of_every_group_is_listed_with_its_line(capsys):
    """In a pipe one line each, cut by a tab, whatever the width of a terminal would be."""
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for path, options in configuration.groups().items():
        for option, purpose in options.items():
            assert purpose, f"configs/{path}/{option}.yaml has no first line of comment that says what it is"
            assert f"{path.rpartition('/')[2]}={option}\t{purpose}" in lines
    assert len(lines) == sum(map(len, configuration.groups().values()))


def test_a_terminal_gets_a_table(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["list", "tree"]) == 0
    printed = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert "\t" not in printed and printed.startswith("tree=\n")
    assert any(line.split() == ["chain", *["one", "guess", "of", "fixed", "length"]] for line in printed.splitlines())
    assert len(printed.splitlines()) > len(configuration.groups()["tree"]) + 1, "long lines are broken"


def test_some_groups(capsys):
    assert cli.main(["list", "verifier", "recipe"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("verifier=") < printed.index("recipe=") and "tree=" not in printed
    assert cli.main(["list", "tre"]) == cli.USAGE_ERROR
    assert "group 'tre' is unknown. Did you mean 'tree'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmspec gen", ["generate"]),
        ("mmspec bench sim", ["simulate"]),
        ("mmspec generate --im", ["--image"]),
        ("mmspec generate tre", ["tree="]),
        ("mmspec generate drafter=none tree=s", ["tree=sage", "tree=static"]),
        ("mmspec train recipe=eagle", ["recipe=eagle1", "recipe=eagle2", "recipe=eagle3"]),
        ("mmspec bench simulate dev", ["device="]),
        ("mmspec generate tree=dynamic tree", ["tree.depth=", "tree.top_k=", "tree.total=", "tree="]),
        ("mmspec generate tree=dynamic tree.de", ["tree.depth="]),
        ("mmspec generate tree.", []),
        ("mmspec generate tree=confidence tree.graded=", ["tree.graded=false", "tree.graded=true"]),
        ("mmspec generate compare=t", ["compare=true"]),
        ("mmspec generate tree=nothing tre", ["tree="]),
        ("mmspec distill source.c", ["source.count="]),
        ("mmspec train recipe=hivis recipe.obj", [f"recipe.objective.{key}=" for key in HIVIS]),
        ("mmspec generate nothing", []),
        ("mmspec nothing ", []),
        ("mmspec report ", []),
    ],
)
def test_what_can_follow(line, expected):
    assert continuations(line) == expected


def test_all_commands_follow_the_name():
    assert set(continuations("mmspec ")) == {name.split()[0] for name in cli.COMMANDS}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
@pytest.mark.parametrize(
    ("line", "words", "reply"),
    [
        ("mmspec gener", ["mmspec", "gener"], "generate"),
        ("mmspec generate tree=sa", ["mmspec", "generate", "tree", "=", "sa"], "sage"),
        ("mmspec generate tree=chain tree.", ["mmspec", "generate", "tree", "=", "chain", "tree."], "tree.length="),
    ],
)
def test_bash_completes(line, words, reply):
    """With the words as bash breaks them, at every equals sign."""
    own = Path(sys.executable).parent
    script = (
        f"PATH={own}:$PATH; {SCRIPTS['bash']}\n"
        f"COMP_LINE={line!r}; COMP_POINT={len(line)}; COMP_WORDS=({' '.join(map(repr, words))}); "
        f'COMP_CWORD={len(words) - 1}; _mmspec; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [reply], done.stderr


def test_scripts_are_printed(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == SCRIPTS["zsh"]
    assert cli.main(["completion", "fish"]) == cli.USAGE_ERROR
    assert "shell 'fish' is unknown" in capsys.readouterr().err
