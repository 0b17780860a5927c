"""The model, training and data suites: what their contestants compute, what a shape changes, what they leave behind."""

import gc
import os
import tempfile
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from irnet.config import TrainConfig
from irnet.data.sample import Batch
from irnet.errors import InputError
from irnet_bench import machine
from irnet_bench.case import Setup, Work, cases
from irnet_bench.measure import mode_call, upstream
from irnet_bench.suites import data, model, training
from irnet_kernels import dispatch
from irnet_kernels.counts import saved_bytes

CPU = torch.device("cpu")
NETWORKS = {case.name: case for suite in ("model", "training") for case in cases(suite)}
DATA = {case.name: case for case in cases("data")}
FILES = {"images": 4, "batch": 3, "size": 160, "short": 0}
SMALL = {"load_batches": FILES, "scene_generation": {"images": 2, "size": 160}}
each_network = pytest.mark.parametrize("name", NETWORKS)
each_data = pytest.mark.parametrize("name", DATA)
each_training = pytest.mark.parametrize("name", [name for name, case in NETWORKS.items() if case.suite == "training"])


@pytest.fixture(autouse=True)
def cheap(one_thread, monkeypatch):
    """These networks are tiny; the operators are those that irnet chooses."""
    monkeypatch.delenv("IRNET_IMPL", raising=False)


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """torch.compile as it is, but for the compiler: a graph runs as it was traced, and is counted."""
    found, real = [], torch.compile

    def backend(graph, inputs):
        found.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *a, **options: real(*a, backend=backend, **options))
    return found


def build(name: str, dtype: torch.dtype = torch.float32, **shape: int) -> Work:
    case = (NETWORKS | DATA)[name]
    return case.build(Setup((SMALL.get(name) or case.shapes["gate"]) | shape, dtype, CPU))


def run(work: Work, contestant: str, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of every leaf."""
    inputs = [leaf.to(dtype).requires_grad_() for leaf in work.leaves]
    out = work.contestants[contestant].call(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream(out))]


# -------------------------------------------------------------------------------------------------- model and training


@each_network
def test_contestants_agree_in_float64_and_every_leaf_learns(name, graphs):
    work = build(name)
    exact = run(work, "reference", torch.float64)
    assert all(t.dtype == torch.float64 and t.isfinite().all() and t.any() for t in exact)
    for other in work.contestants:
        for got, wanted in zip(run(work, other, torch.float64), exact, strict=True):
            assert (got - wanted).abs().max() <= 1e-11 * wanted.abs().max(), other
    assert len(graphs) >= 2  # at least reading and writing


def test_compiled_cases_do_not_use_up_each_others_limit(graphs):
    counts = []
    with torch._dynamo.config.patch(recompile_limit=2):  # then Dynamo gives up, silently
        for _ in range(3):
            work = build("reason_local")
            work.contestants["torch.compile"].call(*work.leaves)
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
    monkeypatch.setenv("IRNET_IMPL", "reference")  # as the contestant does: other kernels round otherwise
    setup = Setup(NETWORKS["reason_full"].shapes["gate"], torch.float32, CPU)
    work = NETWORKS[f"reason_{variant}"].build(setup)
    net, batch = model.build(setup, variant, model.Given(setup.features)).double(), model.random_batch(setup)
    assert net.graph is None or net.graph.graph_values.dtype == torch.float64
    net.requires_grad_(False)
    wanted = net.reason(work.leaves[0].double(), batch.boxes, batch.ptr)
    found = run(work, "reference", torch.float64)[0]
    columns = [*wanted.logits.values(), *(row[:, None] for row in wanted.confidences)]
    assert torch.equal(found, torch.cat(columns, 1))
    assert len(work.leaves) == 1 + len(list(net.parameters()))


@each_network
def test_bfloat16_is_autocast_over_float32_leaves(name):
    work, plain = build(name, torch.bfloat16), build(name)
    assert all(leaf.dtype == torch.float32 for leaf in work.leaves)
    assert all(torch.equal(a, b) for a, b in zip(work.leaves, plain.leaves, strict=True))
    out, *gradients = run(work, "reference", torch.float32)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert out.dtype == (torch.float32 if name.startswith("train") else torch.bfloat16)
    exact = run(work, "reference", torch.float64)[0]
    error = ((out.double() - exact).norm() / exact.norm()).item()
    assert 2**-20 < error < 16 * 2**-9  # rounded, as float32 is not; some sixteen roundings in a row at most


def test_reference_means_reference_and_auto_what_irnet_chooses(monkeypatch):
    monkeypatch.setattr(model, "dispatch", SimpleNamespace(choose=lambda op, impl, device: "cpp"))
    work = build("reason_full")
    assert list(work.contestants) == ["reference", "auto", "torch.compile"]
    asked, real = set(), dispatch.choose

    def choose(name, impl, device):
        asked.add((name, os.environ.get("IRNET_IMPL")))
        return real(name, impl, device)

    monkeypatch.setattr(dispatch, "choose", choose)
    for contestant, wanted in (("reference", "reference"), ("auto", None)):
        asked.clear()
        work.contestants[contestant].call(*work.leaves)
        assert asked == {(op, wanted) for op in dispatch.available()}
    monkeypatch.setenv("IRNET_IMPL", "auto")
    with pytest.raises(KeyError, match="inside"), machine.variable("IRNET_IMPL", "reference"):
        raise KeyError("inside")
    assert os.environ["IRNET_IMPL"] == "auto"


def test_auto_is_left_out_where_it_is_the_reference(monkeypatch):
    monkeypatch.setattr(model, "dispatch", SimpleNamespace(choose=lambda op, impl, device: "reference"))
    assert "auto" not in build("reason_full").contestants


@each_network
def test_a_sweep_changes_the_sizes(name):
    for images, regions in ((1, 3), (3, 1)):
        work = build(name, images=images, regions=regions, iterations=1, classes=7)
        out = work.contestants["reference"].call(*work.leaves)
        assert work.items == (images * regions if work.unit == "regions" else images)
        if name.startswith("train"):
            assert out.shape == () and out > 0
        else:
            predictions = 3 if name.endswith("full") else 2
            assert out.shape == (images * regions, predictions * (7 + 1))
    count = lambda **shape: sum(leaf.numel() for leaf in build(name, **shape).leaves)  # noqa: E731
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
    assert frozen and len(work.leaves) == len(list(net.parameters())) - len(frozen)
    assert all(t.isfinite().all() and t.any() for t in run(work, "reference", torch.float64))


# ------------------------------------------------------------------------------------------------------------ training


@each_training
def test_a_step_updates_and_leaves_the_weights_as_they_are(name):
    work = build(name)
    del work.contestants["torch.compile"]  # takes seconds and has no step of its own
    before = [leaf.clone().view(torch.int32) for leaf in work.leaves]
    updates, real = [], work.update
    work.update = lambda leaves, gradients: (updates.append(gradients), real(leaves, gradients))
    for contestant in work.contestants.values():
        step = mode_call(work, contestant, "step")
        first, second = step(), step()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(updates) == 2 * len(work.contestants) and work.modes == ("step",)
    assert all(torch.equal(leaf.view(torch.int32), old) for leaf, old in zip(work.leaves, before, strict=True))


def test_update_is_the_engines_sgd():
    net = model.build(Setup(NETWORKS["train_step_full"].shapes["gate"], torch.float32, CPU), "full")
    before = [weight.clone() for weight in model.weights(net)]
    update = training.make_update(net, TrainConfig(lr=0.25, momentum=0.5, weight_decay=0.125))
    leaves = [torch.full_like(weight, 2.0).requires_grad_() for weight in before]
    update(leaves, tuple(torch.full_like(weight, 3.0) for weight in before))
    for leaf, weight in zip(leaves, before, strict=True):
        decay = 0.125 if leaf.dim() > 1 else 0.0
        momentum = 0.5 * decay * weight + 3 + decay * 2  # the momentum was made by a gradient of zero
        torch.testing.assert_close(leaf.detach(), 2 - 0.25 * momentum)


@each_training
def test_grad_checkpointing_saves_less_for_the_same_gradients(name, monkeypatch):
    monkeypatch.setenv("IRNET_IMPL", "reference")  # both with the same kernels
    work = build(name, hidden=64, images=1)  # the gradients of several are added up in another order
    inputs = [leaf.detach().requires_grad_() for leaf in work.leaves]
    kept = {
        c: saved_bytes(lambda c=c: work.contestants[c].call(*inputs), inputs)
        for c in ("reference", "grad checkpointing")
    }
    assert kept["grad checkpointing"] < kept["reference"]
    for dtype in (torch.float64, torch.float32):  # one after the other: nothing of the first stays in the model
        same = zip(run(work, "grad checkpointing", dtype), run(work, "reference", dtype), strict=True)
        assert all(torch.equal(a, b) for a, b in same)


# ---------------------------------------------------------------------------------------------------------------- data


@each_data
def test_data_contestants_give_one_tensor_and_a_sweep_changes_it(name):
    work = build(name)
    wanted = work.contestants[work.reference].call()
    for contestant in work.contestants.values():
        assert torch.equal(contestant.call(), wanted)
    assert work.modes == ("forward",) and not work.leaves and wanted.numel() > 4
    larger = build(name, images=6)
    assert larger.items > work.items or name == "class_graph"
    found = larger.contestants[larger.reference].call()
    assert found.shape != wanted.shape or not torch.equal(found, wanted)


def test_temporary_folders_vanish(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = build("load_batches")
    assert len(list(tmp_path.iterdir())) == 1
    work.contestants["workers=0"].call()
    del work
    gc.collect()
    assert not list(tmp_path.iterdir())
    build("scene_generation").contestants["irnet"].call()
    assert not list(tmp_path.iterdir())


def test_checksum_sees_every_bit_and_the_order():
    def batch(pixels: list[float]) -> Batch:
        image = torch.tensor(pixels).reshape(1, 1, 2)
        return Batch([image], torch.zeros(1, 4), torch.tensor([0, 1]), torch.tensor([5]), ["a.png"])

    found = [data.checksum([batch(pixels)]) for pixels in ([1.0, 2.0], [2.0, 1.0], [1.0, 2.0000002], [1.0, 2.0])]
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_class_graph_counts_images():
    work = build("class_graph", images=50)
    assert (work.items, work.unit) == (50, "images")
    src, dst, weight = work.contestants["irnet"].call()
    assert ((src != dst) & (weight > 0) & (weight <= 1)).all() and len(src) > 50
