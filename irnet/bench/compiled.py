"""Kernels without a GPU: run Triton kernels on the CPU, compile Triton and CUDA for GPUs, read what they take. No gate.

A module that defines cases tells of its compiled kernels by two functions, both optional:

    def triton_kernels() -> list[TritonKernel]: ...   # each kernel in every configuration that is launched
    def cuda_sources() -> list[CudaSource]: ...

Either may raise `NotHere`. Importing the module must not import Triton.
"""

import contextlib
import functools
import importlib.util
import io
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .occupancy import occupancy

FRAME = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
NOP = 0x918  # the opcode, the lowest 12 bits of an instruction
SIZED, THREADS = 4, (0x05, 0x10)  # a format and two attributes of .nv.info: at most, or exactly so many threads
NO_CONTENT = 8  # the type of an ELF section that only takes memory
TARGETS = (80, 90, 100)  # compute capabilities; Triton compiles 90 and 100 as sm_90a and sm_100a


class NotHere(Exception):
    """A tool that this machine lacks. The message says which, and how to get it."""


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
class Resources:
    """What a compiled kernel takes of one GPU architecture.

    registers     of a thread
    shared_bytes  of a block: static, and for Triton also dynamic, which a CUDA kernel is given only at its launch
    spill_bytes   that a thread stores and loads because its registers do not suffice, each instruction counted once
    stack_bytes   of a thread's stack frame; spills live there, too
    instructions  of the machine code, whether executed or not
    version       of what compiled it: "triton 3.7.1", "nvcc 13.0"
    block_warps   of a block: the most that the kernel may be launched with, None where nothing bounds them
    A device function that is not inlined has a row without registers and instructions: they count with its callers'.
    """

    kernel: str
    source: str  # triton or nvcc
    target: str
    registers: int | None
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    instructions: int | None
    version: str
    block_warps: int | None = None

    @property
    def sm_warps(self) -> int | None:
        """Warps that a multiprocessor keeps at a time, as far as they follow from the other figures."""
        if self.registers is None or self.block_warps is None:
            return None
        return occupancy(int(self.target[3:]), self.registers, self.shared_bytes, self.block_warps).warps

    def figures(self) -> dict[str, int]:
        """The numbers that the gate holds, by name."""
        names = ("registers", "shared_bytes", "spill_bytes", "stack_bytes", "instructions")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


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
    """Of all compiled kernels that the modules tell of; and what cannot be compiled on this machine, and why."""
    rows, absent = [], []
    for module in modules:
        for name, read in (("triton_kernels", triton_resources), ("cuda_sources", cuda_resources)):
            try:
                rows += [row for kernel in getattr(module, name, list)() for row in read(kernel)]
            except NotHere as reason:
                absent.append(f"{name} of {module.__name__}: {reason}")
    twice = [name for name, count in Counter((r.source, r.kernel, r.target) for r in rows).items() if count > 1]
    if twice:
        raise ValueError(f"two compiled kernels have one name: {' '.join(twice[0])}")
    return rows, absent


# Triton


def triton_version() -> str:
    return f"triton {_triton().__version__}"


def load(where: str | os.PathLike, interpret: bool) -> types.ModuleType:
    """A fresh copy of the Triton module of this name or path, whatever TRITON_INTERPRET says.

    interpret  its kernels run in Triton's interpreter, on CPU tensors; otherwise they can be compiled
    The copy is not in `sys.modules`, and a running kernel leaves nothing of Triton changed: both kinds of copies work
    side by side. What a module does when it is imported happens again, so it should only define kernels and launchers.
    So it is with the modules of kernels that it imports: they are copies of the same kind.
    """
    triton = _triton()
    spec = importlib.util.find_spec(where) if isinstance(where, str) and not where.endswith(".py") else None
    path, name = (spec.origin, spec.name) if spec else (os.fspath(where), Path(where).stem)
    # A name of its own, but the same package: relative imports work.
    spec = importlib.util.spec_from_file_location(f"{name}__{'interpreted' if interpret else 'compiled'}", path)
    if spec is None or not Path(path).is_file():
        raise ImportError(f"there is no Triton module {where}")
    module = importlib.util.module_from_spec(spec)
    with _afresh(), _interpreting() if interpret else triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpret
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _afresh() -> Iterator[None]:
    """Within, modules that have imported Triton, but those of Triton and PyTorch, are imported anew; then they are what
    they were."""

    def take_away() -> dict[str, types.ModuleType]:
        names = [name for name, module in sys.modules.items() if _has_triton(name, module)]
        return {name: sys.modules.pop(name) for name in names}

    before = take_away()
    try:
        yield
    finally:
        take_away()
        sys.modules.update(before)
        for name, module in before.items():  # importing a module makes it an attribute of its package, too
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)


def _has_triton(name: str, module: types.ModuleType) -> bool:
    has = getattr(getattr(module, "__dict__", {}).get("triton"), "__name__", "") == "triton"
    return has and name.partition(".")[0] not in ("triton", "torch")


def triton_resources(kernel: TritonKernel, targets: Iterable[int] | None = None) -> list[Resources]:
    """Compile for each target (the kernel's own by default), with no GPU; Triton's cache is left alone.

    Raises NotHere where there is no Triton, RuntimeError where its compiler made a kernel that does nothing but trap.
    """
    return [row for binary in triton_binaries(kernel, targets) for row in binary.rows.values()]


def triton_binaries(kernel: TritonKernel, targets: Iterable[int] | None = None) -> Iterator[Binary]:
    """What a kernel compiles to for each target, as triton_resources does it."""
    triton, version = _triton(), triton_version()
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
        for row in _rows(log.getvalue(), cubin, "triton", f"sm_{target}", version):
            name = str(kernel) if row.registers is not None else f"{row.kernel} in {kernel}"
            shared = row.shared_bytes + (binary.metadata.shared if row.registers is not None else 0)
            rows[row.kernel] = replace(row, kernel=name, shared_bytes=shared)
        yield Binary(cubin, rows)


def only_traps(ptx: str) -> bool:
    """Whether a kernel's PTX does nothing but trap: Triton 3.7 makes that of some kernels, and reports no error."""
    body = ptx.rpartition("$L__func_begin0:")[2].partition("$L__func_end0:")[0]
    return bool(re.search(r"^\s*trap;", body, re.MULTILINE)) and "ret;" not in body


def _triton() -> types.ModuleType:
    if importlib.util.find_spec("triton") is None:
        raise NotHere("there is no Triton (pip install triton)")
    import triton

    return triton


def _jit_function(function: Any) -> Any:
    """The function below decorators such as `triton.autotune`."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if not isinstance(tl.sum, JITFunction):
        raise NotHere("Triton was imported with TRITON_INTERPRET=1 and compiles nothing in this process (unset it)")
    while not isinstance(function, JITFunction):
        if not hasattr(function, "fn"):
            raise TypeError(f"{function} is not from @triton.jit, or its module was loaded for the interpreter")
        function = function.fn
    return function


@contextlib.contextmanager
def _interpreting() -> Iterator[None]:
    """Within, `@triton.jit` makes functions that are interpreted, now and at every later call; outside nothing changes.

    Triton's own switch is read when a module is imported, so functions of other modules, such as `tl.sum`, stay what
    they are; here one that is compiled is interpreted, too, when it is called. For a call Triton's interpreter replaces
    functions of `triton.language`, and does not put all of them back.
    """
    import triton.language as tl
    from triton import knobs
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    class Interpreted(interpreter.InterpretedFunction):
        def run(self, *args, **kwargs):
            with _interpreting():
                return super().run(*args, **kwargs)

    builder = interpreter.InterpreterBuilder
    changed = [interpreter, builder, JITFunction]
    changed += [tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base]
    before = [(owner, dict(vars(owner))) for owner in changed]
    try:
        with knobs.runtime.scope():
            knobs.runtime.interpret = True
            interpreter.InterpretedFunction = Interpreted
            builder.create_fma = _fused
            JITFunction.__call__ = lambda self, *args, **kwargs: _interpretable(self.fn)(*args, **kwargs)
            JITFunction.__get__ = _bind
            yield
    finally:
        for owner, attributes in before:
            for name in vars(owner).keys() - attributes.keys():
                delattr(owner, name)
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def _bind(function: Any, instance: Any, owner: type | None = None) -> Any:
    """For `x.sum()`: `tl.tensor` has compiled functions in place of methods."""
    return function if instance is None else functools.partial(function, instance)


def _fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """`tl.fma` rounded once, as a GPU does; Triton's interpreter rounds the product, too. Not in float64."""
    from triton.runtime.interpreter import TensorHandle

    dtype = np.promote_types(z.data.dtype, np.float64)
    return TensorHandle((x.data.astype(dtype) * y.data + z.data).astype(z.data.dtype), z.dtype.scalar)


@functools.cache
def _interpretable(python: types.FunctionType) -> Any:
    """The interpreted counterpart of a compiled function, on a copy of its globals: the interpreter adds to them."""
    from triton.runtime.interpreter import InterpretedFunction

    copy = types.FunctionType(
        python.__code__, dict(python.__globals__), python.__name__, python.__defaults__, python.__closure__
    )
    return InterpretedFunction(functools.update_wrapper(copy, python, updated=()))


# CUDA


def nvcc_version() -> str:
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return "nvcc " + re.search(r"release (\d+\.\d+)", said)[1]


def cuda_resources(source: CudaSource, targets: Iterable[int] | None = None) -> list[Resources]:
    """Compile for each target, with no GPU. Raises NotHere where there is no nvcc."""
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
            rows = _rows(done.stderr, cubin, "nvcc", f"sm_{target}", version)
            yield Binary(cubin, {row.kernel: replace(row, kernel=_readable(row.kernel)) for row in rows})


def nvcc() -> str:
    """Where the compiler is; raises NotHere where there is none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in (*(f"{home}/bin/nvcc" for home in homes), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if place and os.access(place, os.X_OK):
            break
    else:
        raise NotHere("there is no nvcc (install the CUDA toolkit and set CUDA_HOME)")
    if not os.environ.get("NVCC_CCBIN") and not shutil.which("g++"):
        raise NotHere("nvcc needs a C++ compiler (apt install g++)")
    return place


@functools.cache
def _readable(name: str) -> str:
    """A kernel's name as in C++. As the compiler mangles it, an anonymous namespace has a hash of the file's path."""
    if not name.startswith("_Z"):
        return name
    if not shutil.which("c++filt"):
        raise NotHere("names of C++ kernels need c++filt (apt install binutils)")
    return subprocess.run(["c++filt", "--no-params", name], capture_output=True, text=True, check=True).stdout.strip()


# Both


def _rows(log: str, cubin: bytes, source: str, target: str, version: str) -> list[Resources]:
    """From what `ptxas -v` says and the machine code, functions in the order of their names."""
    instructions, warps = _instructions(cubin), _block_warps(cubin)
    rows = []
    # "Compiling entry function 'k' for 'sm_80'", or nothing; "Function properties for k"; a line with stack and spills;
    # for an entry "Used 16 registers, used 1 barriers, 512 bytes smem".
    parts = re.split(r"Function properties for (\S+)", log)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        stack, stored, loaded = map(int, re.search(FRAME, text).groups())
        used = re.search(r"Used (\d+) registers(.*)", text)
        shared = re.search(r"(\d+) bytes smem", used[2]) if used else None
        rows.append(
            Resources(
                kernel=name,
                source=source,
                target=target,
                registers=int(used[1]) if used else None,
                shared_bytes=int(shared[1]) if shared else 0,
                spill_bytes=stored + loaded,
                stack_bytes=stack,
                instructions=instructions.get(name),
                version=version,
                block_warps=warps.get(name),
            )
        )
    if not rows:
        raise RuntimeError(f"ptxas reported no kernel:\n{log}")
    return sorted(rows, key=lambda row: row.kernel)


def _instructions(cubin: bytes) -> dict[str, int]:
    """Machine instructions of every function in an ELF file for a GPU, without the NOPs that pad it."""
    found = {}
    for title, content in _sections(cubin):
        if title.startswith(".text."):
            words = struct.unpack("<" + "QQ" * (len(content) // 16), content)  # 128 bits each, from sm_70 on
            found[title.removeprefix(".text.")] = sum(word & 0xFFF != NOP for word in words[::2])
    return found


def _block_warps(cubin: bytes) -> dict[str, int]:
    """The warps of a block of every kernel that was compiled for a number of threads, at most or exactly."""
    found = {}
    for title, content in _sections(cubin):
        if not title.startswith(".nv.info."):
            continue
        at = 0
        while at < len(content):  # a format, an attribute, and 16 bits: a value, or the size of what follows
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            at += 4
            if form == SIZED and attribute in THREADS:
                threads = math.prod(struct.unpack_from("<III", content, at))
                found[title.removeprefix(".nv.info.")] = -(-threads // 32)
            at += size if form == SIZED else 0
    return found


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every section of an ELF file."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    headers = [struct.unpack_from("<II16xQQ", cubin, table + i * size) for i in range(count)]
    for name, kind, start, length in headers:
        begin = headers[names][2] + name
        content = b"" if kind == NO_CONTENT else cubin[start : start + length]
        yield cubin[begin : cubin.index(b"\0", begin)].decode(), content
