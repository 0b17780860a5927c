"""The kernels suite: its cases build, and their limits are the known formulas."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from irnet_bench.case import MODES, Setup
from irnet_bench.measure import mode_call
from irnet_bench.suites import kernels
from irnet_kernels import EdgeSet
from tests.irnet_bench.suites.built import CASES, each_case, work

ROOT = Path(__file__).resolve().parents[3]


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
