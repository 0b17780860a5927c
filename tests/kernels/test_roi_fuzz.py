"""crop_resize and paste_mean on random scenes, with an unsound `ptr`, and again and again.

IRNET_FUZZ is the number of cases (100), IRNET_FUZZ_SEED the first one's seed (0): see `make fuzz`.
"""

import os

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from irnet_kernels import crop_resize, paste_mean
from irnet_kernels.dispatch import overload
from irnet_kernels.testing import bits_equal
from tests.kernels import fuzz
from tests.kernels.helpers import box_grid, each_dtype, each_implementation, normal, ragged

CASES, SEED = int(os.environ.get("IRNET_FUZZ", 100)), int(os.environ.get("IRNET_FUZZ_SEED", 0))


def cases(impl: str) -> int:
    """Triton's interpreter takes seconds for one, and its compiler for every new kind of arguments."""
    return -(-CASES // 20) if impl == "triton" else CASES


def interpreted(impl: str, device: str) -> bool:
    return impl == "triton" and device == "cpu"


def drawn(impl: str):
    """As many examples of Hypothesis, the same for the same seed."""
    chosen = hypothesis.settings(
        max_examples=cases(impl),
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],  # it goes by the clock
    )
    return lambda test: hypothesis.seed(SEED)(chosen(test))


@each_implementation("crop_resize")
def test_random_scenes(impl, device):
    for seed in range(SEED, SEED + cases(impl)):
        try:
            fuzz.check(fuzz.random_scene(seed, interpreted(impl, device)), impl, device)
        except Exception as error:
            test = os.environ["PYTEST_CURRENT_TEST"].split()[0]
            error.add_note(f"again: IRNET_FUZZ_SEED={seed} IRNET_FUZZ=1 python -m pytest '{test}'")
            raise


@each_implementation("crop_resize")
def test_drawn_scenes(impl, device):
    """Hypothesis prints the smallest scene that fails; `fuzz.check` makes it again."""

    @drawn(impl)
    @hypothesis.given(scene=fuzz.scenes(interpreted(impl, device)))
    def search(scene):
        fuzz.check(scene, impl, device)

    search()


IMAGES, REGIONS = 3, 5
bounds = st.integers(-2, REGIONS + 2) | st.integers(-(2**63), 2**63 - 1)


@each_implementation("crop_resize")
def test_unsound_ptr(impl, device):
    """Where the host can look at it, it is refused; on a GPU nothing outside the tensors is touched (see memcheck)."""
    maps, patches = normal(IMAGES, 3, 4, 5).float().to(device), normal(REGIONS, 3, 4, 4).float().to(device)
    boxes = box_grid(REGIONS, 4).to(device)

    def calls(ptr):
        yield overload("crop_resize", impl), (maps, boxes, ptr, 4, "zero"), patches.shape
        yield overload("crop_resize_backward", impl), (patches, boxes, ptr, 4, 5, "zero"), maps.shape
        yield overload("paste_mean", impl), (maps, patches, boxes, ptr), maps.shape
        yield overload("paste_mean_backward", impl), (maps, boxes, ptr, 4), patches.shape

    @drawn(impl)
    @hypothesis.given(ptr=st.lists(bounds, min_size=IMAGES + 1, max_size=IMAGES + 1))
    def search(ptr):
        hypothesis.assume(ptr[0] != 0 or ptr[-1] != REGIONS or ptr != sorted(ptr))
        for operator, arguments, shape in calls(torch.tensor(ptr, device=device)):
            if impl in ("reference", "cpp"):
                with pytest.raises(ValueError, match="ptr must rise from 0 to the number of regions"):
                    operator(*arguments)
            else:
                assert operator(*arguments).cpu().shape == shape

    search()
    fuzz.check(fuzz.random_scene(1, interpreted(impl, device)), impl, device)  # nothing has broken


@each_implementation("crop_resize")
@each_dtype
def test_same_bits_in_every_run(impl, device, dtype):
    """Forward and backward, over maps and boxes that keep many threads busy at once."""
    if interpreted(impl, device):
        pytest.skip("the interpreter runs one program after the other")
    runs, images, regions, channels = (100, 16, 24, 256) if device != "cpu" else (10, 3, 9, 40)
    boxes, ptr = box_grid(images * regions, 30).to(device), ragged(*[regions] * images).to(device)
    maps = normal(images, channels, 31, 33).to(dtype).to(device).requires_grad_()
    patches = normal(images * regions, channels, 7, 7, seed=1).to(dtype).to(device).requires_grad_()
    torch.set_num_threads(3)

    def run():
        crops = crop_resize(maps, boxes, ptr, 7, impl=impl)
        pasted = paste_mean(maps, patches, boxes, ptr, impl=impl)
        gradients = torch.autograd.grad(crops, maps, patches), torch.autograd.grad(pasted, patches, maps)
        return crops, pasted, gradients[0][0], gradients[1][0]

    first = run()
    for _ in range(runs - 1):
        assert all(map(bits_equal, first, run()))


@each_implementation("crop_resize")
def test_more_than_2_to_the_31_elements(impl, device):
    """What lies at the end of a large map is as in a small one. Most of its memory is never touched."""
    if impl == "reference":
        pytest.skip("the reference computes with every cell of a map")
    if device != "cpu" and torch.cuda.mem_get_info()[0] < 2**35:
        pytest.skip("needs 32 GiB of free GPU memory")
    channels, height, width, size = 1024, 1024, 1025, 5  # a step is a quarter of a box: positions are exact anywhere
    shape = (3, channels, height, width)  # the last one begins beyond
    large = torch.empty(shape, dtype=torch.bfloat16, device=device, memory_format=torch.channels_last)
    corner = slice(2, 3), slice(None), slice(-8, None), slice(-8, None)
    large[corner] = normal(1, channels, 8, 8).to(large)
    small = large[corner].contiguous(memory_format=torch.channels_last)
    patches = normal(3, channels, size, size, seed=1).to(large)
    boxes = box_grid(3, 7).clamp(0, 7).to(device)
    shift = torch.tensor([width - 8.0, height - 8.0] * 2, device=device)

    def collected(maps, boxes, ptr):
        yield overload("crop_resize", impl)(maps, boxes, ptr, size, "zero")
        yield overload("paste_mean_backward", impl)(maps, boxes, ptr, size)

    def spread(maps, boxes, ptr):
        yield overload("crop_resize_backward", impl)(patches, boxes, ptr, *maps.shape[2:], "zero")
        yield overload("paste_mean", impl)(maps, patches, boxes, ptr)

    at_end, alone = (large, boxes + shift, ragged(0, 0, 3).to(device)), (small, boxes, ragged(3).to(device))
    assert all(map(bits_equal, collected(*at_end), collected(*alone)))
    if device != "cpu":  # they write maps of 6 GiB
        assert all(bits_equal(a[corner], b) for a, b in zip(spread(*at_end), spread(*alone), strict=True))
