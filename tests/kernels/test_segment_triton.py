"""The Triton kernels of segment_matmul and segment_outer: interpreted on the CPU, compiled where there is a GPU, and
compiled ahead of time where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import itertools
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from irnet_kernels import dispatch
from irnet_kernels.aot import compiled, machine_code
from irnet_kernels.aot.compiled import TARGETS, TritonKernel
from irnet_kernels.segment import reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_exact, assert_within_budget, each_dtype, normal, ragged
from tests.kernels.triton_modules import Noted, copy_on, guarded, load
from tests.tools import here

NAN, INF = float("nan"), float("inf")
TRITON_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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


@pytest.mark.parametrize("width", [16, 21], ids=["aligned", "odd"])
def test_tensors_may_begin_at_any_address(segment, width):
    """16-byte loads want rows that begin at multiples of 16 bytes: others are copied, also if only the first is off."""
    for name, arguments in Rows((5, 0, 3), depth=24, width=width).calls(torch.bfloat16).items():
        wanted = run(segment, name, arguments)
        for offset in (1, 4):
            moved = [torch.cat([a.new_full((offset,), NAN), a.flatten()])[offset:].view(a.shape) for a in arguments[:2]]
            if "turned" in name:
                flat = arguments[1].mT.flatten()
                moved[1] = torch.cat([flat.new_full((offset,), NAN), flat])[offset:].view(arguments[1].mT.shape).mT
            assert [a.storage_offset() for a in moved] == [offset, offset]
            assert bits_equal(run(segment, name, (*moved, arguments[2])), wanted), (name, offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 8, 130, 1025])
def test_rows_are_copied_to_multiples_of_16_bytes(segment, dtype, width):
    """Values as they are, then zeros; what is aligned already is the same tensor."""
    x = normal(5, 3, width).to(dtype).to(segment.device)
    got = segment._aligned(x)
    unit = 16 // dtype.itemsize
    assert got.shape == (5, 3, -(-width // unit) * unit) and got.is_contiguous()
    assert bits_equal(got[..., :width], x) and not got[..., width:].any()
    assert (got is x) == (width % unit == 0)
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert moved.data_ptr() % 16 and segment._aligned(moved).data_ptr() % 16 == 0
    assert bits_equal(segment._aligned(moved), got)


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


@pytest.mark.parametrize(
    ("dtype", "targets"),
    [(torch.float32, TARGETS), (torch.bfloat16, TARGETS), (torch.float16, [90])],
    ids=["float32", "bfloat16", "float16"],
)
def test_kernels_load_16_bytes_at_a_time_and_spill_nothing(dtype, targets):
    """At any width: the kernels know of no width but whether rows of their result are multiples of 16 bytes. In 16 bits
    they multiply with a warpgroup's instruction on sm_90, and with tensor memory on sm_100."""
    products = {80: "HMMA.16816", 90: "HGMMA.64x128x16", 100: "UTCHMMA"}
    for kernel in load("segment", interpret=False).kernels(dtypes=(dtype,)):
        assert not kernel.get("multiples_of_16"), "no width is promised to be one"
        for code in here(machine_code.read, TritonKernel(**kernel), targets):
            assert code.resources.spill_bytes == 0 and not code.mix.local, code
            if kernel["function"].__name__ == "segment_align_kernel":
                assert set(code.mix.stores) == {"STG 128"}, code
                continue
            assert set(code.hottest.mix.loads) == {"LDGSTS 128"}, code
            assert ("STG 128" in code.mix.stores) == kernel["constexprs"]["ALIGNED"], code
            if dtype.itemsize == 2:
                (product,) = code.hottest.mix.matrix
                assert product.startswith(products[int(code.resources.target[3:])]), code


def test_offsets_are_64_bits_wide(monkeypatch):
    """What is multiplied in 32 bits, a constant is one of: depth times width of an image may be 2^31 and more."""
    module, triton, made = load("segment", interpret=False), pytest.importorskip("triton"), []
    compile_ = triton.compile
    monkeypatch.setattr(triton, "compile", lambda *given, **named: made.append(compile_(*given, **named)) or made[-1])
    for kernel in module.kernels(dtypes=(torch.float32,)):
        here(compiled.triton_resources, TritonKernel(**kernel), [90])
        code = made[-1].asm["ttir"]
        constants = set(re.findall(r"(%\w+) = arith\.constant", code))
        products = re.findall(r"arith\.muli (%\w+), (%\w+) : (?:tensor<\w+x)?i32", code)
        assert products, "the pattern finds them"
        assert all(constants & set(factors) for factors in products), (kernel["function"].__name__, products)


def test_products_of_tf32_few_channels_and_float64_compile():
    """Blocks are smaller for few channels."""
    module = load("segment", interpret=False)
    for kernel in module.kernels(dtypes=(torch.float32,)):
        if "PRECISION" in kernel["constexprs"]:
            tf32 = kernel | {"constexprs": kernel["constexprs"] | {"PRECISION": "tf32"}}
            assert all(not row.spill_bytes for row in here(compiled.triton_resources, TritonKernel(**tf32), [80, 90]))
    for channels in (1, 24):
        for kernel in module.kernels(channels=channels):
            assert all(not row.spill_bytes for row in here(compiled.triton_resources, TritonKernel(**kernel), [90]))
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
    """One each, and one for every operand whose rows are no multiples of 16 bytes, for any number of images and rows;
    what tensors hold is not known here (see noted)."""
    module = load("segment", interpret=False)
    for images in (1, 5, 40):
        for depth, width, copies in ((8, 16, 0), (4, 16, 2), (8, 3, 4), (4, 3, 6)):
            names = [name for name, *_ in noted(module, Rows([images] * images, depth, width), torch.bfloat16)]
            assert names.count("segment_align_kernel") == copies and len(names) == 3 + copies, (depth, width)


@pytest.mark.parametrize("sizes", [(512, 512), (512, 1485), (1485, 512), (1500, 512), (130, 150)], ids=str)
def test_what_is_compiled_ahead_is_what_is_launched(sizes):
    """For many channels, whatever their numbers, the kernels are the same; copies of shorter rows have other tiles."""
    module = load("segment", interpret=False)
    seen = {
        module_kernel(module, *launch) for dtype in DTYPES for launch in noted(module, Rows((300, 3), *sizes), dtype)
    }
    shipped = {shipped_kernel(kernel) for kernel in module.kernels(dtypes=DTYPES)}
    small = {one for one in seen if one[0] == "segment_align_kernel" and ("BLOCK_N", 256) in one[2]}
    assert seen - small <= shipped and bool(small) == (sizes == (130, 150))


def test_all_that_is_compiled_ahead_is_launched():
    module, seen = load("segment", interpret=False), set()
    for sizes, dtype in itertools.product(((512, 512), (512, 1485), (1485, 512)), DTYPES):
        seen |= {module_kernel(module, *launch) for launch in noted(module, Rows((300, 3), *sizes), dtype)}
    assert {shipped_kernel(kernel) for kernel in module.kernels(dtypes=DTYPES)} == seen


def module_kernel(module, name: str, grid: tuple, given: tuple, named: dict) -> tuple:
    """What a launch compiles: name, types, constants and options."""
    placed = zip(getattr(module, name).arg_names, given, strict=False)
    types = {key: TRITON_NAMES[value.dtype] if isinstance(value, Tensor) else "i32" for key, value in placed}
    return name, frozenset(types.items()), frozenset(named.items())


def shipped_kernel(kernel: dict) -> tuple:
    options = {key: value for key, value in kernel.items() if key.startswith("num_")}
    whole = kernel["constexprs"] | options
    return kernel["function"].__name__, frozenset(kernel["types"].items()), frozenset(whole.items())


@pytest.mark.parametrize(("allowed", "wanted"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_float32_is_rounded_to_tf32_where_pytorch_may(allowed, wanted):
    module = load("segment", interpret=False)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = allowed
    try:
        for dtype, expected in ((torch.float32, wanted), (torch.bfloat16, "ieee")):
            found = {named["PRECISION"] for *_, named in noted(module, Rows((2,), 8, 8), dtype)}
            assert found == {expected}
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load("segment", interpret=False)
    for name in ("segment_matmul", "segment_outer"):
        wanted = [argument.name for argument in dispatch.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]
