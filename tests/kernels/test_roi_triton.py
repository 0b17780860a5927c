"""The Triton kernels of the region operators: interpreted on the CPU, compiled where there is a GPU, and compiled ahead
of time where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import itertools

import pytest
import torch
from torch import Tensor

from irnet_kernels import dispatch
from irnet_kernels.aot import compiled
from irnet_kernels.aot.compiled import TritonKernel
from irnet_kernels.roi import reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_exact, assert_within_budget, box_grid, each_dtype, normal, ragged
from tests.kernels.triton_modules import Noted, copy_on, guarded, load
from tests.tools import here

INF, NAN = float("inf"), float("nan")
BORDERS = ("zero", "clamp")

# NumPy's, where the interpreter computes with infinite boxes, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


@pytest.fixture(scope="module", params=["interpreted", "cuda"])
def roi(request):
    """A fresh copy of the module with its launchers; they run on `roi.device`."""
    first = torch.ones(1, 1, 1, 1), box(0, 0, 0, 0), ragged(1), 1, "zero"
    return copy_on(request.param, "roi", lambda module: run(module, "crop_resize", first))


def box(*corners: float) -> Tensor:
    return torch.tensor([corners], dtype=torch.float32)


class Scene:
    """Boxes, ptr, and seeded maps and patches in float64."""

    def __init__(self, counts, boxes=None, channels=3, height=4, width=5, size=3):
        self.ptr, regions = ragged(*counts), sum(counts)
        self.boxes = box_grid(regions, max(height, width)) if boxes is None else boxes
        self.size, self.height, self.width = size, height, width
        self.maps = normal(len(counts), channels, height, width)
        self.patches = normal(regions, channels, size, size, seed=1)

    def calls(self, dtype: torch.dtype) -> dict[str, tuple]:
        """The arguments of every launcher, by its name; after the name stands the border."""
        boxes, ptr = self.boxes, self.ptr
        maps, patches = (t.to(dtype) for t in (self.maps, self.patches))
        found = {}
        for border in BORDERS:
            found[f"crop_resize {border}"] = (maps, boxes, ptr, self.size, border)
            found[f"crop_resize_backward {border}"] = (patches, boxes, ptr, self.height, self.width, border)
        if self.size > 1:
            found["paste_mean"] = (maps, patches, boxes, ptr)
            found["paste_mean_backward"] = (maps, boxes, ptr, self.size)
        return found


def run(roi, name: str, arguments: tuple) -> Tensor:
    """A launcher's result on the CPU."""
    moved = (a.to(roi.device) if isinstance(a, Tensor) else a for a in arguments)
    return getattr(roi, name.split()[0])(*moved).cpu()


def defined(name: str, arguments: tuple, dtype: torch.dtype) -> Tensor:
    """The reference's result for maps and patches in `dtype`."""
    cast = (a.to(dtype) if isinstance(a, Tensor) and a.dim() == 4 else a for a in arguments)
    return getattr(reference, name.split()[0])(*cast)


def check(roi, scene: Scene, dtype: torch.dtype = torch.float32) -> None:
    """All kernels against the reference in float64, by the rule of irnet_kernels.testing."""
    for name, arguments in scene.calls(dtype).items():
        got, exact = run(roi, name, arguments), defined(name, arguments, torch.float64)
        assert got.is_contiguous(memory_format=torch.channels_last), name
        if dtype == torch.float64:
            assert_exact(got, exact)
        else:
            assert_within_budget(got, exact, defined(name, arguments, dtype), name)


# ------------------------------------------------------------------------------------------------------------- results


@each_dtype
def test_kernels_keep_the_budget(roi, dtype):
    check(roi, Scene((2, 0, 2), channels=5, height=4, width=6, size=4), dtype)


def test_float64_is_exact(roi):
    check(roi, Scene((2, 0, 2)), torch.float64)


def test_bfloat16_is_rounded_to_nearest(roi):
    """Means of two neighbours, exact in float32."""
    maps = normal(1, 64, 1, 2).bfloat16()
    got = run(roi, "crop_resize", (maps, box(0.5, 0, 0.5, 0), ragged(1), 1, "zero"))
    assert bits_equal(got[..., 0], maps.float().mean(-1).bfloat16())


@pytest.mark.parametrize("channels", [1, 24, 600])
def test_any_number_of_channels(roi, channels):
    """600 are more than a program has."""
    check(roi, Scene((2,), channels=channels))


@pytest.mark.parametrize("size", [1, 2, 9])
def test_any_size_of_patches(roi, size):
    """9 samples are more than a program has at once."""
    boxes = torch.tensor([[-0.25, 0.5, 3.5, 4.25], [3, 4, 0.5, 0.75]])
    check(roi, Scene((2,), boxes, height=5, width=4, size=size))


def test_boxes_much_larger_than_their_patches(roi):
    """A sample's neighbours are more rows and columns of cells than are weighted at once."""
    boxes = torch.tensor([[-1.0, 0.5, 6, 18], [6, 17.5, -3, 1]])
    check(roi, Scene((2,), boxes, channels=2, height=19, width=7, size=2))


def test_more_regions_than_are_looked_at_together(roi):
    check(roi, Scene((34, 2), channels=2, height=2, width=4, size=2))


def test_sums_go_in_the_order_of_the_regions(roi):
    """1e8 + 1 - 1e8 is 0 in float32 in this order only, wherever the three regions stand."""
    for places in ((0, 1, 2), (29, 30, 31), (0, 31, 32), (31, 33, 64)):
        boxes, patches = torch.full((65, 4), NAN), torch.zeros(65, 1, 2, 2)
        for place, value in zip(places, (1e8, 1.0, -1e8), strict=True):
            boxes[place], patches[place] = box(0, 0, 1, 1), value
        zero = torch.zeros(1, 1, 2, 2)
        grad = run(roi, "crop_resize_backward", (patches, boxes, ragged(65), 2, 2, "zero"))
        assert torch.equal(grad, zero), places
        assert torch.equal(run(roi, "paste_mean", (zero, patches, boxes, ragged(65))), zero), places


@pytest.mark.parametrize(
    ("counts", "channels", "shape"),
    [((), 3, (4, 4)), ((0, 0), 3, (4, 4)), ((2,), 0, (4, 4)), ((2,), 3, (1, 6)), ((2,), 3, (6, 1))],
    ids=["no-images", "no-regions", "no-channels", "H1", "W1"],
)
def test_small_and_empty_sets(roi, counts, channels, shape):
    check(roi, Scene(counts, channels=channels, height=shape[0], width=shape[1]))


# -------------------------------------------------------------------------------------------------------------- boxes


def test_odd_boxes(roi):
    """Without extent, inverted, huge, infinite, NaN; between two plain ones of their image."""
    boxes = [
        (0, 0, 2, 2),
        (1, 1, 1, 3),
        (2, 2, 2, 2),
        (3, 3, 0, 0),
        (0, 0, 1e30, 1e30),
        (-1e30, -1e30, 1e30, 1e30),
        (1e30, 1e30, 2e30, 2e30),
        (0, 0, 1e-42, 1e-42),
        (0, 0, INF, 2),
        (0, -INF, 2, 2),
        (-INF, -INF, INF, INF),
        (INF, INF, INF, INF),
        (NAN, 0, 2, 2),
        (0, 0, 2, NAN),
        (8, 8, 9, 9),
        (0.5, 1, 3, 2.5),
    ]
    check(roi, Scene((len(boxes),), torch.tensor(boxes), channels=1, height=3, width=4, size=3))


def test_extents_beyond_float32(roi):
    """They are infinite, though the edges are not: there is nothing; in float64 there is the middle."""
    boxes, maps, patches = box(-3e38, 0, 3e38, 2), torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    for dtype, found in ((torch.float32, 0), (torch.float64, 1)):
        maps, patches = maps.to(dtype), patches.to(dtype)
        assert run(roi, "crop_resize", (maps, boxes, ragged(1), 3, "clamp"))[0, 0, :, 1].eq(found).all()
        assert run(roi, "crop_resize_backward", (patches, boxes, ragged(1), 3, 3, "zero")).any() == found
        assert run(roi, "paste_mean", (0 * maps, patches, boxes, ragged(1))).any() == found
        assert run(roi, "paste_mean_backward", (maps, boxes, ragged(1), 3)).any() == found


def test_small_weights_are_not_lost(roi):
    """Samples and cells are nearly one apart: who looks only next to them misses a weight of 5e-4."""
    boxes = torch.tensor([[0.0005, 0.9995, 3.0005, 3.9995], [2.9995, 3.0005, -0.0005, 0.0005]])
    check(roi, Scene((2,), boxes, size=4))


def telling_edges(cells: int, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Edges (low, high) of boxes along one axis for which less exact arithmetic finds other samples or cells.

    A sample or a cell lies within a few roundings of where the border's tolerance ends. Of the first `count` a sample
    changes if a multiply-add rounds once, of the others a cell if the division is a product with the reciprocal.
    """
    generator = torch.Generator().manual_seed(0)
    step, place, kind = (torch.rand(20_000, generator=generator) * n for n in (2, size, 4))
    extent, place = (step + 0.1) * (size - 1), place.floor()
    first = torch.stack(
        [
            -1e-4 - place * extent / (size - 1),  # sample `place` is 1e-4 below the map,
            cells - 1 + 1e-4 - place * extent / (size - 1),  # or above
            1 + 1e-4 * extent / (size - 1),  # cell 1 is 1e-4 below the patch,
            3 - extent - 1e-4 * extent / (size - 1),  # or cell 3 above
        ]
    )
    low = first.gather(0, kind.long()[None])[0]
    high = low + extent
    low, high = (t.nextafter(t + kind.frac() - 0.5) for t in (low, high))

    def differ(exact, rough, points):
        inside, other = ((at >= -1e-4) & (at <= points - 1 + 1e-4) for at in (exact, rough))
        return (inside != other).any(1).nonzero()[:count, 0]

    low, high = low[:, None], high[:, None]
    step, index, cell = (high - low) / (size - 1), torch.arange(size), torch.arange(cells)
    crops = differ(low + index * step, (low.double() + index * step.double()).float(), cells)
    pastes = differ((cell - low) / (high - low) * (size - 1), (cell - low) * (1 / (high - low)) * (size - 1), size)
    chosen = torch.cat([crops, pastes])
    assert len(chosen) == 2 * count
    return low[chosen, 0], high[chosen, 0]


def test_positions_agree_to_the_bit(roi):
    """Maps and patches of ones show by zeros which samples and cells there are."""
    cells, size, count = 5, 4, 3 if roi.device == "cpu" else 60
    low, high = telling_edges(cells, size, count)
    # Telling ones on one axis, plain ones on the other.
    boxes = torch.stack([low, torch.zeros_like(low), high, torch.full_like(high, 4)], 1)
    boxes = torch.cat([boxes, boxes[:, [1, 0, 3, 2]]])
    ptr, ones = torch.arange(len(boxes) + 1), torch.ones(len(boxes), 1, size, size)
    maps = torch.ones(len(boxes), 1, cells, cells)

    crops = (maps, boxes, ptr, size, "zero")
    inside = defined("crop_resize", crops, torch.float32) > 0
    assert torch.equal(run(roi, "crop_resize", crops) > 0, inside)
    covered = reference.coverage(boxes, ptr, size, cells, cells) > 0
    assert torch.equal(run(roi, "paste_mean", (0 * maps, ones, boxes, ptr))[:, 0] > 0, covered)
    # By the gradients every sample and every cell that is there is shared out once.
    grad = run(roi, "crop_resize_backward", (ones, boxes, ptr, cells, cells, "zero")).sum((1, 2, 3))
    assert torch.equal(grad.round(), inside.sum((1, 2, 3)).float())
    shares = run(roi, "paste_mean_backward", (maps, boxes, ptr, size)).sum((1, 2, 3))
    assert torch.equal(shares.round(), covered.sum((1, 2)).float())


@pytest.mark.parametrize(
    ("dtype", "odd"),
    [(torch.float32, 0x7FC12345), (torch.bfloat16, 0x7FC5), (torch.float16, 0x7E21)],
    ids=["float32", "bfloat16", "float16"],
)
def test_uncovered_cells_keep_their_bits(roi, dtype, odd):
    """Negative zeros and the payloads of NaN stay; a patch's NaN do not leak out of its box."""
    memory = normal(1, 3, 4, 6).to(dtype)
    memory[..., ::2] = -0.0
    memory[..., 1, :] = torch.tensor([odd], dtype=torch.int32 if dtype.itemsize == 4 else torch.int16).view(dtype)
    patches, boxes = torch.full((2, 3, 2, 2), NAN, dtype=dtype), torch.cat([box(3, 3, 3, 3), box(4, 2, 5, 3)])
    got = run(roi, "paste_mean", (memory, patches, boxes, ragged(2)))
    outside = torch.ones(4, 6, dtype=torch.bool)
    outside[2:, 4:] = False
    assert bits_equal(got[..., outside], memory[..., outside])
    assert got[..., ~outside].isnan().all()


def test_what_is_not_touched_is_not_read(roi):
    """With a sample on every cell all kernels are the identity, and NaN stay where they are."""
    given = torch.ones(1, 1, 5, 5)
    given[..., 1::2, :] = NAN
    given[..., 1::2] = NAN
    boxes, ptr = box(0, 0, 4, 4), ragged(1)
    for name, arguments in (
        ("crop_resize", (given, boxes, ptr, 5, "zero")),
        ("crop_resize_backward", (given, boxes, ptr, 5, 5, "clamp")),
        ("paste_mean", (torch.zeros_like(given), given, boxes, ptr)),
        ("paste_mean_backward", (given, boxes, ptr, 5)),
    ):
        assert torch.equal(run(roi, name, arguments).nan_to_num(7), given.nan_to_num(7)), name


# ------------------------------------------------------------------------------------------------------ memory and bits


@pytest.fixture
def zones(roi, monkeypatch):
    """Outputs lie between guard zones, and all is 77 at first; a list of what was allocated."""
    found = []

    def empty_map(like, shape):
        found.append(guarded(torch.full(shape, 77.0, dtype=like.dtype, device=like.device), 77.0))
        return found[-1][0]

    monkeypatch.setattr(roi, "empty_map", empty_map)
    return found


def assert_just_the_output_was_written(zones) -> None:
    out, whole = (t.clone() for t in zones[-1])
    assert not (out == 77).any(), "not all of the output was written"
    assert int((whole != 77).sum()) == out.numel(), "something outside of the output was written"


@pytest.mark.parametrize(
    "ptr",
    [(0, 9, 5), (-4, 2, 5), (5, 3, 0), (-(2**62), 2**62, 0), (7, 8, 9), (0, 5, 2**40)],
    ids=str,
)
def test_unsound_ptr_stays_within_the_tensors(roi, zones, ptr):
    """NaN around the inputs would show in the output."""
    scene = Scene((3, 2), height=2, width=4, size=2)
    scene.ptr = torch.tensor(ptr)
    for name, arguments in scene.calls(torch.float32).items():
        moved = (a.to(roi.device) if isinstance(a, Tensor) else a for a in arguments)
        placed = [guarded(a, 2**33 if a.dim() == 1 else NAN)[0] if isinstance(a, Tensor) else a for a in moved]
        got = run(roi, name, tuple(placed))
        assert got.isfinite().all(), name
        if ptr == (7, 8, 9) and name != "paste_mean":
            assert not got.any(), f"{name}: regions that no image owns"
        assert_just_the_output_was_written(zones)


def test_regions_without_an_image_are_zero(roi, zones):
    crops = run(roi, "crop_resize", (torch.empty(0, 3, 4, 4), box_grid(2, 3), ragged(), 3, "zero"))
    assert torch.equal(crops, torch.zeros(2, 3, 3, 3))
    assert_just_the_output_was_written(zones)
    boxes, ptr = box(0, 0, 2, 2).expand(4, 4), torch.tensor([2, 4])
    for name, arguments in (("crop_resize", (3, "zero")), ("paste_mean_backward", (3,))):
        got = run(roi, name, (torch.ones(1, 3, 4, 4), boxes, ptr, *arguments))
        assert not got[:2].any() and (got[2:] > 0).all(), name


def test_bits_do_not_depend_on_the_batch(roi):
    scene = Scene((2, 0, 2), height=2)
    for name, arguments in scene.calls(torch.float32).items():
        together = run(roi, name, arguments)
        for image, (low, high) in enumerate(itertools.pairwise(scene.ptr.tolist())):
            own = {3: slice(image, image + 1), 4: slice(low, high)}  # of 3 maps, or of 4 patches or boxes
            parts = (a[own[len(a)]] if isinstance(a, Tensor) else a for a in arguments)
            alone = [ragged(high - low) if a is scene.ptr else part for a, part in zip(arguments, parts, strict=True)]
            assert bits_equal(run(roi, name, tuple(alone)), together[own[len(together)]]), name


def test_any_strides_give_the_same_bits(roi):
    """With gaps, transposed, and in channels_last, but not on a boundary of 16 bytes."""

    def gaps(t):
        return torch.stack([t, t + 1], -1)[..., 0]

    def transposed(t):
        return t.mT.contiguous().mT if t.dim() > 1 else t

    def shifted(t):
        packed, whole = guarded(t, 7)
        moved = whole.roll(1).as_strided(t.shape, packed.stride(), packed.storage_offset() + 1)
        assert moved.data_ptr() % 16
        return moved

    scene = Scene((2,), channels=16, height=2, width=4, size=2)
    for name, arguments in scene.calls(torch.float32).items():
        wanted = run(roi, name, arguments)
        for layout in (gaps, transposed, shifted):
            moved = (layout(a.to(roi.device)) if isinstance(a, Tensor) else a for a in arguments)
            assert bits_equal(run(roi, name, tuple(moved)), wanted), (name, layout)


def test_gradients_are_adjoints(roi):
    """<crop(f), g> = <f, crop'(g)> and <paste(0, p), m> = <p, paste'(m)>, relative to the sum of the magnitudes."""
    scene = Scene((2, 0, 2))
    calls = scene.calls(torch.float64)
    calls["paste_mean"] = (torch.zeros_like(scene.maps), *calls["paste_mean"][1:])
    results = {name: run(roi, name, arguments) for name, arguments in calls.items()}
    pairs = [(results["paste_mean"] * scene.maps, results["paste_mean_backward"] * scene.patches)]
    for border in BORDERS:
        crops, gradient = results[f"crop_resize {border}"], results[f"crop_resize_backward {border}"]
        pairs.append((crops * scene.patches, gradient * scene.maps))
    for left, right in pairs:
        assert abs(left.sum() - right.sum()) <= 1e-12 * left.abs().sum()


# -------------------------------------------------------------------------------------------------------- ahead of time


def test_kernels_compile_for_every_target_without_spills():
    for kernel in load("roi", interpret=False).kernels():
        for row in here(compiled.triton_resources, TritonKernel(**kernel)):
            assert row.spill_bytes == 0, row


def test_a_single_channel_compiles():
    """Triton makes a constant of an argument that is 1; the interpreter does not."""
    for kernel in load("roi", interpret=False).kernels(channels=1)[:6]:
        constants, types = dict(kernel["constexprs"]), dict(kernel["types"])
        constants["channels"] = 1
        del types["channels"]
        changed = kernel | {"types": types, "constexprs": constants, "multiples_of_16": ()}
        assert here(compiled.triton_resources, TritonKernel(**changed), [90])


def test_what_is_compiled_ahead_is_what_is_launched(monkeypatch):
    """The launchers with 512 channels, and kernels that only note how they are launched."""
    module, launches = load("roi", interpret=False), []
    shipped = [(kernel["function"].__name__, kernel["constexprs"]) for kernel in module.kernels()]
    arguments = {kernel["function"].__name__: len(kernel["types"]) for kernel in module.kernels()}

    for name in arguments:
        monkeypatch.setattr(module, name, Noted(getattr(module, name), launches))
    for dtype in (torch.float32, torch.bfloat16):
        for name, given in Scene((1,), channels=512, height=2, width=2, size=2).calls(dtype).items():
            getattr(module, name.split()[0])(*given)
    every = module.SCHEDULE | module.OPTIONS
    assert every["enable_fp_fusion"] is False
    for name, _, given, options in launches:
        assert len(given) == arguments[name]
        shipped.remove((name, {key: value for key, value in options.items() if key not in every}))
        assert every.items() <= options.items()
    assert not shipped


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load("roi", interpret=False)
    for name in ("crop_resize", "crop_resize_backward", "paste_mean", "paste_mean_backward"):
        wanted = [argument.name for argument in dispatch.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]
