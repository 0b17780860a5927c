"""The commands of the program, one file each: `irnet NAME` is NAME.py in this folder.

A file holds HELP, the line of `irnet --help`; `add_arguments(parser)`; and `run(options)`, which calls other rooms,
prints, and returns the exit code (None: 0). Loading it imports nothing slow, such as torch; only `run` does. A command
that has commands of its own has no `run`: `options.subcommands` gives one to each of them.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """The names of all commands, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"{__name__}.{name}")
