"""Kernels compiled for GPUs without one: what they take, and what is told where they cannot be."""

import dataclasses
import re
import subprocess

import pytest

from irnet_kernels.aot import compiled, cubin, interpreter, tools
from irnet_kernels.aot.compiled import CudaSource, TritonKernel
from irnet_kernels.aot.cubin import Resources
from tests.kernels.aot.sources import NAMES, SPILLS, write
from tests.tools import here


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


def test_table_is_aligned():
    row = Resources("kernel", "nvcc", "sm_90", 24, 1024, 0, 0, 300, "nvcc 13.0", 4)
    head, *lines = compiled.table([row, dataclasses.replace(row, kernel="k", registers=None)]).splitlines()
    assert lines[1].split() == ["k", "nvcc", "sm_90", "-", "1024", "0", "0", "300", "nvcc", "13.0", "4", "-"]
    assert (head.split()[-1], lines[0].split()[-1]) == ("sm_warps", "64")
    assert {line.index("nvcc") for line in lines} == {head.index("source")}
    assert {line.index("1024") + 4 for line in lines} == {head.index("shared_bytes") + len("shared_bytes")}
    assert "registers" in row.figures() and "registers" not in dataclasses.replace(row, registers=None).figures()


@pytest.mark.parametrize(
    ("body", "nothing"),
    [("trap;", True), ("ret;", False), ("@%p1 trap;\n\tst.global.b32 [%rd1], %r1;\n\tret;", False)],
    ids=["trap", "return", "both"],
)
def test_a_kernel_that_does_nothing_but_trap_is_told(body, nothing):
    ptx = f".entry kernel()\n{{\n$L__func_begin0:\n\t{body}\n$L__func_end0:\n}}\n"
    assert compiled.only_traps(ptx) is nothing
