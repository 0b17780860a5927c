"""The command line, `irnet COMMAND`: finds the command among the files of commands/ and runs it. Does no work.

Bad input is one line on standard error and exit code 2.
"""

import argparse
import io
import logging
import os
import sys
from itertools import pairwise

from . import __version__
from .errors import explain
from .interrupts import Stopped, raising

# OpenMP's threads spin while they wait, and on a busy machine take the cores from those that work: they shall sleep,
# GNU's after some microseconds, within which the next loop usually begins (GOMP_SPINCOUNT outranks the policy).
THREADS_SLEEP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    arguments  the words behind `irnet`; None takes the program's own, which ends with the command
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    # The variables are read when torch is loaded. A benchmark measures what a program that imports irnet gets.
    if words[:1] != ["bench"] and not {*THREADS_SLEEP, "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.update(THREADS_SLEEP)
    try:
        with raising(ends=arguments is None):
            return _run(words)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        print(f"irnet: {' '.join(str(known).splitlines())}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"irnet: {error}", file=sys.stderr)
        return 128 + error.number


def _run(words: list[str]) -> int:
    from .options import SETTING
    from .progress import Progress

    for index, (word, following) in enumerate(pairwise(words)):
        if word == "--resume" and SETTING.match(following) and not os.path.exists(following):
            words[index] = "--resume=auto"  # argparse would take KEY=VALUE for the PATH
    for stream in (sys.stdout, sys.stderr):  # a class name that the terminal's encoding lacks ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = parser_of(words)
    options, rest = parser.parse_known_args(words)
    # argparse takes KEY=VALUE words from one place only; here they may stand between options.
    pairs = [word for word in rest if hasattr(options, "overrides") and "=" in word and not word.startswith("-")]
    if len(pairs) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in pairs)}")
    if pairs:
        options.overrides += pairs
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with Progress(options.command):
        return options.run(options) or 0


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """The parser of a command line: all commands' names, and the options of the one with which `words` begin."""
    from . import commands
    from .options import subcommands, tell_defaults

    parser = argparse.ArgumentParser(prog="irnet", description="Iterative visual reasoning over image regions.")
    parser.add_argument("--version", action="version", version=f"irnet {__version__}")
    command = subcommands(parser, "COMMAND")
    for name in commands.names():
        module = commands.load(name)
        sub = command(name, getattr(module, "run", None), module.HELP)
        if words[:1] == [name]:
            module.add_arguments(sub)
            tell_defaults(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
