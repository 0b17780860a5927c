"""The CUDA kernels without a GPU: they run on the CPU, thread by thread, and nvcc compiles them for every target.

What stands in for CUDA is in cuda_on_cpu: it finds missing barriers and accesses beyond an array, but tells no time.
"""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from irnet_kernels import numerics
from irnet_kernels.aot.compiled import cuda_resources
from irnet_kernels.aot.shipped import cuda_sources
from irnet_kernels.testing import bits_equal
from tests.kernels import fuzz
from tests.kernels.cuda_on_cpu import calls
from tests.kernels.helpers import assert_exact, assert_within_budget, box_grid, normal, ragged
from tests.tools import here

HERE = Path(__file__).resolve().parent / "cuda_on_cpu"
SOURCES = {"crop_resize": ("forward", "backward"), "paste_mean": ("forward", "shares", "backward")}  # and kernels
INF, NAN = float("inf"), float("nan")
GUARD = 256  # bytes before and after every array
DTYPES = [getattr(torch, name) for name in calls.DTYPES]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=calls.DTYPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ (apt install g++)")
    return tmp_path_factory.mktemp("cuda_on_cpu")


@pytest.fixture(scope="module")
def kernels(folder) -> ctypes.CDLL:
    return ctypes.CDLL(str(calls.build(HERE / "calls.cpp", folder / "roi.so", "-O1")))


def guarded(values: torch.Tensor, fill: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The values between guards of bytes `fill`, `shift` elements beyond an address that 16 divides; and all bytes."""
    size, start = values.numel() * values.element_size(), GUARD + shift * values.element_size()
    memory = torch.full((size + 2 * GUARD + 16 + start,), fill, dtype=torch.uint8)
    start += -(memory.data_ptr() + GUARD) % 16
    view = memory[start : start + size].view(values.dtype).view(values.shape)
    view.copy_(values)
    return view, memory


def shapes(name: str, floats: list[torch.Tensor], boxes, ptr, size: int, cells) -> tuple[calls.Shape, tuple[int, ...]]:
    """The numbers of a call, and the shape of its result [N, H, W, C]."""
    channels, images, regions = floats[0].shape[1], len(ptr) - 1, len(boxes)
    patches = name in ("crop_resize", "paste_mean_backward")
    result = (regions, size, size, channels) if patches else (images, *cells, channels)
    return calls.Shape(images, regions, channels, *cells, size), result


def run(kernels, name: str, floats: list[torch.Tensor], boxes, ptr, size: int, cells, clamp=(), shift: int = 0):
    """The result [N, C, H, W] of a kernel.

    It has the same bits in whichever order threads take turns; every element of it is written, and nothing else.
    """
    numbers, shape = shapes(name, floats, boxes, ptr, size, cells)
    # Bytes of 0xff make NaN: a read beyond an array shows.
    inputs = [guarded(t.permute(0, 2, 3, 1), 0xFF, shift)[0] for t in floats]
    inputs += [guarded(boxes, 0xFF, 1)[0], guarded(ptr, 0xFF, 1)[0]]
    results = []
    for order, fill in zip(calls.ORDERS, (0xA5, 0x5A, 0x00), strict=True):
        out, memory = guarded(torch.empty(shape, dtype=floats[0].dtype), fill, shift)
        out.view(torch.uint8).fill_(fill)
        addresses = [t.data_ptr() for t in inputs]
        dtype = str(out.dtype).removeprefix("torch.")
        assert calls.call(kernels, name, dtype, numbers, *addresses, *clamp, out.data_ptr(), order=order) == 0
        results.append(out.permute(0, 3, 1, 2).clone())
        out.view(torch.uint8).fill_(fill)
        assert (memory == fill).all(), "wrote beyond the result"
    assert all(bits_equal(result, results[0]) for result in results), "an element not written, or a barrier missing"
    return results[0]


def check_all(kernels, dtype, boxes, ptr, channels: int, height: int, width: int, size: int, shift: int = 0) -> None:
    """All four kernels against the reference."""
    images, cells, ops = len(ptr) - 1, (height, width), torch.ops.irnet
    maps = normal(images, channels, height, width).to(dtype)
    patches = normal(len(boxes), channels, size, size, seed=1).to(dtype)

    def judge(name: str, floats, *more, clamp=()):
        got = run(kernels, name, floats, boxes, ptr, size, cells, clamp, shift)
        exact, reference = (
            getattr(ops, name).reference(*(t.to(compute) for t in floats), boxes, ptr, *more)
            for compute in (torch.float64, dtype)
        )
        if dtype == torch.float64:
            assert_exact(got, exact)
        else:
            assert_within_budget(got, exact, reference, name)

    for border in ("zero", "clamp"):
        judge("crop_resize", [maps], size, border, clamp=[border == "clamp"])
        judge("crop_resize_backward", [patches], *cells, border, clamp=[border == "clamp"])
    if size > 1:
        judge("paste_mean", [maps, patches])
        judge("paste_mean_backward", [maps], size)


# ------------------------------------------------------------------------------------------------------------- results


@each_dtype
@pytest.mark.parametrize(
    ("vectors", "elements", "shift"),
    [(0, 5, 0), (0, 37, 0), (3, 0, 0), (32, 0, 0), (40, 0, 0), (64, 0, 0), (3, 0, 1)],
    ids=["odd", "odd-chunks", "vectors", "warp", "chunks", "pairs", "shifted"],
)
def test_every_width_of_access(kernels, dtype, vectors, elements, shift):
    """Channels by elements, 16 bytes and twice 16 bytes; in several blocks; at addresses that 16 does not divide."""
    channels = elements + vectors * 16 // dtype.itemsize
    check_all(kernels, dtype, box_grid(8, 14, seed=2), ragged(3, 0, 5), channels, 9, 17, 7, shift)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 20, 33])
def test_every_size_of_patch(kernels, dtype, size):
    """Fewer and more samples than a piece, a block's rows and the columns that it keeps."""
    check_all(kernels, dtype, box_grid(7, 14, seed=size), ragged(2, 4, 0, 1), 8, 10, 15, size)


@pytest.mark.parametrize(("count", "size"), [(70, 7), (300, 2), (60, 12)], ids=["list", "threads", "pieces"])
def test_more_regions_than_a_block_lists(kernels, count, size):
    check_all(kernels, torch.float32, box_grid(count + 2, 9), ragged(count, 2), 4, 9, 10, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("vectors", [1, 32, 64])
def test_more_terms_than_a_block_keeps(kernels, dtype, vectors):
    """All samples of all patches lie in few cells."""
    boxes = box_grid(9, 9, seed=5) * 0.02 + 3
    check_all(kernels, dtype, torch.cat([boxes, boxes.flip(1)]), ragged(18), vectors * 16 // dtype.itemsize, 7, 8, 8)


@pytest.mark.parametrize(("height", "width"), [(60, 70), (3, 300), (300, 3), (1, 1), (1, 9), (9, 1)])
def test_maps_of_every_shape(kernels, height, width):
    """Regions of more cells, rows and columns than are kept at once; a single row, column or cell."""
    span = float(max(height, width))
    boxes = torch.cat([box_grid(5, span), torch.tensor([[-1.0, -1, span, span], [span, span, 0, -2]])])
    check_all(kernels, torch.float32, boxes, ragged(3, 4), 3, height, width, 3)


@pytest.mark.parametrize(("counts", "channels"), [((), 4), ((0, 0), 4), ((2, 1), 0)], ids=str)
def test_nothing_to_do(kernels, counts, channels):
    check_all(kernels, torch.float32, box_grid(sum(counts), 4), ragged(*counts), channels, 4, 5, 3)


@each_dtype
def test_the_mean_is_that_of_a_division(kernels, dtype):
    """To the bit, for images of 1, 2, 3 ... regions that lie upon each other; and of infinities."""
    counts = range(1, 100)
    ptr, boxes = ragged(*counts), torch.tensor([[0.0, 0, 1, 1]]).repeat(sum(counts), 1)
    patches = (normal(len(boxes), 3, 2, 2) * 100).round().to(dtype)  # their sums are exact
    patches[-1, 0], patches[-2:, 1] = INF, torch.tensor([INF, -INF]).view(2, 1, 1)
    got = run(kernels, "paste_mean", [torch.zeros(len(counts), 3, 2, 2, dtype=dtype), patches], boxes, ptr, 2, (2, 2))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for image, (count, own) in enumerate(zip(counts, patches.to(exact).split(tuple(counts)), strict=True)):
        assert torch.equal(got[image].nan_to_num(7), (own.sum(0) / count).to(dtype).nan_to_num(7))
    assert (got[-1, 0] == INF).all()
    assert got[-1, 1].isnan().all()


def test_regions_of_no_image(kernels):
    """A ptr that does not rise from 0 to the number of regions leaves some out: their patches are zero, and unused."""
    boxes, ptr, own = box_grid(6, 9, seed=3), torch.tensor([1, 3, 4]), slice(1, 4)
    maps, patches = normal(2, 4, 9, 10).float(), normal(6, 4, 3, 3).float()
    for name in ("crop_resize", "paste_mean_backward", "crop_resize_backward", "paste_mean"):
        clamp = [False] if name.startswith("crop") else []

        def result(boxes, patches, ptr, name=name, clamp=clamp):
            floats = {"crop_resize_backward": [patches], "paste_mean": [maps, patches]}.get(name, [maps])
            return run(kernels, name, floats, boxes, ptr, 3, (9, 10), clamp)

        got, alone = result(boxes, patches, ptr), result(boxes[own], patches[own], ptr - 1)
        if len(got) == len(boxes):
            assert not got[0].any() and not got[4:].any()
            got = got[own]
        assert alone.any()
        assert bits_equal(got, alone)


def test_a_grid_that_no_gpu_can_launch_is_refused(kernels):
    """Nothing runs: there are no arrays."""
    shape = calls.Shape(2**31, 0, 4, 8, 8, 7)
    assert calls.call(kernels, "crop_resize_backward", "float32", shape, 0, 0, 0, False, 0) == 9


# ------------------------------------------------------------------------------------------- as irnet's implementation


@pytest.fixture(scope="module")
def on_cpu(kernels):
    """The kernels are implementation "cuda" of the operators for tensors on the CPU, while this file's tests run."""

    def launch(name, floats, boxes, ptr, size, cells, clamp=()):
        numbers, shape = shapes(name, floats, boxes, ptr, size, cells)
        out = numerics.empty_map(floats[0], torch.empty(shape, device="meta").permute(0, 3, 1, 2).shape)
        inputs = [t.contiguous(memory_format=torch.channels_last) for t in floats]
        inputs += [boxes.contiguous(), ptr.contiguous()]
        dtype = str(out.dtype).removeprefix("torch.")
        addresses = [t.data_ptr() for t in inputs]
        assert calls.call(kernels, name, dtype, numbers, *addresses, *clamp, out.data_ptr()) == 0
        return out

    implementations = {
        "crop_resize": lambda features, boxes, ptr, size, border: launch(
            "crop_resize", [features], boxes, ptr, size, features.shape[2:], [border == "clamp"]
        ),
        "crop_resize_backward": lambda grad, boxes, ptr, height, width, border: launch(
            "crop_resize_backward", [grad], boxes, ptr, grad.shape[2], (height, width), [border == "clamp"]
        ),
        "paste_mean": lambda memory, patches, boxes, ptr: launch(
            "paste_mean", [memory, patches], boxes, ptr, patches.shape[2], memory.shape[2:]
        ),
        "paste_mean_backward": lambda grad, boxes, ptr, size: launch(
            "paste_mean_backward", [grad], boxes, ptr, size, grad.shape[2:]
        ),
    }
    with torch.library._scoped_library("irnet", "IMPL") as registered:
        for name, implementation in implementations.items():
            registered.impl(f"{name}.cuda", implementation, "CPU")
        yield


@pytest.mark.parametrize("seed", range(40))
def test_random_scenes(on_cpu, seed):
    """Shapes, dtypes, layouts, odd boxes, NaN and infinities where no weight is; the bits of one image alone."""
    fuzz.check(fuzz.random_scene(seed), "cuda", "cpu")


@pytest.mark.parametrize("border", ["zero", "clamp"])
@pytest.mark.parametrize("dtype", calls.DTYPES)
def test_odd_boxes(on_cpu, border, dtype):
    edges = list(itertools.product((0.0, 3.0, 9.0, 1e30, -1e30, 3.4e38, INF, -INF, NAN), repeat=2))
    boxes = (*((a, 1.0, b, 6.0) for a, b in edges), *((6.0, a, 0.5, b) for a, b in edges))
    scene = fuzz.Scene((80, 0, 82), 3, 7, 10, 4, border, dtype, ("contiguous",) * 5, boxes, 1, 0)
    fuzz.check(scene, "cuda", "cpu")
    fuzz.check(replace(scene, size=1), "cuda", "cpu")


# ------------------------------------------------------------------------------------------------- barriers and bounds


def test_no_box_and_no_ptr_leads_beyond_an_array(folder):
    """A program of its own, under sanitizers; the last line that it prints tells of the call that they stopped."""
    flags = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(sanitizer):
        pytest.skip("g++ has no AddressSanitizer (apt install libasan8 or the like)")
    path = calls.build(HERE / "calls.cpp", folder / "sanitized.so", *flags)
    settings = {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, str(HERE / "unsound.py"), str(path), "80"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, [*done.stdout.splitlines()[-1:], done.stderr[:3000]]
    assert len(done.stdout.splitlines()) == 80


REVERSE = """
#include <cuda_runtime.h>

__global__ void reverse_kernel(const int* in, int* out, unsigned synchronized) {
    __shared__ int values[64];
    values[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x < synchronized) __syncthreads();
    const int value = values[63 - threadIdx.x];
    out[threadIdx.x] = value + __ballot_sync(~0u, threadIdx.x % 2);
}

extern "C" void set_order(unsigned order) { cuda_on_cpu::order = order; }
extern "C" int reverse(const int* in, int* out, unsigned synchronized) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(64);
    return cudaLaunchKernelEx(&config, reverse_kernel, in, out, synchronized);
}
"""


def test_the_stand_in_for_cuda_finds_faults(folder, capfd):
    """Without a barrier results depend on the order of the threads; where only some of them wait, the launch fails."""
    (folder / "reverse.cpp").write_text(REVERSE)
    library = ctypes.CDLL(str(calls.build(folder / "reverse.cpp", folder / "reverse.so", "-O1")))
    numbers, out = (ctypes.c_int * 64)(*range(64)), (ctypes.c_int * 64)()

    def results(synchronized: int) -> set[tuple[int, ...]]:
        found = set()
        for order in calls.ORDERS:
            library.set_order(order)
            assert library.reverse(numbers, out, synchronized) == 0
            found.add(tuple(out))
        return found

    odd_threads = ctypes.c_int(0xAAAAAAAA).value
    assert results(synchronized=64) == {tuple(63 - i + odd_threads for i in range(64))}
    assert len(results(synchronized=0)) > 1
    for synchronized in (32, 63):
        assert library.reverse(numbers, out, synchronized) == 719
        assert "wait for others that do not come" in capfd.readouterr().err


EXCHANGES = """
#include <cuda_runtime.h>

__global__ void exchange_kernel(const int* in, int* out) {
    const int before = __shfl_up_sync(~0u, in[threadIdx.x], 2, 8);
    const int after = __shfl_up_sync(~0u, before, 1, 32);  // while other threads still read what was sent before
    out[threadIdx.x] = before;
    out[64 + threadIdx.x] = after;
    out[128 + threadIdx.x] = __syncthreads_or(in[threadIdx.x] == 63);
    out[192 + threadIdx.x] = __syncthreads_or(in[threadIdx.x] == 64);
}

extern "C" void set_order(unsigned order) { cuda_on_cpu::order = order; }
extern "C" int exchange(const int* in, int* out) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(64);
    return cudaLaunchKernelEx(&config, exchange_kernel, in, out);
}
"""


def test_the_stand_in_for_cuda_exchanges_between_threads(folder):
    (folder / "exchange.cpp").write_text(EXCHANGES)
    library = ctypes.CDLL(str(calls.build(folder / "exchange.cpp", folder / "exchange.so", "-O1")))
    numbers, out = (ctypes.c_int * 64)(*range(64)), (ctypes.c_int * 256)()
    before = [i - 2 if i % 8 >= 2 else i for i in range(64)]
    after = [before[i - 1] if i % 32 else before[i] for i in range(64)]
    for order in calls.ORDERS:
        library.set_order(order)
        assert library.exchange(numbers, out) == 0
        assert list(out) == before + after + [1] * 64 + [0] * 64


# ---------------------------------------------------------------------------------------------------------------- nvcc


def test_nvcc_compiles_for_every_target_without_spills():
    sources = [source for source in here(cuda_sources) if source.path.stem.removesuffix("_kernel") in SOURCES]
    rows = [row for source in sources for row in here(cuda_resources, source)]
    names = {re.search(r"\w+_kernel", row.kernel)[0] for row in rows}
    assert names == {f"{name}_{kernel}_kernel" for name, kernels in SOURCES.items() for kernel in kernels}
    assert {row.target for row in rows} == {"sm_80", "sm_90", "sm_100"}
    for row in rows:
        assert row.spill_bytes == row.stack_bytes == 0, f"{row.kernel} for {row.target}: {row.figures()}"
        assert row.shared_bytes <= 48 * 1024, f"{row.kernel} for {row.target}: {row.figures()}"
