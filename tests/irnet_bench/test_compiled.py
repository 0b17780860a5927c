"""Kernels without a GPU: the interpreter, compiling for GPUs, what kernels take, and the damage of the toy kernels."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irnet_bench.case import Setup, Work, modules
from irnet_bench.measure import ERROR, OK, examine
from irnet_kernels import counts
from irnet_kernels.aot import compiled, cubin, interpreter, tools
from irnet_kernels.aot.compiled import CudaSource, TritonKernel
from irnet_kernels.aot.cubin import Resources
from tests.tools import here

TOY = Path(__file__).parent / "toy"
SM = ["sm_80", "sm_90", "sm_100"]
LIBRARY = """
import triton
import triton.language as tl

@triton.jit
def larger(a, b):
    return tl.maximum(a, b)

@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = larger(tl.load(x + offsets, mask=offsets < n, other=0.0), tl.zeros((BLOCK,), tl.float32))
    total = tl.sum(values, 0) + values.max(0) + tl.cdiv(n, 8) + tl.reduce(values, 0, larger)
    tl.store(out + offsets, tl.cumsum(values, 0) + total, mask=offsets < n)

@triton.jit
def centred_kernel(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = tl.load(x + offsets)
    tl.store(x + offsets, values - tl.sum(values, 0))
"""
SPILLS = """
extern "C" __global__ void spills(float* x) {
  float a[100], sum = 0;
  #pragma unroll
  for (int i = 0; i < 100; ++i) sum += a[i] = x[i];
  #pragma unroll
  for (int i = 0; i < 100; ++i) x[i] = a[i] - sum;
}
"""
NAMES = """
namespace {
template <int N> __global__ void shared_kernel(float* x) {
  __shared__ float s[N];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[N - 1 - threadIdx.x];
}
}
__device__ __noinline__ float helper(const float* x, int step) {
  float sum = 0;
  for (int i = 0; i < 100; ++i) sum += x[i * step] * sum;
  return sum;
}
extern "C" __global__ void calls(float* x, int step) { x[0] = helper(x, step) + helper(x + 1, step + 1); }
void launch(float* x) { shared_kernel<128><<<1, 128>>>(x); }
"""


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def toy_work(monkeypatch, damage: str = "", n: int = 4099) -> Work:
    """The toy's case with the C++ kernel and the interpreted Triton kernel."""
    monkeypatch.setenv("IRNET_TOY_DAMAGE", damage)
    monkeypatch.setenv("IRNET_TOY_INTERPRET", "1")
    return toy().scale_add.build(Setup({"n": n}, torch.float32, torch.device("cpu")))


def toy():
    return modules([str(TOY / "toy_cases.py")])[-1]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A Triton module that uses Triton's own library, a function of its own and methods of tensors."""
    return write(tmp_path_factory.mktemp("triton"), "library.py", LIBRARY)


@pytest.fixture(scope="module")
def triton_rows() -> dict[str, list[Resources]]:
    """The toy kernel's rows, sound and damaged."""
    return {damage: toy_rows("triton_kernels", compiled.triton_resources, damage) for damage in ("", "slower")}


@pytest.fixture(scope="module")
def cuda_rows() -> dict[str, list[Resources]]:
    return {damage: toy_rows("cuda_sources", compiled.cuda_resources, damage) for damage in ("", "slower")}


def toy_rows(kind: str, read: Callable, damage: str) -> list[Resources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRNET_TOY_DAMAGE", damage)
        return [row for kernel in here(getattr(toy(), kind)) for row in here(read, kernel)]


# The interpreter


def run_library(module) -> None:
    """Small whole numbers, so that every order of summing is exact."""
    x = torch.arange(100.0) % 7 - 3
    out = torch.empty_like(x)
    module.kernel[(1,)](x, out, 100, BLOCK=128)
    values = x.relu()
    assert torch.equal(out, values.cumsum(0) + values.sum() + 2 * values.max() + 13)


def test_interpreted_kernel_gives_what_pytorch_gives():
    module = here(interpreter.load, TOY / "toy_triton.py", True)
    for n in (1, 4096, 4099):
        x, y = torch.randn(n), torch.randn(n)
        assert torch.equal(module.scale_add(x, y), 2 * x + y)


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


# Compiling


def test_triton_kernels_are_compiled_for_every_target(triton_rows):
    rows = triton_rows[""]
    assert [row.target for row in rows] == SM * 2, "two configurations"
    assert len({row.kernel for row in rows}) == 2 and "BLOCK=4096" in rows[-1].kernel
    check_sound(rows, "triton")


def test_cuda_kernels_are_compiled_for_every_target(cuda_rows):
    rows = cuda_rows[""]
    assert [row.target for row in rows] == SM
    assert rows[0].kernel == "scale_add_kernel"
    check_sound(rows, "nvcc")


def check_sound(rows: list[Resources], source: str) -> None:
    for row in rows:
        assert row.source == source and re.fullmatch(rf"{source} \d+\.\d+(\.\d+)?", row.version)
        assert 0 < row.registers <= 255 and row.instructions > 0
        assert (row.shared_bytes, row.spill_bytes, row.stack_bytes) == (0, 0, 0)


def test_spills_of_a_triton_kernel_are_seen(library):
    """Each thread keeps 512 numbers for their sum, and has at most 255 registers."""
    module = here(interpreter.load, library, False)
    kernel = TritonKernel(module.centred_kernel, {"x": "*fp32"}, {"BLOCK": 1 << 14}, num_warps=1)
    for row in compiled.triton_resources(kernel, [80, 100]):
        assert row.spill_bytes > 0 and row.stack_bytes > 0


def test_spills_of_a_cuda_kernel_are_seen(tmp_path):
    """Each thread keeps 100 numbers for their sum, and is given 32 registers."""
    source = CudaSource(write(tmp_path, "spills.cu", SPILLS), ["-maxrregcount=32"])
    (row,) = here(compiled.cuda_resources, source, [90])
    assert row.kernel == "spills" and row.registers == 32 and row.spill_bytes > 0 and row.stack_bytes > 0


def test_shared_memory_of_a_triton_kernel_is_seen(library):
    """A sum over a block of several warps goes through it; one warp needs none."""
    module = here(interpreter.load, library, False)
    kernel = TritonKernel(module.kernel, {"x": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": 1024})
    (row,) = compiled.triton_resources(kernel, [90])
    assert row.shared_bytes >= 4 * kernel.num_warps


def test_names_shared_memory_and_device_functions_of_cuda(tmp_path):
    """A name does not depend on where the file lies, even in an anonymous namespace."""
    rows = [
        here(compiled.cuda_resources, CudaSource(write(tmp_path / folder, "names.cu", NAMES)), [90]) for folder in "ab"
    ]
    assert rows[0] == rows[1]
    found = {row.kernel: row for row in rows[0]}
    assert found["(anonymous namespace)::shared_kernel<128>"].shared_bytes == 128 * 4
    helper, calls = found["helper"], found["calls"]
    assert helper.registers is None and helper.instructions is None, "not inlined: they count with its caller's"
    assert calls.registers > 0 and calls.instructions > 0


def test_machine_instructions_are_those_that_the_disassembler_lists(tmp_path):
    """Two readers of the same file: the bytes of its sections, and NVIDIA's disassembler."""
    here(tools.triton_version)
    from triton import knobs

    disassembler = knobs.nvidia.nvdisasm.path  # Triton brings it along
    source = write(tmp_path, "names.cu", NAMES)
    for target in compiled.TARGETS:
        binary = tmp_path / f"{target}.cubin"
        command = [here(compiled.nvcc), "-cubin", f"-arch=sm_{target}", "-o", str(binary), str(source)]
        subprocess.run(command, check=True)
        listing = subprocess.run([disassembler, "-c", str(binary)], capture_output=True, text=True, check=True).stdout
        lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*);", listing, re.MULTILINE)
        expected = sum(not line.strip().startswith("NOP") for line in lines)
        assert sum(cubin.count_instructions(binary.read_bytes()).values()) == expected > 0, target


def test_what_cannot_be_compiled_is_told(tmp_path, library):
    source = CudaSource(write(tmp_path, "broken.cu", "__global__ void k() { no_such(); }"))
    with pytest.raises(RuntimeError, match="no_such"):
        here(compiled.cuda_resources, source)
    with pytest.raises(RuntimeError, match="no kernel"):
        compiled.cuda_resources(CudaSource(write(tmp_path, "empty.cu", "void f() {}")), [90])
    module = here(interpreter.load, library, False)
    with pytest.raises(ValueError, match="BLOCK must be"):
        compiled.triton_resources(TritonKernel(module.kernel, {"x": "*fp32", "out": "*fp32", "n": "i32"}))
    with pytest.raises(TypeError, match="loaded for the interpreter"):
        compiled.triton_resources(TritonKernel(interpreter.load(library, True).kernel, {}))


def test_absent_tools_have_a_reason(monkeypatch):
    monkeypatch.setattr(tools.os, "access", lambda *arguments: False)
    find_spec = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    rows, absent = compiled.resources([toy()])
    assert rows == []
    assert [reason for line in absent for reason in ("pip install triton", "set CUDA_HOME") if reason in line] == [
        "pip install triton",
        "set CUDA_HOME",
    ]


def test_resources_are_those_of_all_kernels_that_a_module_tells_of(triton_rows, cuda_rows):
    rows, absent = compiled.resources([toy(), dataclasses])
    assert (rows, absent) == (triton_rows[""] + cuda_rows[""], [])


def test_two_kernels_of_one_name_are_refused(cuda_rows):
    with pytest.raises(ValueError, match=r"one name: nvcc scale_add_kernel sm_80"):
        compiled.resources([types.SimpleNamespace(cuda_sources=toy().cuda_sources)] * 2)


def test_table_is_aligned():
    row = Resources("kernel", "nvcc", "sm_90", 24, 1024, 0, 0, 300, "nvcc 13.0", 4)
    head, *lines = compiled.table([row, dataclasses.replace(row, kernel="k", registers=None)]).splitlines()
    assert lines[1].split() == ["k", "nvcc", "sm_90", "-", "1024", "0", "0", "300", "nvcc", "13.0", "4", "-"]
    assert (head.split()[-1], lines[0].split()[-1]) == ("sm_warps", "64")
    assert {line.index("nvcc") for line in lines} == {head.index("source")}
    assert {line.index("1024") + 4 for line in lines} == {head.index("shared_bytes") + len("shared_bytes")}
    assert "registers" in row.figures() and "registers" not in dataclasses.replace(row, registers=None).figures()


# The toy


def test_sound_toy_is_right_in_every_mode(monkeypatch, cpu):
    work = toy_work(monkeypatch)
    results = examine(work, cpu)
    assert {mode for _, mode in results} == {"forward", "backward", "step"}
    for (name, _mode), result in results.items():
        absent = not work.implementations[name].call
        assert result.status == OK or absent, (name, result.reason)


def test_wrong_toy_is_off_in_one_element(monkeypatch, cpu):
    work = toy_work(monkeypatch, "wrong")
    expected = work.implementations["reference"].call(*work.inputs)
    for name in present(work):
        assert (work.implementations[name].call(*work.inputs) != expected).sum() == 1, name
        assert examine(work, cpu)[name, "forward"].status == ERROR


def test_toy_with_a_buffer_allocates_one_output_more(monkeypatch, cpu):
    taken = {}
    for damage in ("", "buffer"):
        work = toy_work(monkeypatch, damage)
        for name in present(work):
            call = functools.partial(work.implementations[name].call, *work.inputs)
            taken[name, damage] = counts.count(call, cpu).allocated_bytes
    for name in present(work):
        assert taken[name, "buffer"] - taken[name, ""] == 4099 * 4, name


def present(work: Work) -> list[str]:
    """Of the two compiled implementations those that this machine can build."""
    found = {name: work.implementations[name].missing for name in ("cpp", "triton")}
    if all(found.values()):
        pytest.skip("; ".join(found.values()))
    return [name for name, missing in found.items() if not missing]


@pytest.mark.parametrize("rows", ["triton_rows", "cuda_rows"])
def test_slower_toy_has_more_instructions(rows, request):
    rows = request.getfixturevalue(rows)
    for sound, slower in zip(rows[""], rows["slower"], strict=True):
        assert slower.kernel == sound.kernel and slower.instructions >= 1.15 * sound.instructions


def test_an_unknown_damage_is_refused(monkeypatch):
    monkeypatch.setenv("IRNET_TOY_DAMAGE", "louder")
    with pytest.raises(ValueError, match="slower"):
        toy().damage()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_toy_is_right_on_a_gpu(monkeypatch):
    device = torch.device("cuda")
    work = toy().scale_add.build(Setup({"n": 4099}, torch.float32, device))
    for (name, _mode), result in examine(work, device).items():
        assert result.status == OK or work.implementations[name].missing, (name, result.reason)


@pytest.mark.parametrize(
    ("body", "nothing"),
    [("trap;", True), ("ret;", False), ("@%p1 trap;\n\tst.global.b32 [%rd1], %r1;\n\tret;", False)],
    ids=["trap", "return", "both"],
)
def test_a_kernel_that_does_nothing_but_trap_is_told(body, nothing):
    ptx = f".entry kernel()\n{{\n$L__func_begin0:\n\t{body}\n$L__func_end0:\n}}\n"
    assert compiled.only_traps(ptx) is nothing
