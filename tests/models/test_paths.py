"""Paths that settings switch off: nothing goes through them, and no weight of theirs is left."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from irnet.data.sample import Batch
from irnet.models.predictions import CONV, PredictionKey
from irnet_kernels import EdgeSet
from tests.models.test_irnet import CLASSES, build, compute, gradients, make_batch, mixed, tensors

OFF = {
    "spatial": {"spatial_edges": False},
    "class-edges": {"class_edges": False},
    "class-path": {"class_path": False},
    "exchange": {"spatial_edges": False, "class_path": False},
    "geometry": {"spatial_edges": False, "learn_geometry": True},
    "cross-feed": {"cross_feed": False},
    "mean": {"attention": "mean"},
    "last": {"attention": "last"},
}
# Parts of the names of the weights that a path has.
WEIGHTS = {
    "spatial": [".spatial"],
    "class-edges": [".semantic"],
    "class-path": [".semantic", "class_features", "region_to_class", "class_to_class", "class_to_region"],
    "exchange": [".spatial", ".semantic", "class_features", ".layers."],
    "geometry": [".spatial", ".log_bandwidth", ".scale"],
    "cross-feed": [],
    "mean": ["confidence"],
    "last": ["confidence"],
}


@pytest.mark.parametrize("variant", ["local", "global", "full"])
@pytest.mark.parametrize("path", OFF)
def test_no_weight_of_a_path_is_left_and_all_others_learn(path, variant):
    model = build(variant, **OFF[path]).train()
    whole = set(dict(build(variant, learn_geometry=path == "geometry").named_parameters()))
    left = gradients(model, compute(model, mixed())[0].total)
    assert [name for name, gradient in left.items() if gradient is None] == []
    assert whole - set(left) == {name for name in whole if any(part in name for part in WEIGHTS[path])}
    assert variant == "local" or path == "cross-feed" or len(left) < len(whole)


def without_last(batch: Batch) -> Batch:
    """The one image of a batch without its last region."""
    count = len(batch.boxes) - 1
    return Batch(batch.images, batch.boxes[:count], torch.tensor([0, count]), batch.labels[:count], batch.names)


@torch.no_grad()
def largest_change(model, one: Batch, other: Batch, regions: int) -> float:
    model.double()
    return (model(one).final[:regions] - model(other).final[:regions]).abs().max().item()


def test_without_spatial_edges_where_a_box_lies_tells_the_others_nothing():
    """On one even picture a box that moves looks as before, so that its place alone could tell."""
    batch = make_batch([(160, 160)], [3], dtype=torch.float64)
    batch.images[0].fill_(0.5)
    batch.boxes = torch.tensor([[48.0, 48, 64, 64], [64.0, 48, 80, 64], [96.0, 96, 112, 112]])
    moved = Batch(batch.images, batch.boxes.clone(), batch.ptr, batch.labels, batch.names)
    moved.boxes[2] -= torch.tensor([32.0, 0, 32, 0])
    assert largest_change(build("global", **OFF["spatial"]), batch, moved, 2) < 1e-12
    assert largest_change(build("global"), batch, moved, 2) > 1e-4
    assert largest_change(build("global", **OFF["class-path"]), batch, moved, 2) > 1e-4


def test_without_any_exchange_a_region_is_by_itself():
    batch = make_batch([(64, 80)], [3], dtype=torch.float64)
    assert largest_change(build("global", **OFF["exchange"]), batch, without_last(batch), 2) < 1e-12
    for path in ("spatial", "class-path"):
        assert largest_change(build("global", **OFF[path]), batch, without_last(batch), 2) > 1e-4


@pytest.mark.parametrize("path", ["spatial", "class-edges", "class-path"])
def test_the_class_graph_matters_through_its_edges_alone(path):
    model, batch = build("global", **OFF[path]), mixed()
    other = EdgeSet.from_edges([(torch.tensor([1]), torch.tensor([4]), torch.ones(1))] * 2, CLASSES, normalize=True)
    with torch.no_grad():
        before = model(batch).final
        for name, tensor in zip(("indptr", "indices", "values"), other.tensors()[:3], strict=True):
            setattr(model.graph, f"graph_{name}", tensor)
        change = (model(batch).final - before).abs().max()
    assert (change > 1e-4) == (path == "spatial")


def test_without_cross_feed_each_module_is_as_if_alone():
    """The same weights give the local module's predictions without the global one, and the other way round."""
    full, batch = build("full", cross_feed=False).double(), mixed(dtype=torch.float64)
    with torch.no_grad():
        together = full(batch).logits
        for variant, part in (("local", "graph"), ("global", "local")):
            alone = build(variant).double()
            alone.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith(f"{part}.")})
            for key, logits in alone(batch).logits.items():
                torch.testing.assert_close(logits, together[key], msg=str(key))
        fed = build("full").double()
        before = fed(batch).logits
        fed.local.classifier.bias.add_(torch.arange(CLASSES))
        assert (fed(batch).logits[PredictionKey("global", 2)] - before[PredictionKey("global", 2)]).abs().max() > 1e-4


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("variant", ["conv", "local", "full"])
@pytest.mark.parametrize("attention", ["mean", "last"])
def test_an_attention_that_is_not_learned(attention, variant, checkpointing):
    model, batch = build(variant, attention=attention).double(), mixed(dtype=torch.float64)
    model.set_grad_checkpointing(checkpointing)
    found = model.train()(batch)
    mixture = [f for key, f in found.logits.items() if attention == "mean" or variant == "conv" or key.iteration == 2]
    assert len(mixture) == {"mean": len(found.logits), "last": 2 if variant == "full" else 1}[attention]
    torch.testing.assert_close(found.final, torch.stack(mixture).mean(0).detach())
    torch.testing.assert_close(found.attention.sum(0), torch.ones(10, dtype=torch.float64))
    assert not found.confidences.any() and list(tensors(found))[-1] == "final"


@pytest.mark.parametrize("widths", [[6], [7, 5, 9]])
def test_layers_between_the_feature_and_the_classifier(widths):
    model, batch = build("conv", conv_head=widths), mixed()
    shapes = [(layer.out_features, layer.in_features) for layer in model.conv_head if hasattr(layer, "weight")]
    assert shapes == [(b, a) for a, b in itertools.pairwise([16, *widths])]
    seen = []
    model.conv_head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits = model(batch).logits[CONV]
    for features, output in seen:
        for layer in model.conv_head[::2]:
            features = F.relu(F.linear(features, layer.weight, layer.bias))
        torch.testing.assert_close(output, features)
    assert logits.shape == (10, CLASSES) and all(g is not None for g in gradients(model, logits.sum()).values())
    assert {name.split(".")[0] for name in build("conv").state_dict()} == {"backbone", "classifier"}
