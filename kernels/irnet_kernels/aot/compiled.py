"""Compiles Triton and CUDA kernels for GPUs, without one, and tells what they take. Runs no kernel.

A module that defines cases tells of its compiled kernels by two functions, both optional:

    def triton_kernels() -> list[TritonKernel]: ...   # each kernel in every configuration that is launched
    def cuda_sources() -> list[CudaSource]: ...

Either may raise `ToolUnavailable`. Importing the module must not import Triton.
"""

import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .cubin import Resources, resources_of
from .tools import ToolUnavailable, import_triton, toolkit_program, triton_version

TARGETS = (80, 90, 100)  # compute capabilities; Triton compiles 90 and 100 as sm_90a and sm_100a


@dataclass(frozen=True)
class TritonKernel:
    """A Triton kernel in one configuration.

    function        what `@triton.jit` made, in a module that was loaded without interpretation
    types           of the arguments that are no constexpr, as Triton writes them: {"x": "*fp32", "n": "i32"}
    constexprs      the values of all other arguments
    multiples_of_16 integer arguments that are; pointers count as such, PyTorch's allocators see to it
    options         the launch's further ones, such as {"enable_fp_fusion": False}
    targets         the compute capabilities for which it is launched in this configuration
    """

    function: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    multiples_of_16: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: Sequence[int] = TARGETS

    def __str__(self) -> str:
        values = [f"{name}={value}" for name, value in self.constexprs.items()]
        arguments = ", ".join([*self.types.values(), *values])
        return f"{self.function.__name__}({arguments}) warps={self.num_warps} stages={self.num_stages}"


@dataclass(frozen=True)
class CudaSource:
    """A .cu file that needs no header of PyTorch, further arguments of nvcc, and what it is compiled for."""

    path: Path
    flags: Sequence[str] = ()
    targets: Sequence[int] = TARGETS


@dataclass(frozen=True)
class Binary:
    """A compiled file for one target: its bytes, and its kernels' rows by the names that they have in it."""

    cubin: bytes
    rows: Mapping[str, Resources]


def table(rows: Iterable[Resources]) -> str:
    """The rows as aligned text."""
    names = [*(f.name for f in fields(Resources)), "sm_warps"]
    cells = [names, *(["-" if (v := getattr(row, n)) is None else str(v) for n in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [name in ("registers", "instructions") or name.endswith(("_bytes", "_warps")) for name in names]
    lines = ([c.rjust(w) if n else c.ljust(w) for c, w, n in zip(r, widths, numbers, strict=True)] for r in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def resources(modules: Iterable[types.ModuleType]) -> tuple[list[Resources], list[str]]:
    """The resources of all compiled kernels that the modules list; and what this machine cannot compile, and why."""
    rows, absent = [], []
    for module in modules:
        for name, read in (("triton_kernels", triton_resources), ("cuda_sources", cuda_resources)):
            try:
                rows += [row for kernel in getattr(module, name, list)() for row in read(kernel)]
            except ToolUnavailable as reason:
                absent.append(f"{name} of {module.__name__}: {reason}")
    twice = [name for name, count in Counter((r.source, r.kernel, r.target) for r in rows).items() if count > 1]
    if twice:
        raise ValueError(f"two compiled kernels have one name: {' '.join(twice[0])}")
    return rows, absent


# Triton


def triton_resources(kernel: TritonKernel, targets: Iterable[int] | None = None) -> list[Resources]:
    """Compile for each target (the kernel's own by default), with no GPU; Triton's cache is left alone.

    Raises ToolUnavailable where there is no Triton, RuntimeError where its compiler made a kernel that does nothing but
    trap.
    """
    return [row for binary in triton_binaries(kernel, targets) for row in binary.rows.values()]


def triton_binaries(kernel: TritonKernel, targets: Iterable[int] | None = None) -> Iterator[Binary]:
    """What a kernel compiles to for each target, as triton_resources does it."""
    triton, version = import_triton(), triton_version()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _jit_function(kernel.function)
    signature = {name: kernel.types.get(name, "constexpr") for name in function.arg_names}
    unknown = (kernel.types.keys() | kernel.constexprs.keys()) ^ signature.keys()
    if unknown:
        raise ValueError(f"{kernel}: {', '.join(sorted(unknown))} must be an argument with a type or a value")
    multiples = [n for n, type_ in kernel.types.items() if type_.startswith("*") or n in kernel.multiples_of_16]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    for target in kernel.targets if targets is None else targets:
        log = io.StringIO()
        with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
            triton.knobs.cache.dir = cache  # nothing is there yet, so ptxas runs and its report is printed
            triton.knobs.nvidia.dump_ptxas_log = True
            with contextlib.redirect_stdout(log):
                binary = triton.compile(
                    ASTSource(function, signature, dict(kernel.constexprs), attributes),
                    target=GPUTarget("cuda", target, 32),
                    options={"num_warps": kernel.num_warps, "num_stages": kernel.num_stages, **kernel.options},
                )
        if only_traps(binary.asm["ptx"]):
            raise RuntimeError(f"for sm_{target} {version} makes nothing but a trap of {kernel}")
        cubin, rows = binary.asm["cubin"], {}
        for row in resources_of(log.getvalue(), cubin, "triton", f"sm_{target}", version):
            name = str(kernel) if row.registers is not None else f"{row.kernel} in {kernel}"
            shared = row.shared_bytes + (binary.metadata.shared if row.registers is not None else 0)
            rows[row.kernel] = replace(row, kernel=name, shared_bytes=shared)
        yield Binary(cubin, rows)


def only_traps(ptx: str) -> bool:
    """Whether a kernel's PTX does nothing but trap: Triton 3.7 makes that of some kernels, and reports no error."""
    body = ptx.rpartition("$L__func_begin0:")[2].partition("$L__func_end0:")[0]
    return bool(re.search(r"^\s*trap;", body, re.MULTILINE)) and "ret;" not in body


def _jit_function(function: Any) -> Any:
    """The function below decorators such as `triton.autotune`."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if not isinstance(tl.sum, JITFunction):
        raise ToolUnavailable("Triton was imported with TRITON_INTERPRET=1, and compiles nothing now (unset it)")
    while not isinstance(function, JITFunction):
        if not hasattr(function, "fn"):
            raise TypeError(f"{function} is not from @triton.jit, or its module was loaded for the interpreter")
        function = function.fn
    return function


# CUDA


def nvcc_version() -> str:
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+\.\d+)", said)
    assert release, f"nvcc --version names no release: {said}"
    return "nvcc " + release[1]


def cuda_resources(source: CudaSource, targets: Iterable[int] | None = None) -> list[Resources]:
    """Compile for each target, with no GPU. Raises ToolUnavailable where there is no nvcc."""
    return [row for binary in cuda_binaries(source, targets) for row in binary.rows.values()]


def cuda_binaries(source: CudaSource, targets: Iterable[int] | None = None) -> Iterator[Binary]:
    """What a source compiles to for each target, as cuda_resources does it."""
    compiler, version = nvcc(), nvcc_version()
    with tempfile.TemporaryDirectory() as folder:
        for target in source.targets if targets is None else targets:
            binary = Path(folder) / f"{target}.cubin"
            command = [compiler, "-cubin", f"-arch=sm_{target}", "-Xptxas", "-v", *source.flags]
            done = subprocess.run([*command, "-o", str(binary), str(source.path)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} {source.path}:\n{done.stderr}")
            cubin = binary.read_bytes()
            rows = resources_of(done.stderr, cubin, "nvcc", f"sm_{target}", version)
            yield Binary(cubin, {row.kernel: replace(row, kernel=_readable(row.kernel)) for row in rows})


def nvcc() -> str:
    """Where the compiler is; raises ToolUnavailable where there is none."""
    path = toolkit_program("nvcc")
    if not path:
        raise ToolUnavailable("there is no nvcc (install the CUDA toolkit and set CUDA_HOME)")
    if not os.environ.get("NVCC_CCBIN") and not shutil.which("g++"):
        raise ToolUnavailable("nvcc needs a C++ compiler (apt install g++)")
    return path


@functools.cache
def _readable(name: str) -> str:
    """A kernel's name as in C++. As the compiler mangles it, an anonymous namespace has a hash of the file's path."""
    if not name.startswith("_Z"):
        return name
    if not shutil.which("c++filt"):
        raise ToolUnavailable("names of C++ kernels need c++filt (apt install binutils)")
    return subprocess.run(["c++filt", "--no-params", name], capture_output=True, text=True, check=True).stdout.strip()
