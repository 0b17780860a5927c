"""One step of training: alone, in parts, in other dtypes, compiled; without any file."""

import copy
import math

import pytest
import torch

from irnet.config import Config, ModelConfig, TrainConfig
from irnet.data.loader import batches
from irnet.data.registry import open_dataset
from irnet.data.sample import Batch
from irnet.engine import checkpoint, optim
from irnet.engine.build import compile_parts, restore_model
from irnet.engine.optim import make_optimizer, make_scheduler
from irnet.engine.step import PENDING, check_finite, gradients, make_scaler, train_step, update
from irnet.errors import InputError
from irnet.models.irnet import IRNet
from irnet_kernels import EdgeSet
from tests.engine.tools import assert_same_tensors

CPU = torch.device("cpu")


def one_step(config: Config, model: IRNet, batch: Batch) -> tuple[dict, dict[str, float]]:
    """State dict of a copy of the model after one step of the optimiser on `batch`, and the step's metrics."""
    model = copy.deepcopy(model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    model.train()
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(CPU, config.train)
    make_scheduler(optimizer, config.train)
    metrics = gradients(model, batch, optimizer, scaler, config)
    update(optimizer, scaler)
    return model.state_dict(), metrics


@pytest.fixture(scope="module")
def step_parts(trained, scenes_root):
    """A config (SGD, so that a step is linear in the gradient), a model and a batch of four images."""
    saved = checkpoint.find(trained)
    config = saved.config
    config.train.optimizer, config.train.lr, config.train.clip_norm, config.train.cosine = "sgd", 0.5, 0.0, False
    data = open_dataset(config.data, "train")
    model = restore_model(config.model, len(saved.classes), saved.model)
    config.train.seed = 1
    batch = next(batches(data, config, train=True))
    assert len(set(batch.ptr.diff().tolist())) > 1  # unequal numbers of regions
    return config, model, batch


@pytest.mark.parametrize("parts", [2, 4, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_accumulated_step_is_the_step(step_parts, parts, dtype, tolerance):
    config, model, batch = copy.deepcopy(step_parts)
    model, batch.images = model.to(dtype), [image.to(dtype) for image in batch.images]
    whole, metrics = one_step(config, model, batch)
    config.train.grad_accum_steps = parts
    split, split_metrics = one_step(config, model, batch)
    moved = max((whole[n] - t).abs().max().item() for n, t in model.state_dict().items() if t.is_floating_point())
    assert moved > 1e-3
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=tolerance, atol=tolerance)
    assert split_metrics == pytest.approx(metrics, rel=tolerance)


def test_grad_checkpointing_gives_the_same_step(step_parts):
    """To the bit for one image. Of several it adds up the gradients in another order."""
    config, model, batch = copy.deepcopy(step_parts)
    plain, metrics = one_step(config, model, batch.split(4)[0])
    config.train.grad_checkpointing = True
    checkpointed, same = one_step(config, model, batch.split(4)[0])
    assert metrics == same
    assert_same_tensors(plain, checkpointed)
    model, batch.images = model.double(), [image.double() for image in batch.images]
    several, metrics = one_step(config, model, batch)
    config.train.grad_checkpointing = False
    whole, same = one_step(config, model, batch)
    assert metrics == pytest.approx(same, rel=1e-12)
    for name in whole:
        torch.testing.assert_close(several[name], whole[name], rtol=1e-12, atol=1e-12)


def test_eight_images_at_once_as_two_fours_and_one_by_one(trained, scenes_root):
    """The same weights to 1e-12 in float64, with activations kept and made again."""
    saved = checkpoint.find(trained)
    config = saved.config
    config.train.optimizer, config.train.lr, config.train.clip_norm, config.train.cosine = "sgd", 0.5, 0.0, False
    config.train.batch_size = 8
    model = restore_model(config.model, len(saved.classes), saved.model).double()
    batch = next(batches(open_dataset(config.data, "train"), config, train=True))
    batch.images = [image.double() for image in batch.images]
    assert len(batch.images) == 8
    found = []
    for config.train.grad_checkpointing in (False, True):
        for config.train.grad_accum_steps in (1, 2, 8):
            found.append(one_step(config, model, batch)[0])
    assert (found[0]["classifier.weight"] - model.classifier.weight).abs().max() > 1e-3
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-12, atol=1e-12)


def test_an_image_with_a_thousand_boxes_and_one_with_none():
    """In parts of regions the gradients are those of all at once, and the image without regions takes nothing away."""
    config, model, batch = tiny(clip_norm=0.0)
    corners = 40 * torch.rand(1000, 2)
    batch.boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(1000, 2)], 1)
    batch.ptr, batch.labels = torch.tensor([0, 1000, 1000]), torch.arange(1000) % 3
    model, batch.images = model.double(), [image.double() for image in batch.images]
    whole, metrics = one_step(config, model, batch)
    config.train.grad_checkpointing = True
    parts, same = one_step(config, model, batch)
    assert metrics == pytest.approx(same, rel=1e-12)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=1e-12)


def test_bf16_changes_the_arithmetic_and_not_much(step_parts):
    config, model, batch = copy.deepcopy(step_parts)
    _, exact = one_step(config, model, batch)
    config.train.amp = "bf16"
    _, rounded = one_step(config, model, batch)
    assert rounded != exact
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=2**-8)


@pytest.mark.parametrize("chunk", [None, 2], ids=["whole", "in-parts"])
def test_compiled_model_is_the_model(step_parts, chunk, monkeypatch):
    """So it is where checkpointing takes the regions in parts."""
    config, model, batch = copy.deepcopy(step_parts)
    if chunk is not None:
        monkeypatch.setattr("irnet.models.irnet.CHUNK", chunk)
        model.set_grad_checkpointing(True)
    _, metrics = one_step(config, model, batch)
    names = list(model.state_dict())
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *a, **k: real(*a, backend=backend, **k))
        compile_parts(model)
        assert list(model.state_dict()) == names
        model.train()
        optimizer = make_optimizer(model, config.train)
        compiled = gradients(model, batch, optimizer, make_scaler(CPU, config.train), config)
    assert len(calls) >= 5  # the global module's reading and writing, and the local one's of maps and patches
    assert compiled == pytest.approx(metrics, rel=1e-5)


# --------------------------------------------------------------------------------- a model, a batch and an optimiser


def tiny(variant: str = "full", **train) -> tuple[Config, IRNet, Batch]:
    """Settings, a model of few channels, and a batch of random images, boxes and labels."""
    torch.manual_seed(0)
    sizes = {"memory_channels": 4, "memory_size": 4, "hidden": 8, "graph_channels": 4, "graph_layers": 1}
    sizes |= {"backbone": "small", "backbone_channels": 4, "patch_size": 2, "iterations": 1}
    config = Config(ModelConfig(variant=variant, **sizes), train=TrainConfig(**train))
    triple = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.ones(2)
    edges = EdgeSet.from_edges([triple], 3, normalize=True)
    model = IRNet(config.model, 3, edges if variant == "full" else None).train()
    corners = 30 * torch.rand(5, 2)
    boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(5, 2)], 1)
    ptr, labels = torch.tensor([0, 3, 5]), torch.tensor([0, 1, 2, 0, 1])
    return config, model, Batch([torch.randn(3, 64, 80), torch.randn(3, 70, 64)], boxes, ptr, labels, ["a", "b"])


@pytest.mark.parametrize("variant", ["conv", "full"])
def test_training_needs_no_file(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, model, batch = tiny(variant, optimizer="adamw", lr=0.01, steps=30, warmup_steps=2, cosine=True)
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(CPU, config.train)
    scheduler, history = make_scheduler(optimizer, config.train), []
    for step in range(1, config.train.steps + 1):
        history.append(train_step(model, batch, optimizer, scaler, config, step)["loss"])
        scheduler.step()
    assert history[-1] < 0.5 * history[0]
    assert not list(tmp_path.iterdir())


def test_gradients_leave_the_weights_and_replace_each_other():
    config, model, batch = tiny(clip_norm=0.0)
    before = copy.deepcopy(model.state_dict())
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(CPU, config.train)
    first = gradients(model, batch, optimizer, scaler, config)
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    assert gradients(model, batch, optimizer, scaler, config) == first and "grad_norm" not in first
    assert norms == [p.grad.norm().item() for p in model.parameters() if p.grad is not None] and max(norms) > 0
    assert before["classifier.weight"].equal(model.classifier.weight)


def test_gradients_are_clipped_and_their_norm_is_a_metric():
    config, model, batch = tiny(clip_norm=0.01)
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(CPU, config.train)
    assert gradients(model, batch, optimizer, scaler, config)["grad_norm"] > 0.01
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
    check_finite(1e30, 7)
    with pytest.raises(InputError, match=r"training: the loss at step 7 is -?(nan|inf); lower train\.lr"):
        check_finite(loss, 7)


def test_a_float16_step_whose_gradients_overflow_is_left_out():
    config, model, batch = tiny(amp="fp16", clip_norm=0.0)
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(CPU, config.train)
    assert scaler.is_enabled() and not make_scaler(CPU, TrainConfig()).is_enabled()
    scale, before = scaler.get_scale(), copy.deepcopy(model.state_dict())
    gradients(model, batch, optimizer, scaler, config)
    model.classifier.weight.grad[0, 0] = math.inf
    update(optimizer, scaler)
    assert scaler.get_scale() < scale
    assert_same_tensors(before, model.state_dict())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_updating_in_backward_is_the_step(optimizer, checkpointing):
    """Over steps that have momenta: 1e-12 where gradients go into them as they come, the same bits elsewhere."""
    config, model, batch = tiny("full", optimizer=optimizer, lr=0.01, clip_norm=0.0)
    model, batch.images = model.double(), [image.double() for image in batch.images]
    config.train.grad_checkpointing = checkpointing
    models, before = (model, copy.deepcopy(model)), model.classifier.weight.clone()
    optimizers = [make_optimizer(m, config.train) for m in models]
    scaler = make_scaler(CPU, config.train)
    for number in range(1, 4):
        metrics = train_step(models[0], batch, optimizers[0], scaler, config, number)
        expected = gradients(models[1], batch, optimizers[1], scaler, config, number)
        assert metrics == pytest.approx(expected, rel=1e-12)
        update(optimizers[1], scaler)
    weights = [m.state_dict() for m in models]
    pairs = zip(optimizers, models, strict=True)
    moments = [checkpoint.optimizer_tensors(o, dict(m.named_parameters())) for o, m in pairs]
    assert moments[0].keys() == moments[1].keys()
    for found, wanted in ((weights[0], weights[1]), (moments[0], moments[1])):
        if optimizer == "adamw":
            assert_same_tensors(found, wanted)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in models[0].parameters()) and not before.equal(model.classifier.weight)


def gradients_at_once(config: Config, model: IRNet, batch: Batch) -> tuple[int, int]:
    """The most bytes of gradients that exist together in a step, and the calls of the optimiser."""
    optimizer, most, calls = make_optimizer(model, config.train), 0, 0

    def count(*_):
        nonlocal most, calls
        most, calls = max(most, sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)), calls + 1

    optimizer.register_step_pre_hook(count)
    train_step(model, batch, optimizer, make_scaler(CPU, config.train), config, 1)
    assert all(p.grad is None for p in model.parameters()) or calls == 1
    return most, calls


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("settings", "together"), [({}, False), ({"clip_norm": 1.0}, True), ({"grad_accum_steps": 2}, True)], ids=str
)
def test_gradients_exist_together_only_where_they_must(settings, together, optimizer):
    config, model, batch = tiny(**({"clip_norm": 0.0, "optimizer": optimizer} | settings))
    sizes = [p.nbytes for p in model.parameters()]
    most, calls = gradients_at_once(config, model, batch)
    if together:
        assert (most, calls) == (sum(sizes), 1)
    else:
        assert most <= max(sizes) + sum(sizes) / PENDING and 1 < calls < min(len(sizes), PENDING + 3)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_wide_layers_have_no_gradient_where_it_goes_into_the_momentum(amp, monkeypatch):
    """In blocks where the product has another dtype; and the run is told before a momentum changes."""
    monkeypatch.setattr(optim, "BLOCK", 40)  # bytes: a row or two
    config, model, batch = tiny("local", amp=amp, clip_norm=0.0, lr=0.1)
    if amp == "off":
        model.double()
        batch.images = [image.double() for image in batch.images]
    reads = 1 + config.model.iterations
    weight = model.local.read1.weight
    found, calls = [], []
    other = copy.deepcopy(model)
    weight.register_post_accumulate_grad_hook(lambda p: found.append(p.grad))
    optimizers = [make_optimizer(m, config.train) for m in (model, other)]
    scaler = make_scaler(CPU, config.train)

    def begin(*_):
        moment = optimizers[0].state[weight].get("momentum_buffer")
        calls.append(None if moment is None else moment.clone())

    optimizers[0].register_step_pre_hook(begin)
    for number in (1, 2):
        before, calls[:] = weight.clone(), []
        first = optimizers[0].state[weight].get("momentum_buffer")
        first = None if first is None else first.clone()
        train_step(model, batch, optimizers[0], scaler, config, number)
        assert (calls[0] is None) == (first is None) and (first is None or calls[0].equal(first))
        gradients(other, batch, optimizers[1], scaler, config, number)
        largest = other.local.read1.weight.grad.abs().max().item()
        update(optimizers[1], scaler)
        assert set(found) == {None} and not weight.equal(before)
        # Of each of the reads at most the products are rounded to bfloat16, and of the earlier step 0.9 of its own.
        tolerance = 1e-12 if amp == "off" else 2 * number * config.train.lr * reads * 2**-8 * largest
        torch.testing.assert_close(weight, other.local.read1.weight, rtol=0, atol=tolerance)


@pytest.mark.parametrize("changes", [{"nesterov": True}, {"momentum": 0.0}, {"maximize": True}], ids=str)
def test_only_plain_momentum_takes_gradients_as_they_come(changes):
    config, model, batch = tiny("local", clip_norm=0.0)
    optimizer = make_optimizer(model, config.train)
    for group in optimizer.param_groups:
        group |= changes
    seen = []
    model.local.read1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad is not None))
    train_step(model, batch, optimizer, make_scaler(CPU, config.train), config, 1)
    assert seen == [True]


def test_a_step_whose_loss_is_not_finite_leaves_the_weights():
    config, model, batch = tiny(clip_norm=0.0)
    model.classifier.bias.data[0] = math.inf
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, config.train)
    with pytest.raises(InputError, match=r"training: the loss at step 5 is nan"):
        train_step(model, batch, optimizer, make_scaler(CPU, config.train), config, 5)
    assert_same_tensors(before, model.state_dict())


@pytest.mark.parametrize("settings", [{"clip_norm": 1.0}, {"grad_accum_steps": 2}], ids=str)
def test_no_gradient_is_left_behind_a_step(settings):
    """An evaluation may follow, whose plan counts none."""
    config, model, batch = tiny(**settings)
    optimizer = make_optimizer(model, config.train)
    train_step(model, batch, optimizer, make_scaler(CPU, config.train), config, 1)
    assert all(p.grad is None for p in model.parameters())
