"""`mmspec list` shows everything that can be chosen, and the Tab key knows it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmspec import cli, configuration
from mmspec.commands.completion import SCRIPTS, continuations


def test_every_option_of_every_group_is_listed_with_its_line(capsys):
    assert cli.main(["list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for path, options in configuration.groups().items():
        assert f"{path.rpartition('/')[2]}=" in printed
        for option, purpose in options.items():
            assert purpose, f"configs/{path}/{option}.yaml has no first line of comment that says what it is"
            # The line may be broken between words, with the columns beside it blank.
            assert f"{option} {purpose.split()[0]}" in printed


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
