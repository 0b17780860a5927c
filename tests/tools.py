"""What tests of all packages share: which modules a file imports, and skips where a tool is absent."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import irnet_kernels
from irnet_kernels.aot.tools import ToolUnavailable

# Of what operators take beside their results, which follow the native kernels and oneDNN.
WITH_FORMULAS = pytest.mark.skipif(
    "cpp" not in irnet_kernels.available()["conv_gru"]["cpu"] or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the formulas are those of the native extension on a processor with AVX-512",
)


def here(action: Callable, *arguments, **options):
    """What the action returns; the test is skipped, with the reason, where a tool is absent."""
    try:
        return action(*arguments, **options)
    except ToolUnavailable as reason:
        pytest.skip(str(reason))


def imported(path: Path, root: Path) -> set[str]:
    """The absolute names of all modules that a file below `root` imports anywhere, also within functions."""
    parts = path.relative_to(root).parent.parts
    package = parts[1:] if parts[0] in ("kernels", "benchmarks") else parts  # these two folders are no packages
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            assert not node.level or base, f"{path}: a relative import leaves the package"
            names.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return names
