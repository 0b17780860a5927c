"""`irnet info`: versions, devices and what each operator runs on."""

import argparse

from .. import __version__

HELP = "versions, devices and the operators' implementations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(options: argparse.Namespace) -> None:
    """Print them."""
    from irnet_kernels import info

    print(f"irnet {__version__}")
    info.main()
