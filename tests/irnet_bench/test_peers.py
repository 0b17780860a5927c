"""Peers compute the same function as irnet's operators, or say why they are not there."""

import functools
import importlib.util

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from irnet_bench.case import Setup
from irnet_bench.measure import examine, mode_call
from tests.irnet_bench.suites.built import CASES, assert_same_function, each_case, work


@pytest.fixture
def no_codegen(monkeypatch):
    """torch.compile traces and differentiates, but generates no code: that takes a minute for all of them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


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
