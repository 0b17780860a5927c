"""The roll-out: what each variant predicts, what learns from what, and that images never see each other."""

import math

import pytest
import torch
from torch.nn import functional as F

from irnet.config import VARIANTS, LossConfig, ModelConfig
from irnet.data.sample import Batch
from irnet.models import losses
from irnet.models.backbone import STRIDE, ResNet
from irnet.models.global_module import GlobalState
from irnet.models.irnet import CHUNK, NODES, PIXELS, IRNet, nodes_of, together
from irnet.models.local_module import LocalState, resize_legacy
from irnet.models.predictions import CONV, PredictionKey, Predictions
from irnet.models.regions import Regions
from irnet_kernels import EdgeSet, conv_gru, crop_resize

CLASSES = 5
ITERATIVE = ("local", "global", "full")
LOCAL_2, GLOBAL_1, GLOBAL_2 = PredictionKey("local", 2), PredictionKey("global", 1), PredictionKey("global", 2)


def class_graph() -> EdgeSet:
    edge = lambda src, dst, weight: (torch.tensor(src), torch.tensor(dst), torch.tensor(weight))  # noqa: E731
    relations = [edge([0, 1, 2, 4], [1, 2, 0, 3], [1.0, 2.0, 0.5, 1.0]), edge([3, 0], [0, 4], [1.0, 1.0])]
    return EdgeSet.from_edges(relations, CLASSES, normalize=True)


def build(variant="full", resnet=False, seed=0, word_vectors=None, graph=True, **changes) -> IRNet:
    """A small model with generic weights: zero memory, zero biases and tiny classifiers would hide mistakes."""
    torch.manual_seed(seed)
    values = {
        "iterations": 2,
        "patch_size": 5,
        "memory_channels": 6,
        "memory_size": 3,
        "hidden": 12,
        "graph_channels": 8,
    }
    config = ModelConfig(variant=variant, backbone="small", backbone_channels=8, **(values | changes))
    trunk = ResNet((1, 1, 1, 1)) if resnet else None
    model = IRNet(config, CLASSES, class_graph() if graph else None, word_vectors, trunk)
    for name, parameter in model.named_parameters():
        if not (resnet and name.startswith("backbone")):
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            torch.nn.init.normal_(parameter, std=math.sqrt(1.5 / fan_in))
    return model.eval()


def make_batch(shapes, counts, seed=0, dtype=torch.float32) -> Batch:
    torch.manual_seed(seed)
    images = [torch.randn(3, *shape, dtype=dtype) for shape in shapes]
    boxes = []
    for (height, width), count in zip(shapes, counts, strict=True):
        limit = torch.tensor([width, height], dtype=torch.float32)
        corner = torch.rand(count, 2) * limit * 0.6
        boxes.append(torch.cat([corner, corner + (limit - corner) * (0.2 + 0.8 * torch.rand(count, 2))], 1))
    ptr = torch.tensor([0, *counts]).cumsum(0)
    labels = torch.randint(0, CLASSES, (sum(counts),))
    return Batch(images, torch.cat(boxes), ptr, labels, [f"{i}.png" for i in range(len(shapes))])


def mixed(**kwargs) -> Batch:
    """Six images of three sizes, sizes interleaved, with 3, 0, 1, 4, 0 and 2 regions."""
    shapes = [(64, 80), (48, 96), (64, 80), (70, 33), (64, 80), (48, 96)]
    return make_batch(shapes, [3, 0, 1, 4, 0, 2], **kwargs)


def pick(batch: Batch, order) -> Batch:
    """The batch's images in another order, or some of them."""
    rows = [torch.arange(int(batch.ptr[b]), int(batch.ptr[b + 1])) for b in order]
    regions = torch.cat(rows)
    ptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    names = [batch.names[b] for b in order]
    return Batch([batch.images[b] for b in order], batch.boxes[regions], ptr, batch.labels[regions], names)


def rows_of(batch: Batch, order):
    return torch.cat([torch.arange(int(batch.ptr[b]), int(batch.ptr[b + 1])) for b in order])


def tensors(found: Predictions, rows=slice(None)) -> dict[str, torch.Tensor]:
    named = {str(key): value[rows] for key, value in found.logits.items()}
    named |= {"attention": found.attention[:, rows].T, "confidences": found.confidences[:, rows].T}
    return named | {"final": found.final[rows]}


def assert_same(found, expected, tolerance):
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023


def compute(model, batch, **weights):
    found = model(batch)
    return losses.compute(found, batch.labels, batch.ptr, LossConfig(**weights)), found


def gradients(model, loss) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


# images among themselves


@pytest.mark.parametrize("resnet", [False, True], ids=["small", "resnet"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_images_predictions_do_not_depend_on_the_batch(variant, resnet):
    model, batch = build(variant, resnet), mixed()
    with torch.no_grad():
        together = model(batch)
        assert together.final.shape == (10, CLASSES)
        for b in range(len(batch.images)):
            alone = model(pick(batch, [b]))
            assert_same(tensors(alone), tensors(together, rows_of(batch, [b])), 1e-4)
    # the images do differ, by far more than that
    assert (together.final[0] - together.final[3]).abs().max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_permutation_of_the_images_permutes_the_results(variant):
    model, batch = build(variant), mixed()
    with torch.no_grad():
        expected = tensors(model(batch))
        for order in ([5, 4, 3, 2, 1, 0], [2, 0, 4, 3, 5, 1]):
            rows = rows_of(batch, order)
            assert_same(tensors(model(pick(batch, order))), {k: v[rows] for k, v in expected.items()}, 1e-5)


@pytest.mark.parametrize("variant", ITERATIVE)
def test_regions_of_one_image_do_see_each_other(variant):
    """Predictions of a region change when another region of its image goes, the ConvNet's do not."""
    model, batch = build(variant), make_batch([(64, 80)], [3])
    fewer = Batch(batch.images, batch.boxes[:2], torch.tensor([0, 2]), batch.labels[:2], batch.names)
    with torch.no_grad():
        all_, some = model(batch), model(fewer)
    torch.testing.assert_close(all_.logits[CONV][:2], some.logits[CONV])
    for key in list(some.logits)[1:]:
        assert (all_.logits[key][:2] - some.logits[key]).abs().max() > 1e-4, key


@pytest.mark.parametrize("resnet", [False, True], ids=["small", "resnet"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_regions_in_any_image(variant, resnet):
    model, batch = build(variant, resnet).train(), make_batch([(48, 64), (33, 70)], [0, 0])
    loss, found = compute(model, batch)
    assert {key: tuple(v.shape) for key, v in found.logits.items()} == dict.fromkeys(found.logits, (0, CLASSES))
    assert found.final.shape == (0, CLASSES) and found.attention.shape == (len(found.logits), 0)
    assert loss.total.item() == 0 and loss.total.isfinite()
    for name, gradient in gradients(model, loss.total).items():
        assert gradient is None or not gradient.any(), name


# predictions


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("iterations", [1, 3, 12])
def test_names_and_order_of_the_predictions(variant, iterations):
    model, batch = build(variant, iterations=iterations), make_batch([(48, 48)], [2])
    with torch.no_grad():
        found = model(batch)
    names = ["conv"]
    for module in ("local", "global"):
        if variant in (module, "full"):
            names += [f"{module} {i}" for i in range(1, iterations + 1)]
    assert [str(key) for key in found.logits] == names
    assert found.attention.shape == found.confidences.shape == (len(names), 2)
    assert len(found.memories) == (iterations + 1 if variant in ("local", "full") else 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_final_prediction_is_the_attended_sum(variant):
    model, batch = build(variant).double(), mixed(dtype=torch.float64)
    found = model(batch)
    torch.testing.assert_close(found.attention.sum(0), torch.ones(10, dtype=torch.float64))
    final = torch.zeros(10, CLASSES, dtype=torch.float64)
    for r in range(10):
        shares = [math.exp(c) for c in found.confidences[:, r].tolist()]
        for k, logits in enumerate(found.logits.values()):
            assert found.attention[k, r].item() == pytest.approx(shares[k] / sum(shares))
            final[r] += shares[k] / sum(shares) * logits[r].detach()
    torch.testing.assert_close(found.final.detach(), final)
    if variant == "conv":
        assert torch.equal(found.final, found.logits[CONV])


@pytest.mark.parametrize("assignment", ["own", "mean"])
@pytest.mark.parametrize("variant", ITERATIVE)
def test_the_roll_out_step_by_step(variant, assignment):
    """Both modules' steps wired by hand from their description, image by image."""
    model = build(variant, assignment=assignment, iterations=3).double()
    batch = mixed(dtype=torch.float64)
    found = tensors(model(batch))
    local, graph = model.local, model.graph
    for b, image in enumerate(batch.images):
        rows = rows_of(batch, [b])
        boxes, ptr = batch.boxes[rows], torch.tensor([0, len(rows)])
        features, cells = model.backbone(image[None]), boxes / STRIDE
        patches = crop_resize(features, cells, ptr, 5)
        feature = model.backbone.head(patches)
        logits, confidence = {"conv": model.classifier(feature)}, {}
        before = {"local": logits["conv"], "global": logits["conv"]}
        regions = Regions(boxes, cells, ptr, patches, feature, None)
        if graph is not None:
            state = GlobalState(F.relu(graph.start_feature(feature)), graph.weights())
            confidence["conv"] = graph.confidence(state.states)
        if local is not None:
            memory = LocalState(resize_legacy(local.initial, *features.shape[2:]), local.weights())
            confidence["conv"] = local.confidence(local.read(memory, regions))
        for i in (1, 2, 3):
            now = dict(before)
            said = {
                "local": [before["local"]],
                "global": [before["global"]],
                "full": [before["local"], before["global"]],
            }
            regions = regions._replace(logits=torch.stack(said[variant], 1))
            if local is not None:
                memory = local.write(memory, regions)
                read = local.read(memory, regions)
                now["local"] = logits[f"local {i}"] = local.classifier(read)
                confidence[f"local {i}"] = local.confidence(read)
            if graph is not None:
                state = graph.write(state, regions)
                last = before["global"]
                if variant == "full" and assignment == "mean":
                    last = (before["global"] + before["local"]) / 2
                read = graph.read(state, regions._replace(logits=last[:, None]))
                now["global"] = logits[f"global {i}"] = graph.classifier(read)
                confidence[f"global {i}"] = graph.confidence(read)
            before = now
        for name, value in logits.items():
            torch.testing.assert_close(found[name][rows], value)
        order = list(found)[: len(logits)]
        torch.testing.assert_close(found["confidences"][rows], torch.cat([confidence[name] for name in order], 1))


def test_the_ways_of_assignment_differ():
    batch = mixed()
    with torch.no_grad():
        own, mean = (build("full", assignment=a)(batch).logits for a in ("own", "mean"))
        assert torch.equal(own[GLOBAL_1], mean[GLOBAL_1])  # both modules start from the ConvNet's prediction
        assert (own[GLOBAL_2] - mean[GLOBAL_2]).abs().max() > 1e-4
        own, mean = (build("global", assignment=a)(batch).logits for a in ("own", "mean"))
        assert torch.equal(own[GLOBAL_2], mean[GLOBAL_2])  # nothing to average with


def test_the_region_states_start_as_the_config_says():
    batch = mixed()
    with torch.no_grad():
        feature, zero = (build("global", region_start=s)(batch) for s in ("feature", "zero"))
    assert (feature.logits[GLOBAL_1] - zero.logits[GLOBAL_1]).abs().max() > 1e-3
    assert not zero.confidences[0].any() and feature.confidences[0].any()


def test_memories_are_those_before_each_read_and_only_for_one_size():
    model = build("local")
    batch = make_batch([(64, 80), (64, 80)], [2, 1])
    with torch.no_grad():
        memories = model(batch).memories
        assert model(mixed()).memories == []
        regions = Regions(batch.boxes, batch.boxes / STRIDE, batch.ptr, None, None, None)
        again = model.local.read(LocalState(memories[2], model.local.weights()), regions)
        torch.testing.assert_close(model.local.classifier(again), model(batch).logits[LOCAL_2])
    assert [tuple(m.shape) for m in memories] == [(2, 6, 4, 5)] * 3


# what learns from what


@pytest.mark.parametrize(
    ("variant", "resnet"),
    [("local", False), ("global", False), ("full", False), ("full", True)],
    ids=["local", "global", "full", "full-resnet"],
)
def test_the_convnet_learns_from_its_own_loss_alone(variant, resnet):
    model, batch = build(variant, resnet).double(), mixed(dtype=torch.float64)
    total = gradients(model, compute(model, batch)[0].total)
    conv = gradients(model, compute(model, batch)[0].conv)
    shared = [name for name in total if name.startswith(("backbone", "classifier"))]
    for name in shared:
        if conv[name] is None:  # frozen
            assert resnet and total[name] is None and name.startswith(("backbone.conv1", "backbone.layer1"))
            continue
        assert conv[name].any(), name
        torch.testing.assert_close(total[name], conv[name], rtol=1e-12, atol=1e-15)
    rest = [name for name in total if name not in shared]
    assert all(total[name] is not None and total[name].any() for name in rest), rest
    assert all(conv[name] is None for name in rest)


@pytest.mark.parametrize("variant", ITERATIVE)
def test_the_final_loss_teaches_the_confidences_only(variant):
    model, batch = build(variant).double(), mixed(dtype=torch.float64)
    found = gradients(model, compute(model, batch)[0].final)
    silent = {name for name, gradient in found.items() if gradient is None or not gradient.any()}
    assert {name for name in found if "classifier" in name or name.startswith("backbone")} <= silent
    modules = [m for m in ("local", "graph") if getattr(model, m) is not None]
    for module in modules:
        assert found[f"{module}.confidence.weight"].any()


@pytest.mark.parametrize("variant", ITERATIVE)
def test_predictions_that_enter_the_memories_are_detached(variant):
    """The last iteration's loss reaches the classifier through the last logits only."""
    model, batch = build(variant).double(), make_batch([(64, 80)], [3], dtype=torch.float64)
    key, module = (GLOBAL_2, model.graph) if variant == "global" else (LOCAL_2, model.local)
    inputs = []
    module.classifier.register_forward_hook(lambda module, args, out: inputs.append(args[0]))
    logits = model(batch).logits[key]
    probe = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad((logits * probe).sum(), module.classifier.weight)
    torch.testing.assert_close(gradient, probe.T @ inputs[-1])


@pytest.mark.parametrize(
    ("variant", "resnet"),
    [("conv", False), ("local", False), ("global", False), ("full", True)],
    ids=["conv", "local", "global", "full-resnet"],
)
def test_grad_checkpointing_changes_no_gradient(variant, resnet):
    model, batch = (
        build(variant, resnet).double().train(),
        make_batch([(48, 64), (40, 33)], [2, 1], dtype=torch.float64),
    )
    expected = gradients(model, compute(model, batch)[0].total)
    calls = []
    watched = [m for m in (model.local and model.local.read1, model.graph and model.graph.layers[0]) if m is not None]
    watched += [model.backbone.layer2[0].conv1, model.backbone.layer4[0].conv1] if resnet else []
    for module in watched:
        module.register_forward_hook(lambda module, *_: calls.append(module))
    gradients(model, compute(model, batch)[0].total)
    plain = len(calls)
    model.set_grad_checkpointing(True)
    calls.clear()
    found = gradients(model, compute(model, batch)[0].total)
    assert len(calls) == 2 * plain  # every watched step ran twice: its activations were not kept
    for name, gradient in found.items():
        assert (gradient is None) == (expected[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)
    model.set_grad_checkpointing(False)
    calls.clear()
    gradients(model, compute(model, batch)[0].total)
    assert len(calls) == plain
    model.set_grad_checkpointing(True)
    calls.clear()
    gradients(model.eval(), compute(model, batch)[0].total)
    assert len(calls) == plain  # in evaluation nothing is made again


@pytest.mark.parametrize(
    ("shapes", "regions", "nodes", "expected"),
    [
        ([(600, 1000)] * 3, [1, 1, 1], 0, [[0], [1], [2]]),
        ([(300, 1000)] * 5, [2] * 5, 0, [[0, 1], [2, 3], [4]]),
        ([(2000, 2000), (30, 40), (30, 40)], [1, 1, 1], 0, [[0], [1, 2]]),
        ([(30, 40), (40, 30), (30, 40), (40, 30)], [1, 2, 3, 4], 0, [[0, 2], [1, 3]]),
        ([(30, 40)] * 5, [CHUNK - 9, 9, 1, CHUNK + 1, 0], 0, [[0, 1], [2], [3], [4]]),
        ([(30, 40)] * 3, [0, 0, 0], NODES // 2, [[0, 1], [2]]),
        ([(30, 40)] * 2, [1, 1], 2 * NODES, [[0], [1]]),
    ],
    ids=["of-the-papers-size", "half-of-it", "larger", "two-sizes", "regions", "classes", "many-classes"],
)
def test_images_that_are_made_again_together(shapes, regions, nodes, expected):
    assert PIXELS == 600 * 1000
    assert together(shapes, regions, nodes) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_images_are_made_again_together(variant, monkeypatch):
    """Through the ConvNet and the memories with the same sums, but in another order, as one by one."""
    model, batch = build(variant).double().train(), mixed(dtype=torch.float64)
    expected = gradients(model, compute(model, batch)[0].total)
    model.set_grad_checkpointing(True)
    sizes = []
    model.backbone.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    for pixels, groups in ((PIXELS, [3, 2, 1]), (2 * 64 * 80, [2, 2, 1, 1]), (1, [1] * 6)):
        monkeypatch.setattr("irnet.models.irnet.PIXELS", pixels)
        sizes.clear()
        loss, found = compute(model, batch)
        assert sizes == groups
        assert_same(tensors(found), tensors(model.eval()(batch)), 1e-12)
        for name, gradient in gradients(model.train(), loss.total).items():
            assert (gradient is None) == (expected[name] is None), name
            if gradient is not None:
                torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    assert nodes_of(model.config, CLASSES) == (CLASSES if variant in ("global", "full") else 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulating_gradients_over_images_is_the_batch(variant):
    model, batch = build(variant).double(), mixed(dtype=torch.float64)
    expected = gradients(model, compute(model, batch)[0].total)
    model.zero_grad()
    for part in batch.split(3):
        (compute(model, part)[0].total / 3).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


# construction


@pytest.mark.parametrize(
    ("variant", "parts", "inputs"),
    [("conv", (), 0), ("local", ("local",), 1), ("global", ("graph",), 1), ("full", ("local", "graph"), 2)],
)
def test_variants_have_the_modules_they_should(variant, parts, inputs):
    model = build(variant)
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "classifier", *parts}
    for part in parts:
        assert getattr(model, part).map_logits.weight.shape[1] == inputs * CLASSES
    assert [getattr(model, part) is None for part in ("local", "graph")] == [p not in parts for p in ("local", "graph")]


def test_a_class_graph_is_needed_by_the_global_module_only():
    for variant in ("conv", "local"):
        assert build(variant, graph=False)(mixed()).final.shape == (10, CLASSES)
    for variant in ("global", "full"):
        with pytest.raises(ValueError, match=f"'{variant}' needs a class graph"):
            build(variant, graph=False)


def test_word_vectors_take_the_place_of_learned_class_features():
    vectors = torch.randn(CLASSES, 7, generator=torch.Generator().manual_seed(3))
    model, batch = build("full", word_vectors=vectors), mixed()
    names = dict(model.named_parameters())
    assert "graph.class_features" not in names and "graph.word_vectors" not in names
    assert torch.equal(model.state_dict()["graph.word_vectors"], vectors)
    assert names["graph.class_projection.weight"].shape == (8, 7)
    found = gradients(model, compute(model, batch)[0].total)
    assert found["graph.class_projection.weight"].any()
    with torch.no_grad():
        before = model(batch).logits[GLOBAL_1]
        model.graph.word_vectors.add_(1)
        assert (model(batch).logits[GLOBAL_1] - before).abs().max() > 1e-4
    assert "graph.class_features" in dict(build("full").named_parameters())


def test_one_gate_or_one_per_channel():
    assert build("local").local.gru["update_x"].shape[0] == 1
    model = build("local", gate_channels=0)
    assert model.local.gru["update_x"].shape[0] == 6
    loss, _ = compute(model, mixed())
    assert all(g.any() for name, g in gradients(model, loss.total).items() if "gru" in name)


def test_the_classifier_starts_as_the_authors():
    torch.manual_seed(0)
    model = IRNet(ModelConfig(variant="conv", backbone="small", backbone_channels=64), 50)
    weight = model.classifier.weight
    assert abs(weight.std().item() / 0.01 - 1) < 5 / math.sqrt(2 * weight.numel()) and not model.classifier.bias.any()


def test_a_fresh_model_learns():
    """A few steps on one image with the model's own initial weights make the loss smaller."""
    torch.manual_seed(0)
    config = ModelConfig(variant="full", backbone="small", backbone_channels=8, memory_channels=8, hidden=16)
    config.graph_channels, config.iterations = 8, 2
    model, batch = IRNet(config, CLASSES, class_graph()), make_batch([(48, 48)], [3])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    history = []
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = compute(model, batch)
        loss.total.backward()
        optimizer.step()
        history.append(loss.total.item())
    assert history[-1] < 0.9 * history[0]


# number formats


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_and_float32_agree(variant):
    model, batch = build(variant), mixed()
    with torch.no_grad():
        single = tensors(model(batch))
        batch.images = [image.double() for image in batch.images]
        double = tensors(model.double()(batch))
    assert {v.dtype for v in double.values()} == {torch.float64}
    assert_same({k: v.double() for k, v in single.items()}, double, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_is_as_good_as_bfloat16_can_be(variant):
    """Autocast keeps weights in float32, so it must not err more than the same model wholly in bfloat16 does."""
    batch = mixed()
    exact, low = mixed(dtype=torch.float64), mixed()
    exact.images, low.images = [i.double() for i in batch.images], [i.bfloat16() for i in batch.images]
    with torch.no_grad():
        truth = tensors(build(variant).double()(exact))
        rounded = tensors(build(variant).bfloat16()(low))
    model = build(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
        loss = losses.compute(found, batch.labels, batch.ptr, LossConfig())
    for name, value in tensors(found).items():
        rms = lambda t: (t.double() - truth[name]).square().mean().sqrt().item()  # noqa: B023, E731
        # 2^-8 of the value is one rounding of the result itself; 2: two draws of the same error are compared
        floor = 2**-8 * truth[name].abs().max().item()
        assert rms(value) <= 2 * rms(rounded[name]) + floor, name
    assert loss.total.dtype == torch.float32
    assert all(
        p.grad is None or (p.grad.isfinite().all() and p.grad.dtype == torch.float32) for p in model.parameters()
    )
    found = gradients(model, loss.total)
    assert all(g is not None and g.isfinite().all() and g.any() for g in found.values())


@pytest.mark.parametrize("variant", ["conv", "local", "global", "full"])
def test_an_exported_roll_out_takes_any_number_of_regions(variant):
    model = build(variant)
    regions = torch.export.Dim("regions")

    class RollOut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, features, boxes, ptr):
            return self.model.reason(features, boxes, ptr).final

    def arguments(*counts):
        batch = make_batch([(48, 64)] * len(counts), counts)
        return model.backbone(torch.stack(batch.images)), batch.boxes, batch.ptr

    with torch.no_grad():
        shapes = (None, {0: regions}, None)
        program = torch.export.export(RollOut(), arguments(3, 4), dynamic_shapes=shapes).module()
        for counts in ((3, 4), (1, 2), (20, 30)):
            given = arguments(*counts)
            assert torch.equal(program(*given), model.reason(*given).final)


# --------------------------------------------------------------------------------------------------------- autocast


def kept(forward) -> dict[tuple, int]:
    """Bytes of distinct memory that `forward` keeps for its backward pass, by the shape of what is in it."""
    seen, sizes = {}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor  # holds it: its address is not used again
            sizes[tuple(tensor.shape)] = sizes.get(tuple(tensor.shape), 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sizes


def test_autocast_casts_weights_once_a_roll_out():
    """Whatever the number of iterations, as many bytes of weights are kept."""
    channels = 64  # of nothing but weights

    def weights(iterations: int) -> dict[tuple, int]:
        changes = {"memory_channels": channels, "gate_channels": 0, "graph_channels": channels, "hidden": 48}
        model = build("full", iterations=iterations, **changes).train()
        batch = make_batch([(64, 48)], [3])
        with torch.autocast("cpu", torch.bfloat16):
            found = kept(lambda: model(batch).final)
            kernels = {shape: size for shape, size in found.items() if shape[-3:] == (channels, 3, 3)}
            edges = {shape: size for shape, size in found.items() if len(shape) == 3 and shape[-2:] == (channels,) * 2}
        assert kernels and edges
        return kernels | edges

    assert weights(3) == weights(2) == weights(5)


def test_autocast_keeps_only_patches_of_a_further_step():
    """Of 505,472 bytes that a further step of conv_gru once kept, 442,752 were weights."""
    module = build("local", memory_channels=64, gate_channels=0, patch_size=7).local
    x, state = torch.randn(2, 2, 64, 7, 7)

    def steps(count: int) -> int:
        def forward():
            with torch.autocast("cpu", torch.bfloat16):
                gru, h = module.weights().gru, state
                for _ in range(count):
                    h = h + conv_gru(x, h, gru)
            return h

        return sum(kept(forward).values())

    assert 0 < steps(3) - steps(2) <= 62_720
    assert steps(5) - steps(4) == steps(3) - steps(2)
