"""The tools for kernels without a GPU: Triton, and what is said where a tool is absent. Runs and compiles nothing."""

import importlib.util
import os
import shutil
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


def toolkit_program(name: str) -> str | None:
    """Where a program of the CUDA toolkit is: in CUDA_HOME or CUDA_PATH, in PATH, or in the usual folder."""
    homes = [os.environ[home] for home in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(home)]
    paths = [*(f"{home}/bin/{name}" for home in homes), shutil.which(name), f"/usr/local/cuda/bin/{name}"]
    return next((path for path in paths if path and os.access(path, os.X_OK)), None)
