"""The Triton kernels of segment_matmul and segment_outer: interpreted on the CPU, compiled where there is a GPU, and
compiled ahead of time where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from irnet.bench import compiled
from irnet.bench.compiled import TritonKernel
from irnet_kernels import library
from irnet_kernels.segment import reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_exact, assert_within_budget, each_dtype, normal, ragged
from tests.kernels.triton_modules import Noted, copy_on, guarded, load
from tests.tools import here

NAN, INF = float("nan"), float("inf")
TRITON_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}

# NumPy's, where the interpreter computes with infinite values, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(scope="module", params=["interpreted", "cuda"])
def segment(request):
    """A fresh copy of the module with its launchers; they run on `segment.device`."""
    first = Rows((1,), 1, 1).calls(torch.float32)["segment_outer"]
    return copy_on(request.param, "segment", lambda module: run(module, "segment_outer", first))


class Rows:
    """Seeded float64 values of images with so many rows."""

    def __init__(self, counts: Sequence[int], depth: int, width: int):
        self.counts, self.ptr = counts, ragged(*counts)
        self.x, self.y = normal(sum(counts), depth), normal(sum(counts), width, seed=1)
        self.other = normal(len(counts), depth, width, seed=2)

    def calls(self, dtype: torch.dtype) -> dict[str, tuple]:
        """The arguments of the launchers, by name; the second one is what a gradient asks for."""
        x, y, other = (t.to(dtype) for t in (self.x, self.y, self.other))
        return {
            "segment_matmul": (x, other, self.ptr),
            "segment_matmul turned": (y, other.mT, self.ptr),
            "segment_outer": (x, y, self.ptr),
        }


def run(module, name: str, arguments: tuple) -> Tensor:
    """A launcher's result on the CPU."""
    return getattr(module, name.split()[0])(*(a.to(module.device) for a in arguments)).cpu()


def defined(name: str, arguments: tuple, dtype: torch.dtype) -> Tensor:
    """The reference's result, computed in `dtype`."""
    return getattr(reference, name.split()[0])(*(a.to(dtype) for a in arguments[:2]), arguments[2])


def check(module, scene: Rows, dtype: torch.dtype = torch.float32) -> None:
    """All launchers against the reference in float64, by the rule of irnet_kernels.testing."""
    for name, arguments in scene.calls(dtype).items():
        got, exact = run(module, name, arguments), defined(name, arguments, torch.float64)
        assert got.is_contiguous(), name
        if dtype == torch.float64:
            assert_exact(got, exact)
        else:
            assert_within_budget(got, exact, defined(name, arguments, dtype), name)


def small_blocks(module, monkeypatch) -> None:
    """Several blocks of everything, with few rows and columns."""
    sixteen = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(module, "TILES", dict.fromkeys((2, 4, 8), sixteen))


# ------------------------------------------------------------------------------------------------------------- results


@each_dtype
def test_kernels_keep_the_budget(segment, dtype):
    """Images of several blocks, of few rows, of one and of none; no size is a multiple of a block's."""
    check(segment, Rows((140, 0, 1, 9), depth=20, width=13), dtype)


@each_dtype
def test_several_blocks_of_everything(segment, monkeypatch, dtype):
    small_blocks(segment, monkeypatch)
    check(segment, Rows((33, 0, 5), depth=40, width=37), dtype)


def test_float64_is_exact(segment):
    check(segment, Rows((17, 0, 3), depth=5, width=18), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_wide_rows(segment, dtype):
    """More columns than a program has, in the blocks that are shipped."""
    check(segment, Rows((3, 2), depth=150, width=140), dtype)


@pytest.mark.parametrize(
    ("counts", "depth", "width"),
    [((), 3, 2), ((0, 0), 3, 2), ((2, 1), 0, 2), ((2, 1), 2, 0), ((1,), 1, 1)],
    ids=["no-images", "no-rows", "no-depth", "no-width", "one"],
)
def test_small_and_empty_sets(segment, counts, depth, width):
    check(segment, Rows(counts, depth, width))


def test_every_image_has_the_programs_that_it_needs(segment, monkeypatch):
    """Each row is multiplied with its own image's number, wherever images begin and end."""
    small_blocks(segment, monkeypatch)
    for counts in ((15, 16, 17, 1), (0, 31, 33, 0, 0, 2), (1, 1, 1, 48), (64,), (7, 0, 57), (0, 0, 16)):
        numbers = torch.arange(len(counts), dtype=torch.float32)
        ones = torch.ones(sum(counts), 1)
        got = run(segment, "segment_matmul", (ones, numbers[:, None, None], ragged(*counts)))
        assert got.flatten().tolist() == numbers.repeat_interleave(torch.tensor(counts)).tolist(), counts
        assert run(segment, "segment_outer", (ones, ones, ragged(*counts))).flatten().tolist() == list(counts)


def test_images_do_not_see_each_other(segment):
    """Neither NaN nor infinities reach another image, though they stand in the same block."""
    scene = Rows((3, 2, 4), depth=5, width=6)
    wanted = {name: run(segment, name, arguments) for name, arguments in scene.calls(torch.float32).items()}
    scene.x[3:5], scene.y[3:5], scene.other[1] = NAN, INF, NAN
    for name, arguments in scene.calls(torch.float32).items():
        got = run(segment, name, arguments)
        for image in (0, 2):
            own = image if len(got) == 3 else slice(*scene.ptr[image : image + 2].tolist())
            assert bits_equal(got[own], wanted[name][own]), name
        assert not got[1 if len(got) == 3 else slice(3, 5)].isfinite().any(), name


# ------------------------------------------------------------------------------------------------------ memory and bits


def test_same_bits_whatever_memory_held(segment, monkeypatch):
    """What is allocated is filled with NaN at the second call."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name, arguments in Rows((20, 0, 3), depth=9, width=5).calls(torch.bfloat16).items():
        first = run(segment, name, arguments)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            assert bits_equal(run(segment, name, arguments), first), name
        finally:
            torch.use_deterministic_algorithms(False)


def test_bits_do_not_depend_on_the_batch(segment, monkeypatch):
    small_blocks(segment, monkeypatch)
    scene = Rows((18, 0, 33, 1), depth=20, width=5)
    for name, arguments in scene.calls(torch.float32).items():
        together = run(segment, name, arguments)
        for image, (low, high) in enumerate(itertools.pairwise(scene.ptr.tolist())):
            own = {2: slice(low, high), 3: slice(image, image + 1)}
            parts = [a[own[a.dim()]] for a in arguments[:2]]
            alone = run(segment, name, (*parts, ragged(high - low)))
            assert bits_equal(alone, together[own[together.dim()]]), name


def test_any_strides_give_the_same_bits(segment):
    def gaps(t):
        return torch.stack([t, t + 1], -1)[..., 0]

    def transposed(t):
        return t.mT.contiguous().mT if t.dim() > 1 else t

    for name, arguments in Rows((5, 0, 3), depth=16, width=18).calls(torch.float32).items():
        wanted = run(segment, name, arguments)
        for layout in (gaps, transposed):
            moved = tuple(layout(a.to(segment.device)) for a in arguments)
            assert bits_equal(run(segment, name, moved), wanted), (name, layout)


@pytest.mark.parametrize(
    "ptr",
    [(0, 9, 5), (-4, 2, 5), (5, 3, 0), (-(2**62), 2**62, 0), (7, 8, 9), (0, 5, 2**40)],
    ids=str,
)
def test_unsound_ptr_stays_within_the_tensors(segment, ptr):
    """NaN around the inputs would show in what was written; the interpreter dies far outside."""
    scene = Rows((3, 2), depth=3, width=4)
    scene.ptr = torch.tensor(ptr)

    for name, (a, b, bounds) in scene.calls(torch.float32).items():
        arguments = guarded(a, NAN)[0], guarded(b, NAN)[0], guarded(bounds, 2**33)[0]
        got = run(segment, name, arguments)
        assert name != "segment_outer" or got.isfinite().all()


# -------------------------------------------------------------------------------------------------------- ahead of time


def test_kernels_compile_for_every_target_without_spills():
    for kernel in load("segment", interpret=False).kernels():
        for row in here(compiled.triton_resources, TritonKernel(**kernel)):
            assert row.spill_bytes == 0, row


def test_products_of_tf32_odd_channels_and_float64_compile():
    """Of a single channel Triton makes a constant, the interpreter does not; 24 are no multiple of a block."""
    module = load("segment", interpret=False)
    for kernel in module.kernels(dtypes=(torch.float32,)):
        tf32 = kernel | {"constexprs": kernel["constexprs"] | {"PRECISION": "tf32"}}
        assert all(not row.spill_bytes for row in here(compiled.triton_resources, TritonKernel(**tf32), [80, 90]))
    for kernel in module.kernels(channels=1):
        one = {name: 1 for name in ("depth", "height", "width") if name in kernel["types"]}
        types = {name: type_ for name, type_ in kernel["types"].items() if name not in one}
        changed = {"types": types, "constexprs": kernel["constexprs"] | one, "multiples_of_16": ()}
        assert here(compiled.triton_resources, TritonKernel(**(kernel | changed)), [90])
    for kernel in module.kernels(channels=24):
        assert here(compiled.triton_resources, TritonKernel(**(kernel | {"multiples_of_16": ()})), [90])
    for kernel in module.kernels(dtypes=(torch.float64,)):
        assert all(not row.spill_bytes for row in here(compiled.triton_resources, TritonKernel(**kernel), [80, 90]))


def noted(module, scene: Rows, dtype: torch.dtype) -> list[tuple]:
    """The launches (kernel, grid, arguments, named arguments) of all launchers, on tensors without values: looking at
    one on the host raises."""
    launches, fake = [], FakeTensorMode()
    with pytest.MonkeyPatch.context() as patch:
        for name in {kernel["function"].__name__ for kernel in module.kernels()}:
            patch.setattr(module, name, Noted(getattr(module, name), launches))
        for name, arguments in scene.calls(dtype).items():
            given = [fake.from_tensor(a) for a in arguments]
            with fake:
                getattr(module, name.split()[0])(*given)
    return launches


def test_launches_follow_from_shapes_alone():
    """One each, for any number of images and rows; what tensors hold is not known here (see noted)."""
    module = load("segment", interpret=False)
    for images in (1, 5, 40):
        assert len(noted(module, Rows([images] * images, 4, 3), torch.bfloat16)) == 3


def test_what_is_compiled_ahead_is_what_is_launched():
    module = load("segment", interpret=False)
    shipped, seen = module.kernels(), []
    for dtype in (torch.float32, torch.bfloat16):
        for name, _, given, named in noted(module, Rows((512, 3), 512, 512), dtype):
            placed = dict(zip(getattr(module, name).arg_names, given, strict=False))
            types = {key: TRITON_NAMES[v.dtype] if isinstance(v, Tensor) else "i32" for key, v in placed.items()}
            for kernel in shipped:
                options = {key: value for key, value in kernel.items() if key.startswith("num_")}
                whole = kernel["constexprs"] | options
                if (name, types, named) == (kernel["function"].__name__, kernel["types"], whole):
                    seen.append(shipped.index(kernel))
                    assert all(placed[key] % 16 == 0 for key in kernel["multiples_of_16"])
    assert seen == list(range(len(shipped)))


@pytest.mark.parametrize(("allowed", "wanted"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_float32_is_rounded_to_tf32_where_pytorch_may(allowed, wanted):
    module = load("segment", interpret=False)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = allowed
    try:
        for dtype, expected in ((torch.float32, wanted), (torch.bfloat16, "ieee")):
            found = {named["PRECISION"] for *_, named in noted(module, Rows((2,), 3, 3), dtype)}
            assert found == {expected}
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load("segment", interpret=False)
    for name in ("segment_matmul", "segment_outer"):
        wanted = [argument.name for argument in library.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]
