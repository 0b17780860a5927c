"""What commands share: options that follow from settings, the settings that follow from options, defaults in --help.

Importing it imports no torch.
"""

import argparse
import contextlib
import copy
import os
import re
from collections.abc import Callable, Collection
from operator import attrgetter

from . import config as settings
from .config import Config
from .errors import InputError

Command = Callable[..., argparse.ArgumentParser]
CONFIG_HELP = f"a file of sections model, loss, data, train, or a run of the paper: {', '.join(settings.shipped())}"
SETTING = re.compile(r"(model|loss|data|train)\.\w+=")  # how KEY=VALUE begins


def subcommands(parser: argparse.ArgumentParser, metavar: str) -> Command:
    """A function (name, run, help) that adds a command to `parser` and returns the command's own parser."""
    commands = parser.add_subparsers(required=True, metavar=metavar)

    def command(name: str, run: Callable | None, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, command=sub.prog.removeprefix("irnet "))
        return sub

    return command


# ------------------------------------------------------------------------------------------------ options of settings


def add_settings(
    parser: argparse.ArgumentParser,
    *bases: Config,
    only: Collection[str] = (),
    without: Collection[str] = (),
    default: str = "",
) -> None:
    """Add --config, KEY=VALUE, and the option of every setting that has one.

    Args:
        parser: The command's.
        bases: The settings that hold where none is given; a second one: those with --small.
        only: The keys (SECTION.NAME) of the settings whose options are added; empty: all.
        without: The keys of settings whose options are not added.
        default: What --help says that holds where nothing is given, in place of the values in `bases`.
    """
    for key, field in settings.fields_of(bases[0] if bases else Config()).items():
        if field.metadata["flags"] and (key in only or not only) and key not in without:
            _add_setting(parser, key, field, default or default_text(key, *bases))
    parser.add_argument("--config", metavar="YAML", help=CONFIG_HELP)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as train.lr=1e-3")


def _add_setting(parser: argparse.ArgumentParser, key: str, field, default: str) -> None:
    """Add the option of one setting. Its value, None where it is not given, is the attribute `key` of the options."""
    text = field.metadata["help"] + (f" (default: {default})" if default else "")
    what: dict = {"dest": key, "help": text.replace("%", "%%")}
    if field.type is bool:
        what["action"] = argparse.BooleanOptionalAction
    elif field.metadata["choices"]:
        what["choices"] = field.metadata["choices"]
    else:  # a list is one word, which is read as that of KEY=VALUE is
        what["type"] = field.type if field.type in (int, float) else str
        what["metavar"] = field.metadata["metavar"] or {int: "N", float: "X", str: "TEXT"}.get(field.type, "LIST")
    parser.add_argument(*field.metadata["flags"], **what)


def default_text(key: str, base: Config, small: Config | None = None) -> str:
    """The value that a setting has in `base`, and in `small` where that is another, as --help shows it."""
    values = [as_text(attrgetter(key)(config)) for config in (base, small or base)]
    return values[0] if values[0] == values[1] else f"{values[0]}, with --small {values[1]}"


def read_settings(options: argparse.Namespace, base: Config | None = None) -> Config:
    """The settings of a command: those of `base`, then --config's, then options', then those of KEY=VALUE.

    Args:
        options: What argparse read.
        base: Is not changed; None: the defaults, or with --small the small settings.

    Raises:
        InputError: A setting is unknown, or its value makes no sense.
    """
    if base is None:
        base = settings.small() if getattr(options, "small", False) else settings.Config()
    config = copy.deepcopy(base)
    if getattr(options, "config", None):
        config = settings.load(options.config, config)
    for key, field in settings.fields_of(config).items():
        value = getattr(options, key, None)
        if value is not None:
            settings.override(config, key, value, field.metadata["flags"][-1])
    for pair in options.overrides:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError("command line", f"{pair!r} is no KEY=VALUE", "write for example train.lr=1e-3")
        settings.override(config, key, value)
    settings.validate(config)
    return config


def read_settings_of_run(options: argparse.Namespace, run: Config) -> Config:
    """The settings of a finished run, changed by the options. InputError where they change its model."""
    config = read_settings(options, run)
    if config.model != run.model:
        raise InputError("command line", "a checkpoint's model cannot be changed", "leave out the model.* settings")
    return config


# ------------------------------------------------------------------------------------- options that commands share


def add_print_config(parser: argparse.ArgumentParser) -> None:
    """Add --print-config."""
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML, do nothing else")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint and --best."""
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder or a checkpoint file")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best class AP, not the last")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto is the GPU where there is one")


def add_memory(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --memory, the memory `what`."""
    parser.add_argument("--memory", metavar="SIZE", help=f"the memory {what}; 8GiB, 7500MB")


def add_scene_counts(parser: argparse.ArgumentParser) -> None:
    """Add --train-scenes and --val-scenes."""
    parser.add_argument(
        "--train-scenes", type=int, default=1500, metavar="N", help="scenes to train on, an even number"
    )
    parser.add_argument("--val-scenes", type=int, default=300, metavar="N", help="held-out scenes, an even number")


# ------------------------------------------------------------------------------------------------ several processes


def several() -> bool:
    """Whether this is one of several processes that work together, as torchrun starts them."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def joined(options: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    """The group of the processes that torchrun has started, and the device of this one; of one process no group."""
    if not several():
        return contextlib.nullcontext(options.device)
    from .engine.distributed import joined

    return joined(options.device)


def refuse_several(command: str) -> None:
    """InputError where torchrun has started several processes of a command that knows of none but itself."""
    if several():
        trouble = f"irnet {command} is one process, of which each of several would write the same files"
        raise InputError("torchrun", trouble, "call it without torchrun, and irnet train with it")


def restarted() -> bool:
    """Whether torchrun has started the processes again, after one of them had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


# ------------------------------------------------------------------------------------------------- defaults in --help


def tell_defaults(parser: argparse.ArgumentParser) -> None:
    """Add its default to the help of every option that has one. Call it once, after the last option was added."""
    for action in parser._actions:
        default = as_text(action.default)
        if action.option_strings and action.help not in (None, argparse.SUPPRESS) and default:
            action.help += f" (default: {default.replace('%', '%%')})"


def as_text(default: object) -> str:
    """A default as the user would write it; "" where there is none, and for a switch that is off."""
    if default is None or default is False or default in ("", argparse.SUPPRESS):
        return ""
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
