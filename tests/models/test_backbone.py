"""Backbones: the receptive field as stated, torchvision's names, checkpoints good and bad, frozen parts."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from irnet.config import ModelConfig
from irnet.errors import InputError
from irnet.models.backbone import STRIDE, FrozenBatchNorm, ResNet, SmallBackbone, build, conv_norm, load_weights
from irnet.models.irnet import IRNet
from irnet.models.predictions import CONV
from irnet.scenes.layout import visible_region

TINY = (1, 1, 1, 1)


def expected_names(depths) -> dict[str, tuple[int, ...]]:
    """torchvision's state dict without fc.* and num_batches_tracked, by its rule."""
    names = {"conv1.weight": (64, 3, 7, 7)}
    norm = lambda prefix, c: {  # noqa: E731
        f"{prefix}.{part}": (c,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    names |= norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            prefix = f"layer{stage + 1}.{block}"
            for k, shape in enumerate([(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], 1):
                names[f"{prefix}.conv{k}.weight"] = shape
                names |= norm(f"{prefix}.bn{k}", shape[0])
            if block == 0:
                names[f"{prefix}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                names |= norm(f"{prefix}.downsample.1", 4 * width)
            inputs = 4 * width
    return names


def checkpoint(seed=0) -> dict[str, torch.Tensor]:
    """A torchvision-like state dict of the tiny ResNet, classifier and counters included."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.rand(shape, generator=generator) for name, shape in expected_names(TINY).items()}
    state |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in state if "_var" in name}
    return state | {"fc.weight": torch.rand(10, 2048), "fc.bias": torch.rand(10)}


def save(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


BOXES = [
    (40.0, 24.0, 70.0, 55.0),  # inside, between cells
    (48.0, 32.0, 80.0, 64.0),  # corners on cells exactly
    (0.0, 0.0, 20.0, 17.0),  # top left corner
    (100.0, 60.0, 139.0, 101.0),  # bottom right corner
    (33.0, 50.0, 34.0, 50.5),  # less than a cell
    (0.0, 40.0, 90.0, 47.0),  # wide
    (70.0, 0.0, 75.0, 101.0),  # as high as the image
]


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_the_small_backbone_sees_its_stated_region_and_no_more(box):
    torch.manual_seed(0)
    height, width = 101, 139
    model = IRNet(ModelConfig(variant="conv", backbone="small", backbone_channels=8), 3).double()
    for parameter in model.parameters():  # generic: no weight is small, few units are off
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    box_, ptr = torch.tensor([box]), torch.tensor([0, 1])
    seen = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(3):  # a unit that one image switches off, another switches on
        image = torch.rand(1, 3, height, width, dtype=torch.float64, requires_grad=True)
        logits = model.reason(model.backbone(image), box_, ptr).logits[CONV]
        (logits * torch.randn_like(logits)).sum().backward()
        seen |= (image.grad[0] != 0).any(0)
    region = visible_region(np.array([box]), (height, width), STRIDE, SmallBackbone.receptive_field)
    x1, y1, x2, y2 = region[0].tolist()
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    assert (columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1) == (x1, y1, x2, y2)


def test_a_cell_of_the_small_backbone_sees_31_pixels_around_its_centre():
    torch.manual_seed(0)
    model = SmallBackbone(8).double()
    for conv in model.stem:
        nn.init.constant_(conv.weight, 1.0)
    image = torch.rand(1, 3, 120, 90, dtype=torch.float64, requires_grad=True)
    model(image)[0, :, 3, 2].sum().backward()
    seen = (image.grad[0] != 0).any(0)
    expected = torch.zeros(120, 90, dtype=torch.bool)
    expected[48 - 15 : 48 + 16, 32 - 15 : 32 + 16] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (17, 100), (63, 65)])
@pytest.mark.parametrize("model", [SmallBackbone(8), ResNet(TINY)], ids=["small", "resnet"])
def test_the_stride_is_16_for_any_size(model, size):
    with torch.no_grad():
        features = model(torch.zeros(2, 3, *size))
    assert features.shape == (2, model.channels, -(-size[0] // STRIDE), -(-size[1] // STRIDE))


def test_widths():
    small = SmallBackbone(24)
    assert (small.channels, small.feature_channels) == (24, 48)
    with torch.no_grad():
        assert small.head(torch.zeros(3, 24, 7, 7)).shape == (3, 48)
        assert ResNet(TINY).head(torch.zeros(3, 1024, 7, 7)).shape == (3, 2048)
        assert ResNet(TINY).head(torch.zeros(0, 1024, 7, 7)).shape == (0, 2048)


@pytest.mark.parametrize(
    ("name", "depths", "count"), [("resnet50", (3, 4, 6, 3), 265), ("resnet101", (3, 4, 23, 3), 520)]
)
def test_names_and_shapes_are_torchvisions(name, depths, count):
    with torch.device("meta"):
        model = build(ModelConfig(backbone=name))
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == expected_names(depths)
    assert len(found) == count


def test_strides():
    model = ResNet((2, 2, 2, 2))
    strided = {name: m.stride for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}
    names = ["conv1", *(f"layer{stage}.0.{conv}" for stage in (2, 3) for conv in ("conv2", "downsample.0"))]
    assert strided == dict.fromkeys(names, (2, 2))  # none in block 4, which therefore keeps the patch's size
    shapes = []
    model.layer4.register_forward_hook(lambda *args: shapes.append(args[2].shape))
    with torch.no_grad():
        model.head(torch.zeros(1, 1024, 7, 7))
    assert shapes == [(1, 2048, 7, 7)]


def test_the_stem_and_block_1_are_frozen_and_the_rest_learns():
    torch.manual_seed(0)
    model = ResNet(TINY).train()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.rand(1, 3, 40, 40, requires_grad=True)
    model.head(model(image)[:, :, :3, :3]).sum().backward()
    assert image.grad is None  # nothing of the frozen part is kept for a backward pass
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == learning
    assert all(p.grad.any() for p in model.parameters() if p.grad is not None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no statistics move
    assert not [name for name, _ in model.named_parameters() if "bn" in name or "downsample.1" in name]


def test_a_convolution_with_its_norm_folded_in_is_batch_norm_in_evaluation():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False).double()
    theirs, ours = nn.BatchNorm2d(6).double().eval(), FrozenBatchNorm(6).double()
    state = {k: torch.rand(6, dtype=torch.float64) + 0.1 for k in ("weight", "bias", "running_mean", "running_var")}
    state["running_var"][0] = 1e-6  # where eps matters
    theirs.load_state_dict(state, strict=False)
    ours.load_state_dict(state)
    x = torch.randn(3, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    found, wanted = conv_norm(conv, ours.train(), x), theirs(conv(x))
    torch.testing.assert_close(found, wanted)
    for one, two in zip(
        *(torch.autograd.grad(y.square().sum(), [x, conv.weight]) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, two)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_norm(conv.float(), ours.float(), x.float()).dtype == torch.bfloat16


def test_a_bottleneck_is_torchvisions():
    """One whole forward pass written out with torch's functions and a checkpoint's tensors."""
    state = {name: value.double() * 0.1 + 0.01 for name, value in checkpoint().items()}
    model = ResNet(TINY).double()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    f = nn.functional
    conv = lambda name, x, **kw: f.conv2d(x, state[f"{name}.weight"], **kw)  # noqa: E731

    def norm(name, x):
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def block(name, x, stride):
        out = norm(f"{name}.bn1", conv(f"{name}.conv1", x)).relu()
        out = norm(f"{name}.bn2", conv(f"{name}.conv2", out, stride=stride, padding=1)).relu()
        out = norm(f"{name}.bn3", conv(f"{name}.conv3", out))
        return (out + norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride=stride))).relu()

    image = torch.randn(1, 3, 37, 50, dtype=torch.float64)
    x = f.max_pool2d(norm("bn1", conv("conv1", image, stride=2, padding=3)).relu(), 3, stride=2, padding=1)
    x = block("layer3.0", block("layer2.0", block("layer1.0", x, 1), 2), 2)
    with torch.no_grad():
        torch.testing.assert_close(model(image), x)
        torch.testing.assert_close(model.head(x), block("layer4.0", x, 1).mean((2, 3)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_load(suffix, tmp_path):
    state, model = checkpoint(), ResNet(TINY)
    load_weights(model, save(tmp_path / f"resnet{suffix}", state))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_training_checkpoints_load(key, tmp_path):
    state, model = checkpoint(), ResNet(TINY)
    load_weights(model, save(tmp_path / "resnet.pth", {"epoch": 3, key: state}))
    assert torch.equal(model.layer4[0].conv3.weight, state["layer4.0.conv3.weight"])


def test_the_config_names_a_checkpoint(tmp_path):
    source = SmallBackbone(8)
    path = save(tmp_path / "small.safetensors", source.state_dict())
    model = build(ModelConfig(backbone="small", backbone_channels=8, backbone_weights=str(path)))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


BAD = {
    "missing-key": (lambda s: s.pop("layer2.0.conv1.weight"), "1 keys missing (first: layer2.0.conv1.weight)"),
    "unknown-key": (lambda s: s.update({"layer5.weight": torch.ones(1)}), "1 keys unknown (first: layer5.weight)"),
    "shape": (lambda s: s.update({"bn1.bias": torch.ones(63)}), "1 shapes differ (first: bn1.bias)"),
    "deeper": (
        lambda s: s.update(
            {k.replace("layer1.0", "layer1.1"): v.clone() for k, v in s.items() if k.startswith("layer1.0.conv")}
        ),
        "3 keys unknown (first: layer1.1.conv",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_checkpoint_that_does_not_fit_is_named_with_its_first_key(change, message, suffix, tmp_path):
    state, model = checkpoint(), ResNet(TINY)
    change(state)
    before = model.conv1.weight.clone()
    path = save(tmp_path / f"resnet{suffix}", state)
    with pytest.raises(InputError) as error:
        load_weights(model, path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    assert torch.equal(model.conv1.weight, before)  # nothing was loaded halfway


@pytest.mark.parametrize(
    "content", [[1, 2], 3, {}, {"state_dict": 5}, {1: torch.ones(2)}, {"conv1.weight": "x"}], ids=str
)
def test_a_pickle_of_something_else_does_not_fit(content, tmp_path):
    path = save(tmp_path / "other.pth", content)
    with pytest.raises(
        InputError, match=r"other\.pth: does not fit this backbone: .*keys missing \(first: conv1.weight\)"
    ):
        load_weights(ResNet(TINY), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_and_missing_files(suffix, tmp_path):
    path = tmp_path / f"resnet{suffix}"
    with pytest.raises(InputError, match="no such file"):
        load_weights(ResNet(TINY), path)
    save(path, {"conv1.weight": torch.rand(64, 3, 7, 7)})
    whole = path.read_bytes()
    contents = [
        b"",
        b"x",
        b"not a checkpoint\n" * 9,
        whole[: len(whole) // 2],
        whole[:30],
        b"\x80\x02(." * 3,
        b"(dS'a'\n",
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a checkpoint") as error:
            load_weights(ResNet(TINY), path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(ResNet(TINY), tmp_path)


class Malicious:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("format", ["torch", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_unexecuted(format, tmp_path):
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    state = checkpoint() | {"conv1.weight": Malicious(target)}
    if format == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == "torch")
    with pytest.raises(InputError, match=r"evil\.pth: cannot be read"):
        load_weights(ResNet(TINY), path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))  # malicious indeed
    assert target.exists()
