"""README and the command line name the same commands and flags, and every command's help shows how to use it."""

import re
from pathlib import Path

import pytest

from warehouse.cli.commands import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
by_command = pytest.mark.parametrize("name", sorted(main.commands))


@by_command
def test_the_readme_names_every_command(name):
    assert re.search(rf"\balab (-w \S+ )?{re.escape(name)}\b", README), (
        f"README.md does not mention alab {name}"
    )


@pytest.mark.parametrize(
    "name", sorted({*main.commands} - {"demo"})
)  # the README opens with what `demo` prints
def test_the_readme_shows_what_every_command_prints(name):
    typed = rf"alab (-w \S+ )?{re.escape(name)}\b"
    assert re.search(rf"^\$ {typed}.*\n[^$`\n]", README, re.MULTILINE), (
        f"README.md shows no output of alab {name}"
    )


def test_the_readme_names_no_command_or_flag_that_does_not_exist():
    for line in re.findall(r"^(?:\$ )?(alab .*)$", README, re.MULTILINE):
        line = line.partition("#")[0]
        words = re.sub(r'"[^"]*"|\'[^\']*\'', "", line).split()[1:]
        known = {option for parameter in main.params for option in parameter.opts} | {
            "--help",
            "--version",
        }
        commands = [word for word in words if word in main.commands]
        if commands:
            known |= {
                option
                for parameter in main.commands[commands[0]].params
                for option in parameter.opts
            }
        flags = [
            word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)
        ]
        assert commands or flags, f"no such command: {line}"
        assert set(flags) <= known, f"no such flag: {line}"


@by_command
def test_every_command_says_what_it_does(name):
    command = main.commands[name]
    assert command.help
    assert re.search(rf"^\s*alab {re.escape(name)}\b", command.help, re.MULTILINE), (
        "an example, on its own line"
    )
