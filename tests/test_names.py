"""A name says what a value is: no value is called by a participle or an adverb that could stand for any."""

import ast
from collections.abc import Iterator

import pytest

from tests.test_limits import FOLDERS, ROOT

VAGUE = {"found", "made", "told", "there", "wanted", "taken", "turned", "contestant", "contestants", "places"}


def names(source: str) -> Iterator[tuple[int, str]]:
    """The line and name of everything that a source names: variables, parameters, functions and classes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_every_kind_of_name_is_seen():
    source = "a = 1\nfor b in (c := [d for d in ()]):\n    def e(f, *g, h, **i): ...\nclass j: ...\nwith a as k: ...\n"
    assert {name for _, name in names(source)} == set("abcdefghijk")


@pytest.mark.parametrize("folder", [*FOLDERS, "setup.py"])
def test_names_say_what_a_value_is(folder):
    path = ROOT / folder
    vague = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
        for line, name in names(file.read_text(encoding="utf-8"))
        if name in VAGUE
    ]
    assert not vague
