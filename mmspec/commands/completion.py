"""`mmspec completion` makes the Tab key complete commands, flags, groups, their options and settings, and keys."""

from __future__ import annotations

import argparse

from ..errors import MMSpecError, did_you_mean
from ..settings import configuration

ARGUMENTS = "SHELL"  # instead of a configuration; see mmspec.cli

SCRIPTS = {
    "bash": """_mmspec() {
    local line="${COMP_LINE:0:COMP_POINT}" word="${COMP_WORDS[COMP_CWORD]}"
    local typed="${line##* }"
    local IFS=$'\\n'
    COMPREPLY=($(mmspec completion --line "$line" 2>/dev/null))
    # bash breaks words at "=", so only what follows it is put in.
    if [[ "$typed" == *=* ]]; then
        local before="${typed%"${word#=}"}"
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
}
complete -o default -F _mmspec mmspec
""",
    "zsh": """_mmspec() {
    local -a found
    found=(${(f)"$(mmspec completion --line "$LBUFFER" 2>/dev/null)"})
    compadd -S '' -- $found
}
compdef _mmspec mmspec
""",
}

SWITCH = ("true", "false")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec completion`."""
    parser.description = (
        'Print what makes the Tab key complete mmspec: put eval "$(mmspec completion bash)" into ~/.bashrc, or the '
        "same with zsh into ~/.zshrc. SHELL is bash or zsh."
    )
    parser.add_argument("--line", metavar="TEXT", help="print what can follow a line that was typed so far")


def run(arguments: argparse.Namespace) -> int:
    """Print a shell's script, or the continuations of a line."""
    if arguments.line is not None:
        print("\n".join(continuations(arguments.line)))
        return 0
    if len(arguments.overrides) != 1:
        raise MMSpecError(f"name one shell: mmspec completion {ARGUMENTS}, which is bash or zsh")
    (shell,) = arguments.overrides
    if shell not in SCRIPTS:
        raise MMSpecError(f"shell {shell!r} is unknown.{did_you_mean(shell, SCRIPTS)}")
    print(SCRIPTS[shell], end="")
    return 0


def continuations(line: str) -> list[str]:
    """Return the possible continuations of the last word of a line.

    Args:
        line: text up to the cursor, which begins with `mmspec`.
    """
    from ..cli import COMMANDS, flags_of

    *before, word = line.split(" ")
    words = [typed for typed in before[1:] if typed]
    title = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else " ".join(words[:1])
    if title not in COMMANDS or (words == [title] and any(name.startswith(f"{title} ") for name in COMMANDS)):
        first = {
            name.split()[len(words)]
            for name in COMMANDS
            if name.split()[: len(words)] == words and name.split()[len(words) :]
        }
        more = _settings(title, word, []) if title in COMMANDS else []
        return sorted(name for name in first if name.startswith(word)) + more
    if word.startswith("-"):
        return sorted(flag for flag in flags_of(title) if flag.startswith(word))
    return _settings(title, word, words)


def _settings(title: str, word: str, words: list[str]) -> list[str]:
    """Return groups with their options, keys, and the settings of the options that the other words choose."""
    name = title.rpartition(" ")[2]
    if not configuration.is_command(name):
        return []
    found, (chosen, keys) = configuration.groups(), configuration.settings(name)
    inside = _inside(name, words, word)
    key, equals, _ = word.partition("=")
    if not equals:
        return sorted(f"{each}=" for each in (*chosen, *keys, *inside) if each.startswith(word))
    if key in chosen:
        values = list(configuration.options_of(name, key, found))
    else:  # of other keys the two values are known that a switch has
        default = keys[key][0] if key in keys else inside.get(key, "")
        values = list(SWITCH) if default in SWITCH else []
    return sorted(f"{key}={value}" for value in values if f"{key}={value}".startswith(word))


def _inside(name: str, words: list[str], word: str) -> dict[str, str]:
    """Return the settings of options with their defaults, for the chosen options and for a group whose dot was
    typed."""
    typed = [other for other in words if "=" in other]
    try:
        settings = configuration.chosen_settings(name, typed)
    except MMSpecError:  # one of them is not an option
        return {}
    named = {other.partition("=")[0] for other in typed} | {word.partition(".")[0] if "." in word else ""}
    return {
        each.key: each.default for (group, _), found in settings.items() if group in named for each in found.values()
    }
