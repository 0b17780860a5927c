"""What is special about the C++ kernels: instruction sets, conversions of 16-bit numbers, chunks, memory, threads."""

import os
import subprocess
import sys

import pytest
import torch

import irnet_kernels
from irnet_kernels import counts, crop_resize, paste_mean
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_within_budget, box_grid, cpu_path, each_dtype, evaluate, normal, ragged

if "cpp" not in irnet_kernels.available()["crop_resize"]["cpu"]:
    pytest.skip(f"no C++ kernels: {irnet_kernels.extension.native_reason()}", allow_module_level=True)

CPU = torch.device("cpu")
# PyTorch's names for what this processor has; it believes who asks for more.
CAPABILITIES = ["default", "avx2", "avx512"]
CAPABILITIES = CAPABILITIES[: {"AVX2": 2, "AVX512": 3}.get(torch.backends.cpu.get_cpu_capability(), 1)]
each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def blend(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """[N] and [N] -> [N]: 0.5 low + 0.5 high by crop_resize, the numbers as channels."""
    features = torch.stack([low, high], -1)[None, :, None]  # [1, N, 1, 2]
    boxes = torch.tensor([[0.5, 0, 0.5, 0]])
    return crop_resize(features, boxes, ragged(1), 1, impl="cpp").flatten()


def same(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """One NaN is like the other, and 0 + (-0) is 0."""
    return torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got[~got.isnan()], wanted[~wanted.isnan()])


def each_number(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(2**16).to(torch.int32).to(torch.uint16).view(dtype)


@each_half
def test_every_number_is_read_and_written(dtype):
    """Subnormal numbers, both zeros, infinities and NaN."""
    numbers = each_number(dtype)
    features = numbers.view(1, -1, 1, 1)
    got = crop_resize(features, torch.zeros(1, 4), ragged(1), 1, impl="cpp").flatten()
    assert same(got, numbers)


@each_half
def test_rounding_is_to_the_nearest_even(dtype):
    """Between every number and its neighbour, and between numbers at random."""
    numbers = each_number(dtype)
    shuffled = numbers[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    for other in (numbers.roll(1), shuffled):
        assert same(blend(numbers, other), (0.5 * numbers.float() + 0.5 * other.float()).to(dtype))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """The tests of the operators and those above, in a process that may use no more than this one."""
    if os.environ.get("ATEN_CPU_CAPABILITY"):
        pytest.skip("the instruction set is already chosen")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "cpp or number or rounding or beyond",
    ]
    command += [__file__, os.path.join(os.path.dirname(__file__), "test_roi.py")]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("border", ["zero", "clamp"])
@pytest.mark.parametrize(
    ("channels", "size", "height", "width", "span"),
    [(1030, 3, 4, 5, 4), (3, 33, 6, 6, 2), (5, 2, 70, 140, 130), (17, 16, 70, 140, 130), (2, 7, 300, 3, 290)],
    ids=["channels", "samples-per-cell", "cells-per-sample", "blocks", "tall"],
)
def test_sums_beyond_a_chunk(channels, size, height, width, span, border):
    """More channels, terms and cells than are worked on at once, against the reference."""
    boxes, ptr = box_grid(9, span), ragged(4, 0, 5)
    maps, patches = (3, channels, height, width), (9, channels, size, size)

    def results(impl, dtype):
        leaves = [
            normal(*shape, seed=seed).float().to(dtype).requires_grad_() for seed, shape in enumerate((maps, patches))
        ]
        crop = evaluate(lambda f: crop_resize(f, boxes, ptr, size, border=border, impl=impl), leaves[:1])
        return crop + evaluate(lambda m, p: paste_mean(m, p, boxes, ptr, impl=impl), leaves)

    float32 = torch.float32
    for got, exact, reference in zip(
        results("cpp", float32), results("reference", torch.float64), results("reference", float32), strict=True
    ):
        assert_within_budget(got, exact, reference)


def test_memory_beyond_the_result_is_indices_of_the_regions():
    """The same for a map of any size and any number of channels, and a few hundred bytes for every region."""

    def beyond(regions: int, channels: int, height: int, width: int) -> list[int]:
        features, patches = normal(2, channels, height, width).float(), normal(regions, channels, 7, 7).float()
        features, patches = (t.contiguous(memory_format=torch.channels_last) for t in (features, patches))
        boxes, ptr, ops = box_grid(regions, 10), ragged(regions, 0), torch.ops.irnet
        calls = [
            (lambda: ops.crop_resize.cpp(features, boxes, ptr, 7, "zero"), patches),
            (lambda: ops.crop_resize_backward.cpp(patches, boxes, ptr, height, width, "zero"), features),
            (lambda: ops.paste_mean.cpp(features, patches, boxes, ptr), features),
            (lambda: ops.paste_mean_backward.cpp(features, boxes, ptr, 7), patches),
        ]
        return [counts.count(call, CPU).allocated_bytes - result.nbytes for call, result in calls]

    few = beyond(10, 8, 12, 9)
    assert few[0] == 0
    assert beyond(10, 64, 40, 60) == few
    assert beyond(20, 8, 12, 9) == [2 * n for n in few]
    assert max(few) <= 10 * 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bits_are_those_of_one_image_on_one_thread(dtype):
    """Batches of 16 and of 1, on 1 and 2 threads, in the shape of a real feature map."""
    images, regions, channels, height, width = 16, 20, 64, 38, 63
    boxes = box_grid(images * regions, 60)
    features, patches = normal(images, channels, height, width).to(dtype), normal(len(boxes), channels, 7, 7).to(dtype)

    def run(start: int, stop: int, threads: int) -> list[torch.Tensor]:
        own = slice(start * regions, stop * regions)
        some, bounds = boxes[own], ragged(*[regions] * (stop - start))
        torch.set_num_threads(threads)
        maps, parts = features[start:stop].clone().requires_grad_(), patches[own].clone().requires_grad_()
        crop = evaluate(lambda f: crop_resize(f, some, bounds, impl="cpp"), [maps])
        paste = evaluate(lambda m, p: paste_mean(m, p, some, bounds, impl="cpp"), [maps, parts])
        # The upstream gradients of a batch are not those of its images alone: compare them where they are the same.
        return crop + paste if stop - start == images else [crop[0], paste[0]]

    together = run(0, images, 1)
    assert all(map(bits_equal, together, run(0, images, 2)))
    for image in (0, 7, 15):
        for threads in (1, 2):
            crop, paste = run(image, image + 1, threads)
            assert bits_equal(crop, together[0][image * regions : (image + 1) * regions])
            assert bits_equal(paste, together[2][image : image + 1])


@each_dtype
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_bits_are_the_same_with_and_without_streaming_stores(large, dtype):
    """Results of more than 2 MiB may be stored past the caches: all four are, or none is."""
    images, regions, channels, height, width = (2, 140, 192, 50, 60) if large else (2, 20, 192, 9, 8)
    maps, patches = (images, channels, height, width), (regions, channels, 7, 7)
    assert all((torch.Size(s).numel() * dtype.itemsize > 2**21) == large for s in (maps, patches))
    boxes, ptr = box_grid(regions, min(height, width)), ragged(*[regions // images] * images)
    leaves = [normal(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate((maps, patches))]

    def results(streams: bool) -> list[torch.Tensor]:
        with cpu_path("streaming_stores", streams):
            crop = evaluate(lambda f: crop_resize(f, boxes, ptr, impl="cpp"), leaves[:1])
            return crop + evaluate(lambda m, p: paste_mean(m, p, boxes, ptr, impl="cpp"), leaves)

    assert all(map(bits_equal, results(False), results(True)))


F, B, P, G = torch.zeros(2, 3, 4, 5), torch.zeros(3, 4), ragged(1, 2), torch.zeros(3, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: op.crop_resize.cpp(F, B, ragged(1, 1, 1), 4, "zero"), "an entry for every map"),
        (lambda op: op.crop_resize.cpp(F, B, P, 0, "zero"), "at least 1"),
        (lambda op: op.crop_resize.cpp(F, B, P[:0], 4, "zero"), "ptr must be"),
        (lambda op: op.crop_resize_backward.cpp(G, B, P, -1, 4, "zero"), "rows and columns"),
        (lambda op: op.crop_resize_backward.cpp(G[:2], B, P, 4, 4, "zero"), "patches must be"),
        (lambda op: op.paste_mean.cpp(F, G[:, :2], B, P), "patches must be"),
        (lambda op: op.paste_mean.cpp(F, G[:, :, :1, :1], B, P), "at least 2"),
        (lambda op: op.paste_mean_backward.cpp(F, B, P, 1), "at least 2"),
    ],
)
def test_operators_called_past_the_public_functions_stay_in_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ops.irnet)
