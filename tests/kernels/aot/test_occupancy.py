"""Occupancy by NVIDIA's rules."""

import shutil
import subprocess
from pathlib import Path

import pytest

from irnet_kernels.aot import tools
from irnet_kernels.aot.occupancy import occupancy
from tests.kernels.aot.sources import write
from tests.tools import here

OCCUPANCY = r"""
#include <cstdio>
#include "cuda_occupancy.h"

int main() {
  int target, registers, shared, warps;
  while (std::scanf("%d %d %d %d", &target, &registers, &shared, &warps) == 4) {
    cudaOccDeviceProp device;
    const int major = target / 10, kib = major == 8 ? 164 : 228;
    device.computeMajor = major;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = kib << 10;
    device.sharedMemPerBlockOptin = (kib - 1) << 10;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = (kib - 1) << 10;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, warps * 32, shared);
    std::printf("%d\n", error ? -error : result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        (90, 32, 0, 8, (8, 64, "warps")),
        (90, 32, 0, 1, (32, 32, "blocks")),
        (90, 128, 0, 8, (2, 16, "registers")),
        (90, 168, 0, 4, (3, 12, "registers")),
        (90, 169, 0, 4, (2, 8, "registers")),  # 176 registers are given: 2 warps in each quarter
        (90, 100, 113 << 10, 4, (2, 8, "shared memory")),  # 2 x (113 + 1) KB are all of 228
        (80, 100, 113 << 10, 4, (1, 4, "shared memory")),
        (80, 255, 1 << 10, 8, (1, 8, "registers")),
        (100, 64, 227 << 10, 4, (1, 4, "shared memory")),
        (90, 255, 0, 12, (0, 0, "registers")),
    ],
)
def test_occupancy_of_known_kernels(target, registers, shared, warps, expected):
    found = occupancy(target, registers, shared, warps)
    assert (found.blocks, found.warps, found.limit) == expected


def test_occupancy_is_what_nvidias_header_computes(tmp_path):
    here(tools.triton_version)
    import triton

    header = Path(triton.__file__).parent / "backends/nvidia/include/cuda_occupancy.h"
    if not header.exists() or not shutil.which("g++"):
        pytest.skip("this Triton brings no cuda_occupancy.h along, or there is no g++")
    source = write(tmp_path, "occupancy.cpp", OCCUPANCY)
    command = ["g++", "-w", f"-I{header.parent}", str(source), "-o", str(tmp_path / "occupancy")]
    subprocess.run(command, check=True)
    sizes = [
        (target, registers, shared, warps)
        for target in (80, 90, 100)
        for registers in (16, 24, 33, 64, 72, 96, 121, 128, 166, 168, 210, 255)
        for shared in (0, 1, 3000, 8608, 49152, 73728, 131072, 163 << 10)
        for warps in (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
    ]
    orders = "\n".join(" ".join(map(str, size)) for size in sizes)
    done = subprocess.run([tmp_path / "occupancy"], input=orders, capture_output=True, text=True, check=True)
    expected = list(map(int, done.stdout.split()))
    assert len(expected) == len(sizes) and max(expected) == 32 and min(expected) == 0
    assert [size for size, blocks in zip(sizes, expected, strict=True) if occupancy(*size).blocks != blocks] == []
