"""Functions stay short enough to be read at once: 60 lines of code, docstrings apart, and 8 parameters."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("irnet", "kernels/irnet_kernels", "benchmarks")
LINES, PARAMETERS = 60, 8
SHORTER = {("irnet/engine/train.py", "train"): 45, ("irnet/models/irnet.py", "roll_out"): 45}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    """All functions of a source, methods and nested ones too, but for Triton's kernels: these get every tensor, size
    and constant as a parameter of its own."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function) and not any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


def lines(function: Function) -> int:
    """Lines from `def` to the end without the docstring's, which is as long as what users need to know."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)


def parameters(function: Function) -> int:
    given = function.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


SOURCES = {
    path.relative_to(ROOT).as_posix(): list(functions(path.read_text(encoding="utf-8")))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def test_no_function_is_too_long_or_takes_too_much():
    over = {
        f"{path}: {function.name}": f"{lines(function)} lines, {parameters(function)} parameters"
        for path, found in SOURCES.items()
        for function in found
        if lines(function) > LINES or parameters(function) > PARAMETERS
    }
    assert not over


@pytest.mark.parametrize(("path", "name"), SHORTER)
def test_loops_that_are_read_first_are_shorter_still(path, name):
    (found,) = (function for function in SOURCES[path] if function.name == name)
    assert lines(found) <= SHORTER[path, name]


def test_what_is_counted():
    body = '    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 3
    text = f"class A:\n  async def m(self, a, /, b, *c, d=1, **e):\n{body}\n@triton.jit()\ndef k(a):\n{body}"
    (method,) = functions(text)
    assert (method.name, lines(method), parameters(method)) == ("m", 4, 5)
