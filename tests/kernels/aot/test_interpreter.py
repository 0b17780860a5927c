"""Triton's kernels on the CPU: copies that are interpreted, and what they leave as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from irnet_kernels.aot import compiled, interpreter, tools
from irnet_kernels.aot.compiled import TritonKernel
from tests.tools import here


def run_library(module) -> None:
    """Small whole numbers, so that every order of summing is exact."""
    x = torch.arange(100.0) % 7 - 3
    out = torch.empty_like(x)
    module.kernel[(1,)](x, out, 100, BLOCK=128)
    values = x.relu()
    assert torch.equal(out, values.cumsum(0) + values.sum() + 2 * values.max() + 13)


def test_interpreted_kernel_may_use_the_library_of_triton(library):
    module = here(interpreter.load, library, True)
    run_library(module)
    run_library(module)


def test_a_module_is_found_by_its_name(library, monkeypatch):
    monkeypatch.syspath_prepend(library.parent)
    run_library(here(interpreter.load, "library", True))
    assert "library" not in sys.modules
    with pytest.raises(ImportError, match="no Triton module no_such"):
        interpreter.load("no_such", True)


def test_interpretation_leaves_triton_as_it_was(library):
    here(tools.triton_version)
    import triton.language as tl
    from triton import knobs
    from triton.runtime import interpreter as tritons
    from triton.runtime.jit import JITFunction

    owners = [tritons, JITFunction, knobs.runtime, tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype]
    before, environment = [dict(vars(owner)) for owner in owners], dict(os.environ)
    run_library(interpreter.load(library, True))
    interpreter.load(library, False)
    for owner, attributes in zip(owners, before, strict=True):
        now = dict(vars(owner))
        assert now.keys() == attributes.keys(), owner
        assert [name for name in now if now[name] is not attributes[name]] == [], owner
    assert dict(os.environ) == environment


def test_interpreting_and_compiling_go_side_by_side(library):
    def rows():
        module = here(interpreter.load, library, False)
        kernel = TritonKernel(module.kernel, {"x": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": 128})
        return compiled.triton_resources(kernel, [90])

    first, module = rows(), interpreter.load(library, True)
    run_library(module)
    assert rows() == first
    run_library(module)


def test_tritons_switch_makes_no_difference_to_the_interpreter(library):
    """Where it is set nothing can be compiled: that has a reason of its own."""
    here(tools.triton_version)
    program = f"""
import runpy
from irnet_kernels.aot import compiled, interpreter, tools
test, library = runpy.run_path({str(Path(__file__))!r}), {str(library)!r}
test["run_library"](interpreter.load(library, True))
kernel = test["TritonKernel"](interpreter.load(library, False).kernel, {{"x": "*fp32", "out": "*fp32", "n": "i32"}})
try:
    compiled.triton_resources(kernel)
except tools.ToolUnavailable as reason:
    print(reason)
"""
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TRITON_INTERPRET=1" in done.stdout
