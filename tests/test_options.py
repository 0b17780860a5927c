"""The texts of --help: every option of every command says what it does and what holds where it is not given."""

import argparse
import re

import pytest

from irnet import cli, parity
from irnet import config as settings
from irnet.options import tell_defaults
from irnet_bench import exercise, smoke

COMMANDS = ["demo", "train", "eval", "predict", "data", "graph", "info", "bench"]


def parsers(parser: argparse.ArgumentParser):
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions if choice.help} == set(action.choices)
            for sub in action.choices.values():
                yield from parsers(sub)


class Found(Exception):
    pass


def parser_of(main, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a program's `main` makes."""

    def parse(parser, arguments):
        raise Found(parser)

    with monkeypatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        main([])
    return found.value.args[0]


def check(parser: argparse.ArgumentParser) -> int:
    """Check every option of a parser; returns their number."""
    count = 0
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        name = f"{parser.prog} {action.option_strings or action.metavar}"
        assert action.help and action.help.partition("(default: ")[0].strip(), f"{name} has no help"
        assert len(re.findall("default", action.help)) <= 1, f"{name}: {action.help}"
        shown = re.search(r"\(default: (.*)\)$", action.help)
        if action.option_strings and str(action.default) not in ("None", "False", "", "[]", argparse.SUPPRESS):
            default = action.default
            text = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
            assert shown and shown[1] == text, f"{name}: {action.help}"
        count += 1
    return count


def test_every_option_of_every_command_has_a_help_and_its_default():
    found = list(parsers(cli._parser(["bench"])))
    assert {parser.prog.split()[1] for parser in found[1:]} == set(COMMANDS)
    assert {parser.prog.split()[-1] for parser in found} >= {"kernels", "compare", "report", "gate", "machine-code"}
    assert sum(map(check, found)) > 150


@pytest.mark.parametrize("program", [parity, exercise, smoke], ids=lambda module: module.__name__)
def test_further_programs(program, monkeypatch):
    assert check(parser_of(program.main, monkeypatch)) > 2


@pytest.mark.parametrize(
    ("command", "bases"),
    [
        ("train", [settings.Config(), settings.small()]),
        ("data", [settings.Config(), settings.small()]),
        ("graph", [settings.Config(), settings.small()]),
        ("demo", [settings.small()]),
    ],
)
def test_options_that_are_settings_show_the_settings_defaults(command, bases):
    sub = next(p for p in parsers(cli._parser([command])) if p.prog == f"irnet {command}")
    checked = 0
    for action in sub._actions:
        if action.dest not in cli.OPTIONS or action.default is not None:
            continue
        section, name = cli.OPTIONS[action.dest].split(".")
        values = [str(getattr(getattr(base, section), name)) for base in bases]
        shown = re.search(r"\(default: (.*)\)$", action.help)
        if values[0] in ("", "False"):
            assert not shown
            continue
        small = f", with --small {values[-1]}" if values[0] != values[-1] else ""
        assert shown and shown[1] == values[0] + small, f"{action.option_strings}: {action.help}"
        checked += 1
    assert checked >= 2


def test_an_evaluation_takes_the_settings_of_its_run():
    sub = next(p for p in parsers(cli._parser(["eval"])) if p.prog == "irnet eval")
    workers = next(action for action in sub._actions if action.dest == "workers")
    assert workers.help.endswith("(default: as in the run's training)")


def test_help_shows_a_default_once_and_as_it_is_written():
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", default="5%", help="how much")
    parser.add_argument("--modes", nargs="+", default=["a", "b"], help="which")
    parser.add_argument("--count", type=int, default=0, help="how many")
    parser.add_argument("--switch", action="store_true", help="whether")
    parser.add_argument("--hidden", default=3, help=argparse.SUPPRESS)
    parser.add_argument("file", help="what")
    tell_defaults(parser, {"count": "of no use", "switch": "off"})
    text = " ".join(parser.format_help().split())
    for words in ("how much (default: 5%)", "which (default: a b)", "how many (default: 0)", "whether (default: off)"):
        assert words in text
    assert "hidden" not in text and text.count("default") == 4
