"""Options follow from settings: each has a help and shows its default, and a new setting needs no other line."""

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from operator import attrgetter

import pytest
import yaml

from irnet import cli, commands, parity
from irnet import config as settings
from irnet.commands.demo import small as demo_settings
from irnet.options import add_settings, read_settings, tell_defaults
from irnet_bench import exercise, smoke

FIELDS = settings.fields_of(settings.Config())
WITH_OPTION = {key for key, declared in FIELDS.items() if declared.metadata["flags"]}


def subparsers(parser: argparse.ArgumentParser):
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions if choice.help} == set(action.choices)
            for sub in action.choices.values():
                yield from subparsers(sub)


def parser_of_command(*words: str) -> argparse.ArgumentParser:
    """The parser of `irnet WORDS`."""
    return next(p for p in subparsers(cli.parser_of([*words])) if p.prog == f"irnet {' '.join(words)}")


def options_of_settings(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """SECTION.NAME -> its option."""
    return {action.dest: action for action in parser._actions if "." in action.dest}


class Caught(Exception):
    pass


def parser_of_program(main, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a program's `main` makes."""

    def parse(parser, arguments):
        raise Caught(parser)

    with monkeypatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        main([])
    return caught.value.args[0]


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


# ------------------------------------------------------------------------------------------------------------ --help


def test_every_option_of_every_command_has_a_help_and_its_default():
    checked, programs = 0, set()
    for name in commands.names():
        for parser in subparsers(cli.parser_of([name])):
            if parser.prog.startswith(f"irnet {name}"):
                checked += check(parser)
                programs.add(parser.prog)
    assert {f"irnet {name}" for name in commands.names()} < programs
    assert {"irnet data check", "irnet bench kernels", "irnet bench compare", "irnet bench machine-code"} < programs
    assert checked > 150


@pytest.mark.parametrize("program", [parity, exercise, smoke], ids=lambda module: module.__name__)
def test_further_programs(program, monkeypatch):
    assert check(parser_of_program(program.main, monkeypatch)) > 2


def test_help_shows_a_default_once_and_as_it_is_written():
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", default="5%", help="how much")
    parser.add_argument("--modes", nargs="+", default=["a", "b"], help="which")
    parser.add_argument("--count", type=int, default=0, help="how many")
    parser.add_argument("--switch", action="store_true", help="whether")
    parser.add_argument("--hidden", default=3, help=argparse.SUPPRESS)
    parser.add_argument("file", help="what")
    tell_defaults(parser)
    text = " ".join(parser.format_help().split())
    for words in ("how much (default: 5%)", "which (default: a b)", "how many (default: 0)"):
        assert words in text
    assert "hidden" not in text and text.count("default") == 3


# ---------------------------------------------------------------------------------------------------------- settings


def test_every_setting_has_a_help_and_a_default_of_its_type_within_its_bounds():
    for key, declared in FIELDS.items():
        assert declared.metadata["help"], key
        default, expected = attrgetter(key)(settings.Config()), declared.type
        assert expected in (bool, int, float, str, list[int], list[str]), key
        assert type(default) is (list if expected in (list[int], list[str]) else expected), key
    settings.validate(settings.Config())


def test_no_two_settings_share_an_option():
    flags = [flag for key in WITH_OPTION for flag in FIELDS[key].metadata["flags"]]
    assert len(flags) == len(set(flags)) and all(flag.startswith("-") for flag in flags)


@pytest.mark.parametrize(
    ("command", "keys", "bases"),
    [
        ("train", WITH_OPTION, [settings.Config(), settings.small()]),
        ("demo", WITH_OPTION - {"data.name", "data.root", "model.variant", "train.init_from"}, [demo_settings()]),
        (
            "data check",
            {"data.name", "data.root", "data.max_regions", "train.workers"},
            [settings.Config(), settings.small()],
        ),
        ("graph build", {"data.name", "data.root", "data.max_regions"}, [settings.Config()]),
        ("data convert", {"data.name", "data.root"}, [settings.Config()]),
        ("data scenes", set(), []),
        ("predict", set(), []),
        ("info", set(), []),
    ],
)
def test_options_of_settings_and_their_defaults(command, keys, bases):
    options = options_of_settings(parser_of_command(*command.split()))
    assert set(options) == keys
    for key, action in options.items():
        assert action.default is None and FIELDS[key].metadata["help"] in action.help
        assert set(FIELDS[key].metadata["flags"]) <= set(action.option_strings)
        values = [str(attrgetter(key)(base)) for base in bases]
        shown = re.search(r"\(default: (.*)\)$", action.help)
        if values[0] in ("", "False"):
            assert not shown, f"{key}: {action.help}"
            continue
        small = f", with --small {values[-1]}" if values[0] != values[-1] else ""
        assert shown and shown[1] == values[0] + small, f"{key}: {action.help}"


def test_an_evaluation_takes_the_settings_of_its_run():
    options = options_of_settings(parser_of_command("eval"))
    assert set(options) == {"data.name", "data.root", "train.batch_size", "train.workers", "train.limit_batches"}
    assert all(action.help.endswith("(default: as in the run's training)") for action in options.values())


# ------------------------------------------------------------------------------------------------------ a new setting


@dataclass
class MoreTraining(settings.TrainConfig):
    """Training settings, and one of every type that is new."""

    names: list[str] = settings.setting([], "which of them", flags=("--names",))
    sizes: list[int] = settings.setting([3], "how large", settings.Bounds(least=1, most=9), flags=("-s", "--sizes"))
    rate: float = settings.setting(
        0.5, "how fast", settings.Bounds(above=0, below=1, cure="give a part"), flags=("--rate",)
    )
    count: int = settings.setting(2, "how many, 5% more", settings.Bounds(least=1), flags=("--count",))
    mode: str = settings.setting("a", "which way", choices=("a", "b"), flags=("--mode",))
    title: str = settings.setting("", "what it is called", flags=("--title",))
    mirror: bool = settings.setting(True, "whether", flags=("--mirror",))
    quiet: int = settings.setting(7, "no option")


@dataclass
class MoreConfig(settings.Config):
    train: MoreTraining = field(default_factory=MoreTraining)


def read(*words: str) -> MoreTraining:
    """The training settings that a command makes of a command line."""
    parser = argparse.ArgumentParser()
    add_settings(parser, MoreConfig())
    return read_settings(parser.parse_args(words), MoreConfig()).train


GIVEN = {
    "names": ["a", "bc"], "sizes": [4, 5], "rate": 0.25, "count": 8, "mode": "b", "title": "5", "mirror": False
}  # fmt: skip
OPTIONS = ["--names", "[a, bc]", "-s", "[4, 5]", "--rate", "0.25", "--count", "8", "--mode", "b", "--title", "5"]


def test_a_new_setting_has_an_option_a_key_and_a_place_in_yaml(tmp_path):
    expected = MoreTraining(**GIVEN)
    assert read() == MoreTraining()
    assert read(*OPTIONS, "--no-mirror") == expected
    pairs = ["names=[a, bc]", "sizes=[4, 5]", "rate=0.25", "count=8", "mode=b", "title=5", "mirror=false"]
    assert read(*(f"train.{pair}" for pair in pairs)) == expected
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"train": GIVEN}))
    assert read("--config", str(path)) == expected
    assert read("--config", str(path), "--mirror", "--count", "3", "train.count=4") == dataclasses.replace(
        expected, mirror=True, count=4
    )
    config = MoreConfig(train=expected)
    path.write_text(settings.dump(config))
    assert settings.load(path, MoreConfig()) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "[1]"], "--names: train.names wants a value of type list; the default is []"),
        (["train.names=a"], "command line: train.names wants a value of type list; the default is []"),
        (["--sizes", "[5, 10]"], "command line: train.sizes holds 10; give at most 9"),
        (["train.sizes=[0]"], "command line: train.sizes holds 0; give at least 1"),
        (["--rate", "1"], "command line: train.rate is 1.0; give a part"),
        (["train.rate=nan"], "command line: train.rate is nan; give a part"),
        (["--count", "0"], "command line: train.count is 0; give at least 1"),
        (["train.quiet=5000000000"], "command line: train.quiet is 5000000000; give at most 2,147,483,647"),
        (["train.mode=c"], "command line: train.mode is 'c'; choose one of a, b"),
        (["train.mod=c"], "command line: unknown config key 'train.mod'; did you mean train.mode?"),
    ],
)
def test_a_new_setting_is_checked(words, message):
    with pytest.raises(settings.InputError) as error:
        read(*words)
    assert str(error.value) == message


def test_a_new_setting_has_its_line_in_the_help_of_training(monkeypatch, capsys):
    monkeypatch.setattr(settings, "Config", MoreConfig)
    monkeypatch.setattr(settings, "TrainConfig", MoreTraining)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "--count N how many, 5% more (default: 2)" in text and "--mirror, --no-mirror whether (default: True)" in text
    )
    assert cli.main(["train", "--print-config", "--names", "[x]", "--small"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["names"] == ["x"]
