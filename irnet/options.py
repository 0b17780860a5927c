"""What --help says of the options' defaults, which nobody writes by hand. Parses nothing."""

import argparse
from collections.abc import Mapping


def tell_defaults(parser: argparse.ArgumentParser, settings: Mapping[str, str] | None = None) -> None:
    """Add its default to the help of every option that has one. Call it once, after the last option was added.

    settings  {dest: text} of options that are None where they are not given, and what then holds
    """
    for action in parser._actions:
        default = as_text(action.default) or (settings or {}).get(action.dest)
        if action.option_strings and action.help not in (None, argparse.SUPPRESS) and default:
            action.help += f" (default: {default.replace('%', '%%')})"


def as_text(default: object) -> str:
    """A default as the user would write it; "" where there is none, and for a switch that is off."""
    if default is None or default is False or default in ("", argparse.SUPPRESS):
        return ""
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
