"""The kernels suite: its cases build, their limits are the known formulas, their peers compute the same function."""

import functools
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from irnet_bench.case import MODES, Case, Implementation, Setup, Work
from irnet_bench.measure import examine, mode_call
from irnet_bench.suites import kernels
from irnet_kernels import EdgeSet

ROOT = Path(__file__).resolve().parents[2]
CASES = {case.name: case for case in vars(kernels).values() if isinstance(case, Case)}
each_case = pytest.mark.parametrize("name", CASES)


def work(name: str, dtype: torch.dtype = torch.float64, kind: str = "gate", **changes: int) -> Work:
    """A case at its gate shape, with some numbers of it changed."""
    return CASES[name].build(Setup(CASES[name].shapes[kind] | changes, dtype, torch.device("cpu")))


def result_and_gradients(built: Work, implementation: Implementation) -> list[torch.Tensor]:
    inputs = [leaf.detach().requires_grad_() for leaf in built.inputs]
    out = implementation.call(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def assert_same_function(built: Work, name: str, relative: float = 1e-10) -> None:
    """In float64, result and gradients, relative to the largest value of each."""
    if built.implementations[name].call is None:
        pytest.skip(f"{name}: {built.implementations[name].missing}")
    truth = result_and_gradients(built, built.implementations["reference"])
    for i, (got, true) in enumerate(zip(result_and_gradients(built, built.implementations[name]), truth, strict=True)):
        assert got.dtype == torch.float64
        error, scale = (got - true).abs().max(), true.abs().max()
        assert error <= relative * max(1.0, scale), f"{name}: {'gradient' if i else 'result'} {i} is off by {error:.2e}"


@pytest.fixture
def no_codegen(monkeypatch):
    """torch.compile traces and differentiates, but generates no code: that takes a minute for all of them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


# -------------------------------------------------------------------------------------------------------------- cases


def test_the_suite_has_every_operator():
    assert list(CASES) == [
        "crop_resize",
        "paste_mean",
        "conv_gru",
        "propagate",
        "propagate_sparse",
        "propagate_regions",
        "segment_matmul",
        "segment_outer",
    ]


@each_case
def test_a_case_is_short(name):
    assert len(inspect.getsource(CASES[name].build).splitlines()) <= 30


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_case_builds_and_every_mode_of_the_reference_runs(name, dtype):
    built = work(name, dtype)
    out = mode_call(built, built.implementations["reference"], "forward")()
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert out.any()
    for gradient in mode_call(built, built.implementations["reference"], "step")():
        assert gradient.isfinite().all()
        assert gradient.any()


@each_case
def test_the_pace_is_set_by_plain_pytorch(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    built = work(name)
    assert built.implementations[built.baseline].peer
    assert built.implementations[built.baseline].call


@each_case
def test_a_seed_gives_the_same_case(name):
    one, other = work(name), work(name)
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    assert (
        one.implementations["reference"].call(*one.inputs).equal(other.implementations["reference"].call(*one.inputs))
    )


def test_the_gate_has_ragged_images_and_an_odd_number_of_channels():
    for name in ("crop_resize", "paste_mean", "propagate_regions"):
        shape = CASES[name].shapes["gate"]
        counts = Setup(shape, torch.float32, torch.device("cpu")).ragged(shape["images"], shape["regions"]).diff()
        assert len(counts.unique()) == 3
    for case in CASES.values():
        assert case.shapes["gate"].get("channels", case.shapes["gate"].get("features")) % 16 == 8


def test_boxes_lie_inside_the_map():
    built = Setup(CASES["crop_resize"].shapes["cpu"], torch.float32, torch.device("cpu"))
    ptr, boxes = kernels.regions_on_map(built)
    assert ptr.tolist() == [0, 64]
    assert torch.equal(boxes * kernels.STRIDE, (boxes * kernels.STRIDE).round())
    assert boxes.min() >= 0
    assert boxes[:, [0, 2]].max() <= built.width - 1
    assert boxes[:, [1, 3]].max() <= built.height - 1
    side = (boxes[:, 2:] - boxes[:, :2]) * kernels.STRIDE
    assert 39 <= side.min() < 60
    assert 280 < side.max() <= 301  # rounding to whole pixels moves either corner by half a pixel at most


def test_most_nodes_of_the_sparse_graph_have_no_edges_of_a_type(monkeypatch):
    graphs = {}
    for name in ("propagate", "propagate_sparse"):
        monkeypatch.setattr(kernels, "typed_graph", lambda s, edges, name=name: graphs.update({name: edges}))
        work(name, kind="cpu")
    filled = {name: float((edges.indptr.diff() > 0).double().mean()) for name, edges in graphs.items()}
    assert filled["propagate"] > 0.9
    assert 0.05 < filled["propagate_sparse"] <= 0.1
    assert (graphs["propagate"].values == 1).all()


# ------------------------------------------------------------------------------------------------------------- limits

MAP = 38 * 63 * 512
PATCHES = 64 * 49 * 512


@pytest.mark.parametrize(
    ("name", "forward", "backward", "flops"),
    [
        ("crop_resize", 4 * (PATCHES + MAP), 4 * (PATCHES + MAP), 8 * PATCHES),
        ("paste_mean", 4 * (PATCHES + 2 * MAP), 4 * (PATCHES + MAP), None),
        ("conv_gru", 4 * (3 * PATCHES + 18 * 512**2), 4 * (6 * PATCHES + 36 * 512**2), 2 * 64 * 441 * 2 * 512**2),
        (
            "propagate_regions",
            4 * (2 * 2048 * 512 + 5 * 512**2),
            4 * (3 * 2048 * 512 + 10 * 512**2),
            2 * 5 * 512 * 16 * (32**2 + 96**2) + 2 * 5 * 2048 * 512**2,
        ),
    ],
)
def test_limits_at_the_default_shape(name, forward, backward, flops):
    built = work(name, torch.float32, "cpu")
    assert built.bytes == {"forward": forward, "backward": backward, "step": forward + backward}
    if flops:
        assert built.flops["forward"] == flops
    assert built.flops["step"] == built.flops["forward"] + built.flops["backward"]


@each_case
def test_every_mode_has_limits_and_half_the_bytes_in_bfloat16(name):
    double, half = work(name, torch.float32), work(name, torch.bfloat16)
    for mode in MODES:
        assert double.flops[mode] == half.flops[mode] > 0
        assert double.bytes[mode] > half.bytes[mode] >= double.bytes[mode] / 2 > 0


@pytest.mark.parametrize(
    ("name", "number", "more_bytes", "more_flops"),
    [
        ("crop_resize", "images", (2, 2), (2, 2)),
        ("crop_resize", "channels", (2, 2), (2, 2)),
        ("crop_resize", "regions", (1, 2), (2, 2)),
        ("crop_resize", "height", (1, 2), (1, 1)),
        ("paste_mean", "channels", (2, 2), (2, 2)),
        ("paste_mean", "regions", (1, 2), (1.5, 2.5)),  # other boxes: their areas double on the average
        ("conv_gru", "regions", (1, 2), (2, 2)),
        ("conv_gru", "channels", (2, 4), (4, 4)),
        ("propagate", "features", (2, 4), (2, 4)),
        ("propagate", "edges", (1, 2), (1, 2)),
        ("propagate", "nodes", (1, 2), (1, 2)),
        ("propagate_sparse", "types", (1, 2), (1, 2.5)),
        ("propagate_regions", "images", (1, 2), (2, 2.5)),  # 9, 3, 6 regions, then three times 9, 3
        ("propagate_regions", "regions", (1, 2), (2, 4)),
        ("propagate_regions", "features", (2, 4), (2, 4)),
        ("segment_matmul", "classes", (1, 2), (2, 2)),
        ("segment_outer", "features", (1, 2), (2, 2)),
        ("segment_outer", "images", (2, 2.5), (2, 2.5)),
    ],
)
def test_limits_grow_with_the_shape(name, number, more_bytes, more_flops):
    one, two = work(name), work(name, **{number: 2 * CASES[name].shapes["gate"][number]})
    for mode in MODES:
        assert more_bytes[0] <= two.bytes[mode] / one.bytes[mode] <= more_bytes[1]
        assert more_flops[0] <= two.flops[mode] / one.flops[mode] <= more_flops[1]


def test_limits_of_a_graph_that_can_be_counted_by_hand(cpu):
    """4 nodes, 8 features; three edges of the first type, one given twice, into two nodes, and one of the second."""
    first = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 3, 3]), torch.ones(4)
    second = torch.tensor([3]), torch.tensor([1]), torch.ones(1)
    shape = {"nodes": 4, "types": 2, "edges": 4, "features": 8}
    built = kernels.typed_graph(Setup(shape, torch.float32, cpu), EdgeSet.from_edges([first, second], 4))
    assert built.items == 4
    assert built.flops["forward"] == 2 * 3 * 8 * 8 + 2 * 4 * 8
    assert built.flops["backward"] == 2 * built.flops["forward"]
    assert built.bytes["forward"] == 4 * (2 * 4 * 8 + 2 * 8 * 8) + 4 * 8
    assert built.bytes["backward"] == 4 * (3 * 4 * 8 + 2 * 2 * 8 * 8) + 4 * 8


def test_a_crop_of_few_regions_need_not_read_the_whole_map():
    channels = CASES["crop_resize"].shapes["gate"]["channels"]
    one, none = (work("crop_resize", images=1, regions=1, height=h) for h in (30, 60))
    assert one.bytes["forward"] == none.bytes["forward"] == 5 * 49 * channels * 8
    assert one.bytes["backward"] < none.bytes["backward"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["conv_gru", "propagate", "propagate_sparse", "propagate_regions"])
def test_the_matrix_product_has_the_flops_of_the_products(name, mode):
    """Those of the operator but for its sums over edges."""
    built = work(name, torch.float32)
    call = mode_call(built, built.implementations["matrix product"], mode)
    with FlopCounterMode(display=False) as counter:
        call()
    passes = built.flops[mode] / built.flops["forward"]
    shape = CASES[name].shapes["gate"]
    sums = {
        "conv_gru": 0,
        "propagate": 2 * built.items * 24,
        "propagate_sparse": 2 * built.items * 24,
        "propagate_regions": 2 * 5 * 24 * (9**2 + 3**2 + 6**2),
    }
    assert shape.get("features", 24) == 24
    assert counter.get_total_flops() == built.flops[mode] - passes * sums[name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["segment_matmul", "segment_outer"])
def test_a_loop_over_images_has_the_flops_of_products_of_segments(name, mode):
    built = work(name, torch.float32)
    call = mode_call(built, built.implementations["loop over images"], mode)
    with FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() == built.flops[mode]


@pytest.mark.parametrize("mode", MODES)
def test_dense_einsum_of_one_image_has_the_flops_of_propagate_regions(mode):
    """What backward makes again, A x, autograd has kept."""
    built = work("propagate_regions", torch.float32, images=1)
    call = mode_call(built, built.implementations["dense einsum"], mode)
    with FlopCounterMode(display=False) as counter:
        call()
    again = 2 * 5 * 24 * 6**2 if mode != "forward" else 0
    assert counter.get_total_flops() == built.flops[mode] - again


# -------------------------------------------------------------------------------------------------------------- peers


def same_function(name: str) -> list[str]:
    """The peers that must compute what the case computes."""
    return [peer for peer, one in work(name).implementations.items() if one.peer and one.checked]


SAME = [(name, peer) for name in CASES for peer in same_function(name)]
each_eager = pytest.mark.parametrize(("name", "peer"), [(n, p) for n, p in SAME if p != "torch.compile"])


@pytest.mark.parametrize(("name", "peer"), SAME)
def test_a_checked_peer_is_the_same_function(name, peer, no_codegen):
    assert_same_function(work(name), peer)


@pytest.mark.parametrize("seed", [1, 2])
@each_eager
def test_it_is_for_other_inputs_too(name, peer, seed):
    shape = CASES[name].shapes["gate"]
    assert_same_function(CASES[name].build(Setup(shape, torch.float64, torch.device("cpu"), seed)), peer)


@each_eager
def test_it_is_at_one_region_or_edge(name, peer):
    shape = CASES[name].shapes["gate"]
    number, least = ("regions", 1) if "regions" in shape else ("edges", shape["types"])
    assert_same_function(work(name, **{number: least}), peer)


@pytest.mark.parametrize("regions", [1, 2, 10])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "images" in case.shapes["cpu"]])
def test_sweeps_over_regions_and_images(name, images, regions):
    built = work(name, images=images, regions=regions)
    assert built.items == images * regions
    assert_same_function(built, built.baseline)


@each_case
@pytest.mark.parametrize("size", ["regions", "features", "classes", "edges"])
def test_no_size_is_too_small_to_set_up(name, size):
    """A sweep's sizes start at 0."""
    if size in CASES[name].shapes["gate"]:
        assert all(tensor.isfinite().all() for tensor in work(name, **{size: 0}).inputs)


@each_case
def test_only_the_unlike_are_not_checked_in_float64(name):
    """PyG knows no edge weights; a matrix product is none of the operators; grouped_mm takes no float64."""
    wanted = {case: {"matrix product"} for case in ("conv_gru", "propagate", "propagate_regions")}
    wanted["propagate_sparse"] = {"matrix product", "PyG RGCNConv", "PyG FastRGCNConv"}
    wanted["segment_matmul"] = {"grouped_mm"}
    unchecked = {peer for peer, one in work(name).implementations.items() if not one.checked}
    assert unchecked == wanted.get(name, set())


@each_case
def test_checked_peers_are_within_the_budget_of_float32(name, cpu):
    built = work(name, torch.float32)
    del built.implementations["torch.compile"]  # takes long, and rounds like what it compiles
    found = examine(built, cpu)
    wrong = {key: result.reason for key, result in found.items() if result.status not in ("ok", "skipped")}
    assert not wrong
    assert found["reference", "step"].figures["error"] > 0


@each_case
def test_peers_give_the_dtype_of_the_case(name):
    built = work(name, torch.bfloat16)
    for peer, one in built.implementations.items():
        # A CPU has sparse products in float32 and float64 only.
        if one.call and peer not in ("torch.compile", "sparse CSR loop"):
            assert one.call(*built.inputs).dtype == torch.bfloat16, peer


@pytest.mark.parametrize(
    ("package", "name", "missing"),
    [
        ("torchvision", "crop_resize", {"torchvision roi_align"}),
        ("torch_geometric", "propagate", {"PyG RGCNConv", "PyG FastRGCNConv"}),
        ("torch_geometric", "propagate_sparse", {"PyG RGCNConv", "PyG FastRGCNConv"}),
    ],
)
def test_a_peer_that_is_not_installed_says_how_to_install_it(package, name, missing, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda p: None if p == package else found(p))
    implementations = work(name).implementations
    for peer in missing:
        assert implementations[peer].call is None
        assert implementations[peer].peer
        assert implementations[peer].missing == f"{package} is not installed: pip install irnet[peers]"
    assert all(one.call for peer, one in implementations.items() if peer not in missing and "PyG" not in peer)


def test_grouped_mm_is_a_peer_where_it_serves(monkeypatch):
    built = work("segment_matmul", torch.float32)
    peer = built.implementations["grouped_mm"]
    assert peer.checked
    got, wanted = (one.call(*built.inputs) for one in (peer, built.implementations["loop over images"]))
    torch.testing.assert_close(got, wanted)
    for dtype, classes, reason in ((torch.float64, 40, "Double"), (torch.bfloat16, 1500, "multiple of 16 bytes")):
        other = work("segment_matmul", dtype, classes=classes).implementations["grouped_mm"]
        assert other.call is None
        assert other.missing.startswith(f"torch {torch.__version__} cannot: ")
        assert reason in other.missing
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    peer = work("segment_matmul", torch.float32).implementations["grouped_mm"]
    assert peer.call is None
    assert "no attribute 'grouped_mm'" in peer.missing


def test_a_peer_that_would_take_too_much_memory_is_left_out(monkeypatch):
    """A weight per edge is 39 GiB at the default shape."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: True)
    implementations = work("propagate", torch.float32, "cpu").implementations
    assert implementations["PyG FastRGCNConv"].call is None
    assert "would materialise 39.0 GiB" in implementations["PyG FastRGCNConv"].missing
    assert implementations["dense einsum"].call
    assert implementations["PyG RGCNConv"].call


def test_every_compiled_implementation_is_compiled_however_many_came_before(monkeypatch):
    """Dynamo gives up on a line of source after 8 compilations, silently, and then nothing is compiled at all."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter, dynamic=False))
    for channels in range(1, 11):
        built = work("conv_gru", torch.float32, channels=channels)
        built.implementations["torch.compile"].call(*built.inputs)
        assert counter.frame_count == channels


def test_a_compiled_implementation_can_be_differentiated_again_and_again():
    """With code generated, unlike above; backward is measured by repeating it."""
    built = work("paste_mean")
    call = mode_call(built, built.implementations["torch.compile"], "backward")
    first, again = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert_same_function(built, "torch.compile")


def test_nothing_heavy_is_imported_before_a_peer_runs():
    program = """
import sys, torch
from irnet_bench.case import Case, Setup
from irnet_bench.suites import kernels
cases = [case for case in vars(kernels).values() if isinstance(case, Case)]
for case in cases:
    case.build(Setup(case.shapes["gate"], torch.float32, torch.device("cpu")))
heavy = {"triton", "torchvision", "torch_geometric", "torch._dynamo", "torch._inductor"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy or not cases else 0)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
