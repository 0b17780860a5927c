"""The tools for kernels without a GPU: Triton, and what is said where a tool is absent. Runs and compiles nothing."""

import importlib.util
import types


class ToolUnavailable(Exception):
    """A tool that this machine lacks. The message says which, and how to get it."""


def triton_version() -> str:
    """Name and version, as the gate's groups of figures are called."""
    return f"triton {import_triton().__version__}"


def import_triton() -> types.ModuleType:
    """The package. Raises ToolUnavailable where there is none."""
    if importlib.util.find_spec("triton") is None:
        raise ToolUnavailable("there is no Triton (pip install triton)")
    import triton

    package: types.ModuleType = triton
    return package
