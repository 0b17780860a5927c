"""Skips a test, with the reason, where a tool for compiled kernels is absent."""

from collections.abc import Callable

import pytest

from irnet_kernels.aot.tools import ToolUnavailable


def here(action: Callable, *arguments, **options):
    """What the action returns; the test is skipped, with the reason, where a tool is absent."""
    try:
        return action(*arguments, **options)
    except ToolUnavailable as reason:
        pytest.skip(str(reason))
