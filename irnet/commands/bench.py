"""`irnet bench`: the benchmark harness, which is a package of its own and brings its commands and options."""

import argparse

from ..options import subcommands

HELP = "measure speed and memory, compare and report measurements, guard against regressions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suites and commands. Imports the harness, and with it torch."""
    from irnet_bench.cli import add_parsers

    add_parsers(subcommands(parser, "SUITE|COMMAND"))
