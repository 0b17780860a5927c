"""The Triton kernels of propagate and propagate_regions: interpreted on the CPU, compiled where there is a GPU, and
compiled ahead of time where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import os

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from irnet.bench import compiled
from irnet.bench.compiled import TritonKernel
from irnet_kernels import EdgeSet, library
from irnet_kernels.graph import reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_exact, assert_within_budget, each_dtype, normal, random_edges
from tests.tools import here

NAN = float("nan")
TRITON_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}

# NumPy's, where the interpreter computes with infinite values, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


def load(interpret: bool):
    return here(compiled.load, "irnet_kernels.graph.triton", interpret=interpret)


@pytest.fixture(scope="module", params=["interpreted", "cuda"])
def graph(request):
    """A fresh copy of the module with its launchers; they run on `graph.device`."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled in this process")
    module = load(interpret=request.param == "interpreted")
    module.device = "cpu" if request.param == "interpreted" else "cuda"
    try:
        run(module, "propagate", Typed(1, [1], 1, 1).calls(torch.float32)["propagate"])
    except Exception as error:
        if "only 0-dimensional arrays" in str(error):
            pytest.skip("the interpreter of Triton 3.6 cannot loop with NumPy 2.4 (take a later Triton or NumPy 2.3)")
        raise
    return module


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
            "propagate": (x, *self.edges.tensors(), weight),
            "propagate_backward": (grad, x, *self.edges.tensors(), weight),
        }


def run(module, name: str, arguments: tuple) -> list[Tensor]:
    """A launcher's results on the CPU."""
    found = getattr(module, name)(*(a.to(module.device) if isinstance(a, Tensor) else a for a in arguments))
    return [t.cpu() for t in ((found,) if isinstance(found, Tensor) else found)]


def defined(name: str, arguments: tuple, dtype: torch.dtype, given: torch.dtype) -> list[Tensor]:
    """The reference's results, computed in `dtype` from values that are of the dtype `given`."""
    cast = (a.to(dtype) if isinstance(a, Tensor) and a.dtype == given and a.dim() != 1 else a for a in arguments)
    found = getattr(reference, name)(*cast)
    return [found] if isinstance(found, Tensor) else list(found)


def check(module, scene, dtype: torch.dtype = torch.float32) -> None:
    """All launchers against the reference in float64, by the rule of irnet_kernels.testing."""
    for name, arguments in scene.calls(dtype).items():
        got = run(module, name, arguments)
        exact, plain = (defined(name, arguments, compute, dtype) for compute in (torch.float64, dtype))
        for index, (g, e, p) in enumerate(zip(got, exact, plain, strict=True)):
            assert g.is_contiguous(), name
            if dtype == torch.float64:
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
        (got,) = run(graph, "propagate", (x, *edges.tensors(), torch.ones(1, 1, 1)))
        assert not got.any(), places


def test_only_neighbours_are_read(graph):
    """Where an edge leads a NaN does; unused lanes of a block of edges read nothing."""
    edges = EdgeSet.from_edges([(torch.tensor([1, 2]), torch.tensor([2, 1]), torch.ones(2))], 4)
    x = torch.tensor([NAN, 1.0, 2.0, NAN]).view(1, 4, 1)
    (got,) = run(graph, "propagate", (x, *edges.tensors(), torch.ones(1, 1, 1)))
    assert got.flatten().tolist() == [0, 2, 1, 0]


# ------------------------------------------------------------------------------------------------------ memory and bits


def scenes() -> dict:
    return {"propagate": Typed(4, [9, 0, 3], channels=5, outputs=3, images=2)}


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
        return torch.stack([t, t + 1], -1)[..., 0]

    def transposed(t):
        return t.mT.contiguous().mT if t.dim() > 1 else t

    for name, arguments in scene.calls(torch.float32).items():
        wanted = run(graph, name, arguments)
        for layout in (gaps, transposed):
            moved = [layout(a.to(graph.device)) if isinstance(a, Tensor) and a.dim() else a for a in arguments]
            assert all(map(bits_equal, run(graph, name, tuple(moved)), wanted)), (name, layout)


class Noted:
    """A kernel that only notes how it is launched."""

    def __init__(self, kernel, launches: list):
        self.__name__, self.arg_names, self.launches = kernel.__name__, kernel.arg_names, launches

    def __getitem__(self, grid):
        return lambda *given, **named: self.launches.append((self.__name__, grid, given, named))


def noted(module, scene, dtype: torch.dtype) -> list[tuple]:
    """The launches (kernel, grid, arguments, named arguments) of all launchers, on tensors without values: looking at
    one on the host raises."""
    launches, fake = [], FakeTensorMode()
    with pytest.MonkeyPatch.context() as patch:
        for name in {kernel["function"].__name__ for kernel in module.kernels()}:
            patch.setattr(module, name, Noted(getattr(module, name), launches))
        for name, arguments in scene.calls(dtype).items():
            given = [fake.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
            with fake:
                getattr(module, name)(*given)
    return launches


def test_launches_follow_from_shapes_alone():
    """No launch more for more images, types or edges; what tensors hold is not known here (see noted)."""
    module, counts = load(interpret=False), set()
    for images, types in ((1, 1), (1, 4), (9, 2)):
        scene = Typed(20, [30 * images] * types, channels=4, outputs=3, images=images)
        counts.add(len(noted(module, scene, torch.bfloat16)))
    assert counts == {2}  # forward and backward


# -------------------------------------------------------------------------------------------------------- ahead of time


def test_kernels_compile_for_every_target_without_spills():
    for kernel in load(interpret=False).kernels():
        for row in here(compiled.triton_resources, TritonKernel(**kernel)):
            assert row.spill_bytes == 0, row


def test_odd_channels_and_float64_compile():
    """Of a single channel Triton makes a constant, the interpreter does not; 24 are no multiple of a block."""
    module = load(interpret=False)
    for kernel in module.kernels(channels=1):
        types = {name: type_ for name, type_ in kernel["types"].items() if name != "channels"}
        changed = {"types": types, "constexprs": kernel["constexprs"] | {"channels": 1}, "multiples_of_16": ()}
        assert here(compiled.triton_resources, TritonKernel(**(kernel | changed)), [90])
    for kernel in module.kernels(channels=24):
        assert here(compiled.triton_resources, TritonKernel(**(kernel | {"multiples_of_16": ()})), [90])
    for kernel in module.kernels(dtypes=(torch.float64,)):
        for row in here(compiled.triton_resources, TritonKernel(**kernel), [80, 90]):
            assert row.spill_bytes == 0, row


def test_what_is_compiled_ahead_is_what_is_launched():
    module = load(interpret=False)
    shipped, seen = module.kernels(), set()
    for dtype in (torch.float32, torch.bfloat16):
        for scene in (Typed(4, [9, 0, 3], channels=512, outputs=512, images=2),):
            for name, _, given, named in noted(module, scene, dtype):
                arguments = dict(zip(getattr(module, name).arg_names, given, strict=False)) | named
                types = {
                    key: TRITON_NAMES[value.dtype] if isinstance(value, Tensor) else "i32"
                    for key, value in arguments.items()
                    if isinstance(value, Tensor) or (type(value) is int and not key.isupper() and "num_" not in key)
                }
                rest = {key: value for key, value in arguments.items() if key not in types}
                for index, kernel in enumerate(shipped):
                    options = {key: value for key, value in kernel.items() if key.startswith("num_")}
                    whole = kernel["constexprs"] | options
                    if (name, types, rest) == (kernel["function"].__name__, kernel["types"], whole):
                        seen.add(index)
                        assert all(arguments[key] % 16 == 0 for key in kernel["multiples_of_16"])
                        break
                else:
                    raise AssertionError(f"{name} with {types}, {rest} is not compiled ahead")
    assert seen == set(range(len(shipped)))


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load(interpret=False)
    for name in ("propagate", "propagate_backward"):
        wanted = [argument.name for argument in library.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]
