"""Memory: a step that is planned on fake tensors takes what the allocator says that it takes."""

import dataclasses
import os

import pytest
import torch

from irnet.config import small
from irnet.engine.memory import Scene, Step, cost, measured, plain_path, planned, planned_evaluation
from irnet_kernels import EdgeSet, counts
from tests.tools import WITH_FORMULAS

CPU = torch.device("cpu")
CLASSES = 20


@pytest.fixture(scope="module")
def edges():
    nodes = torch.arange(CLASSES)
    return EdgeSet.from_edges([(nodes, nodes.roll(k), torch.ones(CLASSES)) for k in (1, 2)], CLASSES, normalize=True)


def settings(variant, amp="off", checkpointing=False, images=1, parts=1):
    config = small()
    config.model.variant = variant
    config.train.amp, config.train.grad_checkpointing = amp, checkpointing
    config.train.batch_size, config.train.grad_accum_steps = images, parts
    return config


@WITH_FORMULAS
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(
    ("variant", "images", "parts", "regions"),
    [
        *(("local", 8, 1, (16,)), ("local", 1, 1, (1000,)), ("full", 1, 1, (300,)), ("full", 6, 3, (50,))),
        ("full", 2, 1, (1000, 0)),
    ],
    ids=["local-8x16", "local-1x1000", "full-1x300", "full-6x50-in-3", "full-1000-and-0"],
)
def test_planned_is_what_the_allocator_says(variant, images, parts, regions, amp, checkpointing, edges):
    config, scene = settings(variant, amp, checkpointing, images, parts), Scene(128, 160, regions, CLASSES, edges)
    assert planned(config, scene).total == pytest.approx(measured(config, scene, CPU), rel=0.05)


@WITH_FORMULAS
@pytest.mark.parametrize("variant", ["conv", "local", "global", "full"])
def test_without_a_workspace_at_the_peak_the_plan_is_exact(variant, edges):
    config, scene = settings(variant), Scene(64, 64, (8, 2), CLASSES, edges, vector_size=30)
    config.train.clip_norm, config.model.hidden = 0.0, 512  # the peak is the gradient of the widest layer
    found = planned(config, scene)
    assert found.operator == "aten.mm" or variant in ("conv", "global")
    assert found.total == pytest.approx(measured(config, scene, CPU), rel=0.001)


def test_categories(edges):
    config, scene = settings("full", images=4), Scene(64, 64, (8,), CLASSES, edges)
    one, kept = (planned(c, scene).bytes for c in (settings("full"), config))
    assert one["parameters"] == kept["parameters"] and one["optimizer"] == kept["optimizer"]
    assert one["parameters"] < one["optimizer"] < 2 * one["parameters"] + 4096  # AdamW: two moments, counts of steps
    assert kept["batch"] == pytest.approx(4 * one["batch"], abs=64)
    config.train.grad_accum_steps = 4
    parts = planned(config, scene).bytes
    assert parts["batch"] == pytest.approx(kept["batch"], rel=0.01)  # without the boxes of what waits
    assert parts["activations"] < kept["activations"]
    assert 0.9 * parts["parameters"] < parts["gradients"] <= parts["parameters"]  # there from the first part on


def test_every_part_may_hold_the_image_with_most_regions():
    """Of two parts, the second has gradients beside it, whichever image is in it."""
    config = settings("local", images=2, parts=2)
    mixed, equal = (planned(config, Scene(64, 64, regions, CLASSES)) for regions in ((300, 2), (300,)))
    assert mixed.total == equal.total


@pytest.mark.parametrize("parts", [1, 2])
def test_a_budget_of_pixels_is_planned_as_the_images_that_it_lets_in(parts):
    scene, config = Scene(64, 96, (40,), CLASSES), settings("local", images=4, parts=parts)
    found = planned(config, scene)
    config.train.batch_size, config.train.max_batch_pixels = 12, 5 * 64 * 96 - 1
    assert planned(config, scene) == found
    # Of other sizes one may fill it better: of 64 x 120 three in two parts, of 64 x 79 six.
    mixed = dataclasses.replace(scene, sizes=((64, 96), (64, 120), (64, 79)))
    best = dataclasses.replace(scene, width=120 if parts == 2 else 79)
    assert planned(config, mixed) == planned(config, best) != found


def test_a_budget_of_regions_is_planned():
    scene = Scene(64, 64, (30, 20), CLASSES)
    assert scene.of(4) == scene.of(4, 1000) == [30, 20, 20, 20]
    assert scene.of(4, 60) == [30, 20, 10, 0] and scene.of(3, 8) == [30, 0, 0]
    config = settings("local", images=4)
    config.train.max_batch_regions = 60
    assert planned(config, scene) == planned(settings("local", images=4), Scene(64, 64, (30, 20, 10, 0), CLASSES))


@WITH_FORMULAS
def test_small_images_that_are_made_again_together_are_planned(monkeypatch, edges):
    """Two of the smaller size have more pixels than one of the largest, which has most regions and goes alone."""
    monkeypatch.setattr("irnet.models.irnet.PIXELS", 2 * 192 * 256)
    config, small_one = settings("full", checkpointing=True, images=2), Scene(192, 256, (32,), CLASSES, edges)
    real = measured(config, small_one, CPU)
    scene = Scene(208, 256, (33,), CLASSES, edges)
    assert planned(config, scene).total < 0.95 * real
    scene = dataclasses.replace(scene, sizes=((208, 256), (192, 256)))
    assert planned(config, scene).total == pytest.approx(real, rel=0.05)
    assert measured(config, scene, CPU) == real
    config.train.grad_checkpointing = False
    assert planned(config, scene) == planned(config, dataclasses.replace(scene, sizes=()))


@pytest.mark.parametrize(("optimizer", "part"), [("adamw", 0.6), ("sgd", 0.05)])
def test_gradients_that_are_not_needed_together_are_not_there(optimizer, part):
    """Without clipping, weights are updated within the backward pass; SGD needs no gradient of wide layers."""
    scene, config = Scene(64, 64, (8,), CLASSES), settings("local")
    config.model.hidden, config.train.optimizer = 512, optimizer
    kept = planned(config, scene).bytes["gradients"]
    config.train.clip_norm = 0.0
    assert planned(config, scene).bytes["gradients"] < part * kept


def test_activations_grow_with_images_and_checkpointing_keeps_fewer():
    scene = Scene(128, 160, (50,), CLASSES)
    one, four = (planned(settings("local", images=n), scene).bytes["activations"] for n in (1, 4))
    assert 3 * one < four < 5 * one
    assert planned(settings("local", checkpointing=True, images=4), scene).bytes["activations"] < 0.8 * four


def test_a_further_image_takes_a_sixth_of_the_plain_path_for_a_third_more_arithmetic(edges):
    """The bars of full size: `irnet plan --variant full --grad-checkpointing --compare --classes 1485`."""
    config, scene = settings("full"), Scene(160, 240, (40,), CLASSES, edges)
    config.model.backbone, config.train.clip_norm = "resnet50", 0.0
    with plain_path(config) as path:
        plain = cost(path, scene, images=3)
    config.train.grad_checkpointing = True
    found = cost(config, scene, images=3)
    assert found.bytes < plain.bytes / 6 and plain.flops < found.flops < 1.35 * plain.flops


@WITH_FORMULAS
@pytest.mark.parametrize(("images", "regions"), [(1, 100), (6, 30)])
def test_a_planned_evaluation_is_what_the_allocator_says(images, regions, edges):
    config, scene = settings("full"), Scene(128, 160, (regions,), CLASSES, edges)
    step = Step(settings("full", images=images), scene, False, CPU)

    def evaluate():
        with torch.no_grad():
            for logits in step.model.eval()(step.batch).with_final().values():
                logits.float().softmax(1)

    there = sum(t.nbytes for tensors in step.present().values() for t in tensors)
    found = planned_evaluation(config, scene, images)
    assert found.total == pytest.approx(there + counts.count(evaluate, CPU).peak_allocated_bytes, rel=0.05)
    assert not found.bytes["optimizer"] and not found.bytes["gradients"]
    within = planned_evaluation(config, scene, images, training=True)  # AdamW's two moments beside it
    assert within.total - found.total == within.bytes["optimizer"] > 1.9 * found.bytes["parameters"]


def test_the_plain_path_has_reference_operators_within_it_alone(monkeypatch):
    for before in (None, "cpp"):
        monkeypatch.delenv("IRNET_IMPL", raising=False)
        if before:
            monkeypatch.setenv("IRNET_IMPL", before)
        with plain_path(settings("local", "bf16", checkpointing=True)) as config:
            assert os.environ["IRNET_IMPL"] == "reference"
            assert (config.train.amp, config.train.grad_checkpointing) == ("off", False)
        assert os.environ.get("IRNET_IMPL") == before


@WITH_FORMULAS
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_float16_and_its_scaler(optimizer):
    config, scene = settings("local", "fp16", images=2), Scene(128, 160, (100,), CLASSES)
    config.train.optimizer = optimizer
    found = planned(config, scene)
    assert found.total == pytest.approx(measured(config, scene, CPU), rel=0.05)
    moments = {"sgd": 1, "adamw": 2}[optimizer] * found.bytes["parameters"]
    assert found.bytes["optimizer"] == pytest.approx(moments, rel=0.01)


def test_a_plan_for_a_gpu_needs_none_and_is_in_its_segments():
    config, scene = settings("local", "fp16"), Scene(64, 64, (8,), CLASSES)
    found = planned(config, scene, gpu=True)
    assert all(size % 512 == 0 for size in found.bytes.values())
    assert found.used + found.bytes["unused"] == found.total and found.total % (2 * 2**20) == 0
    assert 0 <= found.bytes["unused"] < 40 * 2**20
    assert found.bytes["optimizer"] > 1.9 * found.bytes["parameters"]
