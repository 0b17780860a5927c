"""The reader of machine code: lists written by hand, and kernels whose code is known."""

import pytest

from irnet_kernels.aot import compiled, interpreter, machine_code, tools
from irnet_kernels.aot.compiled import CudaSource, TritonKernel
from irnet_kernels.aot.machine_code import Instruction, MachineCode, Mix
from tests.kernels.aot.sources import write
from tests.tools import here

# Out of line, behind the end: a waiting loop that returns into the outer loop. The last jump is never reached.
LISTING = """
	.section	.text.kernel,"ax",@progbits
        .size           kernel,(.L_x_9 - kernel)
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   LDG.E.64.CONSTANT R2, desc[UR4][R2.64] ;
.L_x_2:
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R5], desc[UR4][R2.64], P1 ;
        /*0050*/                   NOP;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P6, [UR16], R12 ;
        /*0080*/              @!P6 BRA `(.L_x_3) ;
.L_x_4:
        /*0090*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_0:
        /*00a0*/               @P2 EXIT ;
        /*00b0*/                   STG.E.U16 desc[UR4][R2.64], R5 ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P6, [UR16], R12 ;
        /*00e0*/              @!P6 BRA `(.L_x_3) ;
        /*00f0*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*0100*/                   BRA `(.L_x_5);
.L_x_9:
"""

# Both sides of a branch meet at the label of BSSY, one of them from behind the end; a second loop follows the first.
BRANCHES = """
	.section	.text._Z1kv,"ax",@progbits
.text._Z1kv:
.L_x_0:
        /*0000*/                   BSSY B0, `(.L_x_2) ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   MUFU.EX2 R0, R0 ;
        /*0030*/                   BSYNC B0 ;
.L_x_2:
        /*0040*/               @P1 BRA `(.L_x_0) ;
.L_x_3:
        /*0050*/                   LDL.64 R0, [R1] ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/              @!P1 BRA `(.L_x_3) ;
        /*0080*/                   EXIT ;
.L_x_1:
        /*0090*/                   STL [R1], R0 ;
        /*00a0*/                   BSYNC B0 ;
"""

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def dot_kernel(a, b, out, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        left = tl.load(a + m[:, None] * depth + start + k[None, :])
        right = tl.load(b + (start + k)[:, None] * BLOCK_N + n[None, :])
        total = tl.dot(left, right, total)
    tl.store(out + m[:, None] * BLOCK_N + n[None, :], total.to(out.dtype.element_ty))

@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets, mask=offsets < n), mask=offsets < n)
"""

# A loop that is not unrolled, with so many special instructions, a store to shared memory and a barrier.
CUDA = """
extern "C" __global__ void __launch_bounds__(96) waves(float* x, int n) {
  __shared__ float s[96];
  float a = x[threadIdx.x];
  #pragma unroll 1
  for (int i = 0; i < n; ++i) {
    #pragma unroll
    for (int k = 0; k < COUNT; ++k) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(a));
    s[threadIdx.x] = a;
    __syncthreads();
  }
  atomicAdd(x, a + s[0]);
}
"""


def function(listing: str) -> machine_code.Function:
    ((_, one),) = machine_code.functions_of(listing)
    return one


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return here(interpreter.load, write(tmp_path_factory.mktemp("triton"), "kernels.py", KERNELS), False)


def test_loops_of_a_list_are_natural_ones():
    """What stands out of line belongs to the loop that it returns to; unreachable jumps make no loop."""
    outer, inner, waiting = function(LISTING).loops()
    assert inner.addresses == {0x30, 0x40, 0x50, 0x60} and inner.mix.instructions == 3, "a NOP is none"
    assert outer.addresses == set(range(0x20, 0xA0, 0x10)) | set(range(0xD0, 0x100, 0x10))
    assert waiting.addresses == {0xD0, 0xE0}


def test_the_hottest_loop_is_the_innermost_with_matrix_instructions():
    one = function(LISTING)
    code = MachineCode(row(), Mix.of(one.instructions), one.loops())
    assert min(code.hottest.addresses) == 0x30
    assert (code.hottest.mix.per_matrix_instruction, code.hottest.mix.per_wide_load) == (3, 3)
    without = MachineCode(row(), code.mix, [loop for loop in code.loops if not loop.mix.matrix])
    assert without.hottest is None, "waiting alone is no work"


def test_instructions_are_counted_by_sort_and_width():
    mix = Mix.of(function(LISTING).instructions)
    assert mix.instructions == 16
    assert mix.matrix == {"HGMMA.64x128x16.F32.BF16": 1}
    assert mix.loads == {"LDG 64": 1, "LDGSTS 128": 1} and mix.stores == {"STG 16": 1}
    assert mix.barriers == {"SYNCS.PHASECHK.TRANS64.TRYWAIT": 2}
    assert "16.0 a matrix instruction; 16.0 a 16-byte load" in str(mix)


def test_sides_of_a_branch_meet_and_loops_follow_each_other():
    first, second = function(BRANCHES).loops()
    assert first.addresses == {*range(0, 0x50, 0x10), 0x90, 0xA0}
    assert first.mix.special == {"MUFU.EX2": 1} and first.mix.local == {"STL 32": 1}
    assert second.addresses == {0x50, 0x60, 0x70} and second.mix.local == {"LDL 64": 1}


@pytest.mark.parametrize(
    ("mnemonic", "access"),
    [
        ("LDG.E.U8", "LDG 8"),
        ("LDG.E.CONSTANT", "LDG 32"),
        ("LDG.E.EF.128", "LDG 128"),
        ("LDGSTS.E.LTC128B", "LDGSTS 32"),
        ("LDSM.16.MT88.4", "LDSM 128"),
        ("LDSM.16.M88", "LDSM 32"),
        ("UTMALDG.2D", "UTMALDG bulk"),
    ],
)
def test_widths_are_those_of_a_thread(mnemonic, access):
    assert Instruction(0, "", mnemonic, "").access == access


def row() -> compiled.Resources:
    return compiled.Resources("kernel", "triton", "sm_90", 128, 1 << 16, 0, 0, 16, "triton 3.7.1", block_warps=4)


def test_text_tells_everything():
    one = function(LISTING)
    lines = str(MachineCode(row(), Mix.of(one.instructions), one.loops())).splitlines()
    assert lines[0] == "kernel sm_90, triton 3.7.1"
    assert "128 registers, 65536 shared bytes, 0 spill bytes, 12 warps a multiprocessor: 3 blocks of 4" in lines[1]
    assert [line.strip().partition(":")[0] for line in lines[2:]] == [
        "all",
        "loop 0x0020",
        "hottest loop 0x0030",
        "loop 0x00d0",
    ]


def test_a_product_of_bfloat16_is_made_by_each_targets_own_instructions(kernels):
    kernel = TritonKernel(
        kernels.dot_kernel,
        {"a": "*bf16", "b": "*bf16", "out": "*bf16", "depth": "i32"},
        {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64},
        multiples_of_16=("depth",),
    )
    ampere, hopper, blackwell = here(machine_code.read, kernel)
    # 64 x 128 x 64: a warp's HMMA makes 16 x 8 x 16, a warpgroup's HGMMA 64 x 128 x 16.
    assert ampere.hottest.mix.matrix == {"HMMA.16816.F32.BF16": (64 // 16) * (128 // 8) * (64 // 16) // 4}
    assert hopper.hottest.mix.matrix == {"HGMMA.64x128x16.F32.BF16": 64 // 16}
    assert set(blackwell.hottest.mix.matrix) == {"UTCHMMA"}
    for code in (ampere, hopper, blackwell):
        # (64 + 128) x 64 elements of 2 bytes, 16 bytes for each of 128 threads and load
        assert code.hottest.mix.loads == {"LDGSTS 128": (64 + 128) * 64 * 2 // 16 // 128}
        assert code.hottest.mix.instructions < code.mix.instructions <= code.resources.instructions
        assert code.mix.barriers and not code.mix.local and not code.mix.atomics
        assert code.resources.block_warps == 4 and code.resources.occupancy.warps == code.resources.sm_warps > 0


def test_a_copy_has_wide_accesses_only_where_they_are_possible(kernels):
    types = {"x": "*bf16", "out": "*bf16", "n": "i32"}
    for multiples, bits in ((("n",), 128), ((), 16)):
        kernel = TritonKernel(kernels.copy_kernel, types, {"BLOCK": 1024}, multiples_of_16=multiples)
        (code,) = here(machine_code.read, kernel, [90])
        count = 1024 * 16 // bits // 128
        assert (code.mix.loads, code.mix.stores) == ({f"LDG {bits}": count}, {f"STG {bits}": count})
        assert code.loops == [] and code.hottest is None and code.mix.per_matrix_instruction is None


def test_a_cuda_kernels_loop_has_what_was_written(tmp_path):
    lengths = {}
    for count in (3, 8):
        source = CudaSource(write(tmp_path, "waves.cu", CUDA), [f"-DCOUNT={count}"])
        for code in here(machine_code.read, source):
            (loop,) = code.loops
            assert loop.mix.special == {"MUFU.EX2": count}
            assert loop.mix.shared == {"STS 32": 1}
            assert sum(loop.mix.barriers.values()) == 1
            assert not loop.mix.loads and code.mix.loads == {"LDG 32": 1}
            assert sum(code.mix.atomics.values()) == 1 and code.hottest is None
            assert code.resources.block_warps == 3
            lengths[code.resources.target, count] = loop.mix.instructions
    for target in ("sm_80", "sm_90", "sm_100"):
        assert lengths[target, 8] - lengths[target, 3] == 5


def test_all_instructions_are_read(tmp_path):
    """As many as the bytes of the file say."""
    for code in here(machine_code.read, CudaSource(write(tmp_path, "waves.cu", CUDA), ["-DCOUNT=4"])):
        assert code.mix.instructions == code.resources.instructions


def test_an_absent_disassembler_has_a_reason(monkeypatch):
    monkeypatch.setattr(tools.os, "access", lambda *arguments: False)
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tools.ToolUnavailable, match="pip install triton, or install the CUDA toolkit"):
        machine_code.nvdisasm()
