"""The Triton kernels of propagate and propagate_regions: interpreted on the CPU, compiled where there is a GPU, and
compiled ahead of time where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from irnet_kernels import EdgeSet, dispatch, numerics
from irnet_kernels.aot import compiled
from irnet_kernels.aot.compiled import TritonKernel
from irnet_kernels.graph import reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import (
    assert_exact,
    assert_within_budget,
    box_grid,
    each_dtype,
    normal,
    ragged,
    random_edges,
)
from tests.kernels.triton_modules import Noted, copy_on, guarded, load
from tests.tools import here

NAN = float("nan")
TRITON_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}

# NumPy's, where the interpreter computes with infinite values, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


@pytest.fixture(scope="module", params=["interpreted", "cuda"])
def graph(request):
    """A fresh copy of the module with its launchers; they run on `graph.device`."""
    first = Typed(1, [1], 1, 1).calls(torch.float32)["propagate"]
    return copy_on(request.param, "graph", lambda module: run(module, "propagate", first))


class Typed:
    """Calls of propagate: seeded float64 values on `nodes` nodes, with so many random edges of each type."""

    def __init__(self, nodes: int, counts: list[int], channels: int, outputs: int, images: int = 1, edges=None):
        triples = random_edges(nodes, counts) if edges is None else edges
        self.edges = EdgeSet.from_edges(triples, nodes)
        self.x, self.grad = normal(images, nodes, channels), normal(images, nodes, outputs, seed=1)
        self.weight = normal(len(triples), channels, outputs, seed=2)

    def calls(self, dtype: torch.dtype) -> dict[str, tuple]:
        """The arguments of both launchers, by name."""
        x, grad, weight = (t.to(dtype) for t in (self.x, self.grad, self.weight))
        return {
            "propagate": (x, self.edges.tensors(), weight),
            "propagate_backward": (grad, x, self.edges.tensors(), weight),
        }


class Regions:
    """Calls of propagate_regions: seeded float64 values and boxes of images with so many regions."""

    def __init__(self, counts: Sequence[int], channels: int, outputs: int, boxes: Tensor | None = None):
        regions = sum(counts)
        self.boxes, self.ptr = box_grid(regions, 200, step=0.25) if boxes is None else boxes, ragged(*counts)
        self.x, self.grad = normal(regions, channels), normal(regions, outputs, seed=1)
        self.weight = normal(5, channels, outputs, seed=2)
        self.bandwidth = torch.tensor(40.0)

    def calls(self, dtype: torch.dtype) -> dict[str, tuple]:
        """The arguments of both launchers, by name."""
        x, grad, weight = (t.to(dtype) for t in (self.x, self.grad, self.weight))
        graph, bandwidth = (self.boxes, self.ptr), self.bandwidth.to(numerics.opmath_dtype(dtype))
        return {
            "propagate_regions": (x, *graph, weight, bandwidth),
            "propagate_regions_backward": (grad, x, *graph, weight, bandwidth, True),
        }

    def slope_magnitude(self, dtype: torch.dtype) -> tuple[Tensor, float]:
        """The sum of the magnitudes that the bandwidth's gradient adds up, and how many roundings enter each.

        An adjacency of exp(-a) carries four roundings of a, and few others; then come sums over an image's regions,
        over channels and types, and over all results.
        """
        x, grad, weight = (t.to(dtype).double().abs() for t in (self.x, self.grad, self.weight))
        total, most = torch.zeros(()).double(), 0.0
        for low, high in itertools.pairwise(self.ptr.tolist()):
            sides, beyond, _ = reference._pairs(self.boxes[low:high], torch.float64)
            beyond = torch.where(sides, beyond, 0)
            adjacency = reference.region_adjacency(self.boxes[low:high], self.bandwidth, torch.float64)[:4]
            spread = adjacency * (beyond + (adjacency * beyond).sum(2, keepdim=True)) / self.bandwidth**2
            total += torch.einsum("tij,jd,tde,ie->", spread, x[low:high], weight[:4], grad[low:high])
            most = max([most, *(beyond[adjacency > 1e-7] / self.bandwidth).tolist()])
        return total, 4 * most + 16


def run(module, name: str, arguments: tuple) -> list[Tensor]:
    """A launcher's results on the CPU."""
    found = getattr(module, name)(*tree_map_only(Tensor, lambda t: t.to(module.device), arguments))
    return [t.cpu() for t in ((found,) if isinstance(found, Tensor) else found)]


def defined(name: str, arguments: tuple, dtype: torch.dtype) -> list[Tensor]:
    """The reference's results, computed in `dtype`, boxes and edges left alone."""
    schema = dispatch.overload(name, "reference")._schema.arguments
    values = ("x", "grad", "weight")
    cast = [a.to(dtype) if s.name in values else a for a, s in zip(arguments, schema, strict=True)]
    if "regions" in name:
        at = [s.name for s in schema].index("bandwidth")
        cast[at] = cast[at].to(numerics.opmath_dtype(dtype))
    found = getattr(reference, name)(*cast)
    return [found] if isinstance(found, Tensor) else list(found)


def check(module, scene, dtype: torch.dtype = torch.float32) -> None:
    """All launchers against the reference in float64, by the rule of irnet_kernels.testing."""
    for name, arguments in scene.calls(dtype).items():
        got = run(module, name, arguments)
        exact, plain = (defined(name, arguments, compute) for compute in (torch.float64, dtype))
        for index, (g, e, p) in enumerate(zip(got, exact, plain, strict=True)):
            assert g.is_contiguous(), name
            if name == "propagate_regions_backward" and index == 2 and dtype != torch.float64:
                # A single number: a sum that may cancel, of which the reference's own error is no measure.
                magnitude, roundings = scene.slope_magnitude(dtype)
                assert g.dtype == torch.float32
                assert abs(g.double() - e) <= roundings * torch.finfo(torch.float32).eps / 2 * magnitude
            elif dtype == torch.float64:
                assert_exact(g, e)
            else:
                assert_within_budget(g, e, p, f"{name} {index}")


# ----------------------------------------------------------------------------------------------------------- propagate


@each_dtype
def test_propagate_keeps_the_budget(graph, dtype):
    """Images, empty types, nodes with many edges and with none; channels are no power of two."""
    check(graph, Typed(5, [14, 0, 9], channels=7, outputs=5, images=2), dtype)


def test_propagate_in_float64_is_exact(graph):
    """Edges of float64 keep their digits, too."""
    edges = [(src, dst, weight.double() / 3) for src, dst, weight in random_edges(4, [9, 3])]
    check(graph, Typed(4, [], channels=3, outputs=2, images=2, edges=edges), torch.float64)


def test_more_channels_than_a_program_has(graph, monkeypatch):
    monkeypatch.setattr(graph, "CHANNELS", {4: (16, 4)})
    check(graph, Typed(3, [7], channels=37, outputs=18))


@pytest.mark.parametrize(
    ("nodes", "images", "channels", "outputs"),
    [(0, 2, 3, 2), (3, 0, 3, 2), (3, 1, 0, 2), (3, 1, 2, 0)],
    ids=["no-nodes", "no-images", "no-channels", "no-outputs"],
)
def test_propagate_of_nothing(graph, nodes, images, channels, outputs):
    scene = Typed(nodes, [], channels, outputs, images, edges=random_edges(max(nodes, 1), [4 if nodes else 0, 0]))
    check(graph, scene)


def test_images_in_groups(graph, monkeypatch):
    """Five images of three nodes, two of them in a buffer; the results are those of one buffer, to the bit."""
    scene = Typed(3, [5, 4], channels=3, outputs=4, images=5)
    whole = {name: run(graph, name, arguments) for name, arguments in scene.calls(torch.float32).items()}
    monkeypatch.setattr(graph, "GROUP", 8)
    buffers, sums = [], graph._sums
    monkeypatch.setattr(graph, "_sums", lambda *a: buffers.append(sums(*a)) or buffers[-1])
    check(graph, scene)
    assert [len(b) for b in buffers] == 2 * [6, 6, 3]
    for dtype in (torch.float32, torch.bfloat16):
        check(graph, scene, dtype)
    out, (d_x, _) = (run(graph, name, arguments) for name, arguments in scene.calls(torch.float32).items())
    assert bits_equal(out[0], whole["propagate"][0])
    assert bits_equal(d_x, whole["propagate_backward"][0])


def test_sums_go_in_the_order_of_the_edges(graph):
    """1e8 + 1 - 1e8 is 0 in float32 in this order only, wherever the three edges stand."""
    for places in ((0, 1, 2), (6, 7, 8), (2, 9, 17)):
        src = torch.arange(18)
        edges = EdgeSet.from_edges([(src, torch.zeros(18).long(), torch.ones(18))], 18)
        x = torch.zeros(1, 18, 1)
        x[0, list(places), 0] = torch.tensor([1e8, 1.0, -1e8])
        (got,) = run(graph, "propagate", (x, edges.tensors(), torch.ones(1, 1, 1)))
        assert not got.any(), places


def test_only_neighbours_are_read(graph):
    """Where an edge leads a NaN does; unused lanes of a block of edges read nothing."""
    edges = EdgeSet.from_edges([(torch.tensor([1, 2]), torch.tensor([2, 1]), torch.ones(2))], 4)
    x = torch.tensor([NAN, 1.0, 2.0, NAN]).view(1, 4, 1)
    (got,) = run(graph, "propagate", (x, edges.tensors(), torch.ones(1, 1, 1)))
    assert got.flatten().tolist() == [0, 2, 1, 0]


def test_sums_of_edges_may_overflow_in_float16(graph):
    """A x is beyond 65504; a weight makes it small again, and one of 0 makes no NaN of it."""
    src, dst = torch.tensor([0, 1, 2, 2]), torch.tensor([2, 2, 0, 1])
    edges = EdgeSet.from_edges([(src, dst, torch.ones(4))], 3)
    x, weight = torch.full((1, 3, 1), 60000.0).half(), torch.tensor([[[2**-6, 0.0]]]).half()
    grad = torch.tensor([60000.0, 1.0]).expand(1, 3, 2).half()
    calls = {"propagate": (x, edges.tensors(), weight), "propagate_backward": (grad, x, edges.tensors(), weight)}
    for name, arguments in calls.items():
        wanted = [t.to(torch.float16) for t in defined(name, arguments, torch.float64)]
        assert wanted[0].isfinite().all()
        torch.testing.assert_close(run(graph, name, arguments), wanted, rtol=2**-10, atol=0)


# --------------------------------------------------------------------------------------------------- propagate_regions


@each_dtype
def test_regions_keep_the_budget(graph, dtype):
    """Images of several blocks of rows, of few regions, of one and of none."""
    check(graph, Regions((70, 0, 1, 6), channels=7, outputs=5), dtype)


def test_regions_in_float64_are_exact(graph):
    """Images of two blocks."""
    check(graph, Regions((19, 1, 0, 17), channels=3, outputs=2), torch.float64)


def test_regions_of_more_channels_than_a_program_has(graph):
    check(graph, Regions((5, 2), channels=130, outputs=3))


@pytest.mark.parametrize(
    ("counts", "channels", "outputs"),
    [((), 3, 2), ((0, 0), 3, 2), ((2, 1), 0, 2), ((2, 1), 2, 0)],
    ids=["no-images", "no-regions", "no-channels", "no-outputs"],
)
def test_regions_of_nothing(graph, counts, channels, outputs):
    check(graph, Regions(counts, channels, outputs))


@pytest.mark.parametrize("block", [16, 32])
def test_every_image_has_the_programs_that_it_needs(graph, block):
    """A weight that copies what a region's only neighbour on the left has, wherever images begin and end."""
    for counts in ((15, 16, 17, 1), (0, 31, 33, 0, 0, 2), (1, 1, 1, 48), (64,), (7, 0, 57)):
        regions = sum(counts)
        place = torch.cat([torch.arange(n) for n in counts]).float()
        boxes = torch.stack([1e6 * place, 0 * place, 1e6 * place + 1, 0 * place + 1], 1)
        x, weight = 1 + torch.arange(regions, dtype=torch.float32)[:, None], torch.zeros(5, 1, 1)
        weight[0] = 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "TABLE", {4: graph.TABLE[4] | {"BLOCK_M": block}})
            patch.setattr(graph, "FORWARD", {4: graph.FORWARD[4] | {"BLOCK_M": block}})
            (got,) = run(graph, "propagate_regions", (x, boxes, ragged(*counts), weight, torch.tensor(50.0)))
        assert torch.equal(got, torch.where(place[:, None] > 0, x - 1, 0)), counts


def test_odd_boxes(graph):
    """Flat, inverted, identical, far, infinite, NaN; with all gradients."""
    boxes = [
        (0, 0, 20, 20),
        (0, 0, 20, 20),
        (5, 5, 25, 30),
        (9, 9, 3, 3),
        (7, 0, 7, 9),
        (3e38, -3e38, 3e38, 3e38),
        (-3e38, -3e38, 3e38, 3e38),
        (1e30, 0, 2e30, 5),
        (0, 0, 1e-30, 1e-30),
        (NAN, 0, 5, 5),
        (0, 0, 5, float("inf")),
        (2, 2, 21, 19),
    ]
    check(graph, Regions((len(boxes),), 3, 2, torch.tensor(boxes)))


def test_adjacency_is_not_rounded_to_sixteen_bits(graph):
    """What one region hears of two whose shares differ by less than bfloat16 can tell; the sum is exact in tf32."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [-300, 0, -298, 2], [-300, 0.5, -298, 2.5]])
    x, weight = torch.tensor([[0.0], [128.0], [-128.0]]).bfloat16(), torch.zeros(5, 1, 1).bfloat16()
    weight[0] = 1
    (got,) = run(graph, "propagate_regions", (x, boxes, ragged(3), weight, torch.tensor(0.5)))
    wanted = reference.region_adjacency(boxes, 0.5, torch.float64)[0, 0] @ x[:, 0].double()
    assert 0 < wanted < 0.25 and abs(got[0, 0].double() - wanted) <= 2**-11 * 256 * 0.51


def test_small_weights_keep_their_digits_in_float16(graph):
    """A weight of e^-11 is a subnormal float16, of 8 bits; the result has all 11."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [-10, 0, -8, 2], [-21, 0, -19, 2]])
    x, weight = torch.tensor([[0.0], [0.0], [30000.0]]).half(), torch.zeros(5, 1, 1).half()
    weight[0] = 1
    (got,) = run(graph, "propagate_regions", (x, boxes, ragged(3), weight, torch.tensor(1.0)))
    wanted = reference.region_adjacency(boxes, 1.0, torch.float64)[0, 0] @ x[:, 0].double()
    assert 0.4 < wanted < 0.6 and abs(got[0, 0].double() - wanted) <= 2**-11 * 0.51
    grad = torch.tensor([[30000.0], [0.0], [0.0]]).half()
    arguments = (grad, x, boxes, ragged(3), weight, torch.tensor(1.0), False)
    d_x = run(graph, "propagate_regions_backward", arguments)[0]
    assert abs(d_x[2, 0].double() - wanted) <= 2**-11 * 1.01


def test_intermediate_values_may_overflow_in_float16(graph):
    """What is beyond 65504 on the way to a finite result or to another region's: x W, where a weight of 0 waits for it,
    and A' g, which the weights make small again."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [4000, 0, 4010, 10]])
    weight = torch.zeros(5, 1, 1).half()
    weight[0] = 300
    for x in ([[1.0], [2.0], [300.0]], [[300.0], [-300.0], [1.0]]):
        forward = (torch.tensor(x).half(), boxes, ragged(3), weight, torch.tensor(50.0))
        grad = torch.full((3, 1), 60000.0).half()
        backward = (grad, *forward[:3], weight / 2**14, torch.tensor(50.0), True)
        for name, arguments in (("propagate_regions", forward), ("propagate_regions_backward", backward)):
            wanted = [t.to(torch.float16) for t in defined(name, arguments, torch.float64)[:2]]
            assert wanted[0].isfinite().any()
            torch.testing.assert_close(run(graph, name, arguments)[:2], wanted, rtol=2**-10, atol=0)


def test_regions_that_no_image_owns_have_no_gradient(graph, monkeypatch):
    """Not what memory held: the gradients of the weights and of the bandwidth are those of the regions of images."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    scene = Regions((6,), channels=3, outputs=2)
    grad, x, boxes, _, *others = scene.calls(torch.float32)["propagate_regions_backward"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = run(graph, "propagate_regions_backward", (grad, x, boxes, ragged(3), *others))
        alone = run(graph, "propagate_regions_backward", (grad[:3], x[:3], boxes[:3], ragged(3), *others))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not got[0][3:].any()
    torch.testing.assert_close([got[0][:3], *got[1:]], alone)  # no bits: PyTorch's products are other ones


def test_images_do_not_see_each_other(graph):
    """Neither NaN nor infinities of x or of the upstream gradient reach another image."""
    scene = Regions((3, 2, 4), channels=3, outputs=2)
    wanted = {name: run(graph, name, arguments) for name, arguments in scene.calls(torch.float32).items()}
    scene.x[3:5], scene.grad[3:5] = NAN, float("inf")
    for name, arguments in scene.calls(torch.float32).items():
        got = run(graph, name, arguments)[0]
        for low, high in ((0, 3), (5, 9)):
            assert bits_equal(got[low:high], wanted[name][0][low:high]), name
        assert not got[3:5].isfinite().any(), name


def test_bandwidth_has_no_gradient_where_none_is_wanted(graph):
    *arguments, _ = Regions((4, 3), 3, 2).calls(torch.float32)["propagate_regions_backward"]
    with_it, without = (run(graph, "propagate_regions_backward", (*arguments, flag)) for flag in (True, False))
    assert all(map(bits_equal, with_it[:2], without[:2]))
    assert with_it[2] != 0 and without[2] == 0


@pytest.mark.parametrize(
    "ptr", [(0, 9, 5), (-4, 2, 5), (5, 3, 0), (-(2**62), 2**62, 0), (7, 8, 9), (0, 5, 2**40)], ids=str
)
def test_unsound_ptr_stays_within_the_tensors(graph, ptr):
    """The interpreter dies, a GPU refuses, where a kernel reads or writes far outside."""
    scene = Regions((3, 2), channels=3, outputs=2)
    scene.ptr = torch.tensor(ptr)
    for name, arguments in scene.calls(torch.float32).items():
        placed = [guarded(a, 2**33 if a is scene.ptr else NAN)[0] if isinstance(a, Tensor) else a for a in arguments]
        run(graph, name, tuple(placed))


# ------------------------------------------------------------------------------------------------------ memory and bits


def scenes() -> dict:
    return {
        "propagate": Typed(4, [9, 0, 3], channels=5, outputs=3, images=2),
        "propagate_regions": Regions((4, 0, 1, 3), channels=5, outputs=3),
    }


each_scene = pytest.mark.parametrize("scene", scenes().values(), ids=scenes().keys())


@each_scene
def test_same_bits_whatever_memory_held(graph, monkeypatch, scene):
    """What is allocated is filled with NaN at the second call."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name, arguments in scene.calls(torch.bfloat16).items():
        first = run(graph, name, arguments)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            second = run(graph, name, arguments)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(map(bits_equal, first, second)), name


@each_scene
def test_any_strides_give_the_same_bits(graph, scene):
    def gaps(t):
        return torch.stack([t, t + 1], -1)[..., 0] if t.dim() else t

    def transposed(t):
        return t.mT.contiguous().mT if t.dim() > 1 else t

    for name, arguments in scene.calls(torch.float32).items():
        wanted = run(graph, name, arguments)
        on_device = tree_map_only(Tensor, lambda t: t.to(graph.device), arguments)
        for layout in (gaps, transposed):
            got = run(graph, name, tree_map_only(Tensor, layout, on_device))
            assert all(map(bits_equal, got, wanted)), (name, layout)


def noted(module, scene, dtype: torch.dtype) -> list[tuple]:
    """The launches (kernel, grid, arguments, named arguments) of all launchers, on tensors without values: looking at
    one on the host raises."""
    launches, fake = [], FakeTensorMode()
    with pytest.MonkeyPatch.context() as patch:
        for name in {kernel["function"].__name__ for kernel in module.kernels()}:
            patch.setattr(module, name, Noted(getattr(module, name), launches))
        for name, arguments in scene.calls(dtype).items():
            given = tree_map_only(Tensor, fake.from_tensor, arguments)
            with fake:
                getattr(module, name)(*given)
    return launches


def test_launches_follow_from_shapes_alone():
    """No launch more for more images, types or edges; what tensors hold is not known here (see noted)."""
    module, counts = load("graph", interpret=False), set()
    for images, types in ((1, 1), (1, 4), (9, 2)):
        scene = Typed(20, [30 * images] * types, channels=4, outputs=3, images=images)
        counts.add(len(noted(module, scene, torch.bfloat16)))
    assert counts == {2}  # forward and backward
    counts = {len(noted(module, Regions([n] * n, 4, 3), torch.bfloat16)) for n in (1, 5, 20)}
    assert counts == {5}  # with a learned bandwidth; without it, four


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_products_of_sixteen_bits_are_summed_in_float32(monkeypatch, dtype):
    """Where PyTorch is told no wider result, a GPU may add partial sums in 16 bits unless a switch forbids it."""
    module, asked = load("graph", interpret=False), []
    matmul, short = torch.backends.cuda.matmul, {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    def product(a, b, out_dtype=None):
        asked.append(out_dtype or getattr(matmul, f"allow_{short}_reduced_precision_reduction"))
        return torch.empty((*a.shape[:-1], b.shape[-1]), dtype=out_dtype or a.dtype, device=a.device)

    monkeypatch.setattr(module.torch, "mm", product)
    monkeypatch.setattr(module.torch, "bmm", product)
    with FakeTensorMode():
        for shapes in (((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4))):
            a, b = (torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes)
            for wanted in (None, torch.float32, dtype):
                assert module._product(a, b, wanted).dtype == (wanted or torch.float32)
    assert asked == 2 * [torch.float32, torch.float32, False]
    assert getattr(matmul, f"allow_{short}_reduced_precision_reduction"), "as it was"


# -------------------------------------------------------------------------------------------------------- ahead of time


def test_kernels_compile_for_every_target_without_spills():
    for kernel in load("graph", interpret=False).kernels():
        for row in here(compiled.triton_resources, TritonKernel(**kernel)):
            assert row.spill_bytes == 0, row


def test_odd_channels_and_float64_compile():
    """Of a single channel Triton makes a constant, the interpreter does not; 24 are no multiple of a block."""
    module = load("graph", interpret=False)
    for kernel in module.kernels(channels=1):
        types = {name: type_ for name, type_ in kernel["types"].items() if name != "channels"}
        if types == kernel["types"]:
            continue
        changed = {"types": types, "constexprs": kernel["constexprs"] | {"channels": 1}, "multiples_of_16": ()}
        assert here(compiled.triton_resources, TritonKernel(**(kernel | changed)), [90])
    for kernel in module.kernels(channels=24):
        assert here(compiled.triton_resources, TritonKernel(**(kernel | {"multiples_of_16": ()})), [90])
    for kernel in module.kernels(dtypes=(torch.float64,)):
        for row in here(compiled.triton_resources, TritonKernel(**kernel), [80, 90]):
            assert row.spill_bytes == 0, row


def test_what_is_compiled_ahead_is_what_is_launched(monkeypatch):
    module = load("graph", interpret=False)
    shipped, seen = module.kernels(), set()
    for dtype, target in itertools.product((torch.float32, torch.bfloat16), compiled.TARGETS):
        monkeypatch.setattr(module, "_capability", lambda device, target=target: target)
        scenes = Typed(4, [9, 0, 3], channels=512, outputs=512, images=2), Regions((4, 3), channels=512, outputs=512)
        for name, _, given, named in itertools.chain(*(noted(module, scene, dtype) for scene in scenes)):
            placed = dict(zip(getattr(module, name).arg_names, given, strict=False))
            types = {key: TRITON_NAMES[v.dtype] if isinstance(v, Tensor) else "i32" for key, v in placed.items()}
            for index, kernel in enumerate(shipped):
                options = {key: value for key, value in kernel.items() if key.startswith("num_")}
                whole = kernel["constexprs"] | options | kernel["options"]
                if target not in kernel["targets"]:
                    continue
                if (name, types, named) == (kernel["function"].__name__, kernel["types"], whole):
                    seen.add(index)
                    assert all(placed[key] % 16 == 0 for key in kernel["multiples_of_16"])
                    break
            else:
                raise AssertionError(f"{name} with {types}, {named} is not compiled ahead")
    assert seen == set(range(len(shipped)))


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load("graph", interpret=False)
    for name in ("propagate", "propagate_backward", "propagate_regions", "propagate_regions_backward"):
        wanted = [argument.name for argument in dispatch.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]
