"""The model suite, and what the training suite shares with it: what is computed, and what a shape changes."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from irnet.errors import InputError
from irnet_bench import machine
from irnet_bench.case import Setup
from irnet_bench.suites import model
from irnet_kernels import dispatch
from tests.irnet_bench.suites.networks import CPU, NETWORKS, build, each_network, run


@each_network
def test_implementations_agree_in_float64_and_every_leaf_learns(name, graphs):
    work = build(name)
    exact = run(work, "reference", torch.float64)
    assert all(t.dtype == torch.float64 and t.isfinite().all() and t.any() for t in exact)
    for other in work.implementations:
        for got, wanted in zip(run(work, other, torch.float64), exact, strict=True):
            assert (got - wanted).abs().max() <= 1e-11 * wanted.abs().max(), other
    assert len(graphs) >= 2  # at least reading and writing


def test_compiled_cases_do_not_use_up_each_others_limit(graphs):
    counts = []
    with torch._dynamo.config.patch(recompile_limit=2):  # then Dynamo gives up, silently
        for _ in range(3):
            work = build("reason_local")
            work.implementations["torch.compile"].call(*work.inputs)
            counts.append(len(graphs))
    assert counts[0] > 0 and counts == [counts[0], 2 * counts[0], 3 * counts[0]]


class NothingRounded(TorchDispatchMode):
    """Fails where an operator makes less of a float64 tensor; counts what it has seen."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        floats = [
            [t.dtype for t in tree_leaves(x) if isinstance(t, Tensor) and t.is_floating_point()] for x in (args, out)
        ]
        if torch.float64 in floats[0]:
            self.seen += 1
            assert set(floats[1]) <= {torch.float64}, function
        return out


@each_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_truth_is_float64_throughout(name, dtype):
    with NothingRounded() as mode:
        found = run(build(name, dtype), "reference", torch.float64)
    assert mode.seen > 100
    for got, wanted in zip(found, run(build(name), "reference", torch.float64), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("variant", ["local", "global", "full"])
def test_roll_out_is_the_models(variant, monkeypatch):
    monkeypatch.setenv("IRNET_IMPL", "reference")  # as the implementation does: other kernels round otherwise
    setup = Setup(NETWORKS["reason_full"].shapes["gate"], torch.float32, CPU)
    work = NETWORKS[f"reason_{variant}"].build(setup)
    net, batch = model.build(setup, variant, model.Given(setup.features)).double(), model.random_batch(setup)
    assert net.graph is None or net.graph.graph_values.dtype == torch.float64
    net.requires_grad_(False)
    wanted = net.reason(work.inputs[0].double(), batch.boxes, batch.ptr)
    found = run(work, "reference", torch.float64)[0]
    columns = [*wanted.logits.values(), *(row[:, None] for row in wanted.confidences)]
    assert torch.equal(found, torch.cat(columns, 1))
    assert len(work.inputs) == 1 + len(list(net.parameters()))


@each_network
def test_bfloat16_is_autocast_over_float32_leaves(name):
    work, plain = build(name, torch.bfloat16), build(name)
    assert all(leaf.dtype == torch.float32 for leaf in work.inputs)
    assert all(torch.equal(a, b) for a, b in zip(work.inputs, plain.inputs, strict=True))
    out, *gradients = run(work, "reference", torch.float32)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert out.dtype == (torch.float32 if name.startswith("train") else torch.bfloat16)
    exact = run(work, "reference", torch.float64)[0]
    error = ((out.double() - exact).norm() / exact.norm()).item()
    assert 2**-20 < error < 16 * 2**-9  # rounded, as float32 is not; some sixteen roundings in a row at most


def test_reference_means_reference_and_auto_what_irnet_chooses(monkeypatch):
    monkeypatch.setattr(model, "dispatch", SimpleNamespace(choose=lambda op, impl, device: "cpp"))
    work = build("reason_full")
    assert list(work.implementations) == ["reference", "auto", "torch.compile"]
    asked, real = set(), dispatch.choose

    def choose(name, impl, device):
        asked.add((name, os.environ.get("IRNET_IMPL")))
        return real(name, impl, device)

    monkeypatch.setattr(dispatch, "choose", choose)
    for implementation, wanted in (("reference", "reference"), ("auto", None)):
        asked.clear()
        work.implementations[implementation].call(*work.inputs)
        assert asked == {(op, wanted) for op in dispatch.available()}
    monkeypatch.setenv("IRNET_IMPL", "auto")
    with pytest.raises(KeyError, match="inside"), machine.variable("IRNET_IMPL", "reference"):
        raise KeyError("inside")
    assert os.environ["IRNET_IMPL"] == "auto"


def test_auto_is_left_out_where_it_is_the_reference(monkeypatch):
    monkeypatch.setattr(model, "dispatch", SimpleNamespace(choose=lambda op, impl, device: "reference"))
    assert "auto" not in build("reason_full").implementations


@each_network
def test_a_sweep_changes_the_sizes(name):
    for images, regions in ((1, 3), (3, 1)):
        work = build(name, images=images, regions=regions, iterations=1, classes=7)
        out = work.implementations["reference"].call(*work.inputs)
        assert work.items == (images * regions if work.unit == "regions" else images)
        if name.startswith("train"):
            assert out.shape == () and out > 0
        else:
            predictions = 3 if name.endswith("full") else 2
            assert out.shape == (images * regions, predictions * (7 + 1))
    count = lambda **shape: sum(leaf.numel() for leaf in build(name, **shape).inputs)  # noqa: E731
    assert count(channels=9) > count()
    if not name.endswith("global"):
        assert count(hidden=13) > count()


@each_network
def test_every_default_shape_has_the_same_numbers(name):
    assert len({frozenset(shape) for shape in NETWORKS[name].shapes.values()}) == 1


def test_a_shape_without_sense_is_refused():
    with pytest.raises(InputError, match="resnet18"):
        build("forward_full", resnet=18)


def test_resnet_keeps_what_is_frozen_out_of_the_leaves():
    work = build("forward_full", resnet=50, height=2, width=2, images=1, regions=2)
    net = model.build(Setup(NETWORKS["forward_full"].shapes["gate"] | {"resnet": 50}, torch.float32, CPU), "full")
    frozen = [p for p in net.parameters() if not p.requires_grad]
    assert frozen and len(work.inputs) == len(list(net.parameters())) - len(frozen)
    assert all(t.isfinite().all() and t.any() for t in run(work, "reference", torch.float64))
