"""The local module against a slow reading of its formulas, one region and one cell at a time, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from irnet.config import ModelConfig
from irnet.models.local_module import LocalModule, LocalState, resize_legacy
from irnet.models.regions import Regions

CLASSES, FEATURES, LOGITS_IN = 5, 6, 2


def build(gate=1, seed=0, **changes) -> LocalModule:
    torch.manual_seed(seed)
    config = ModelConfig(memory_channels=4, memory_size=3, patch_size=5, hidden=8, gate_channels=gate, **changes)
    module = LocalModule(config, FEATURES, CLASSES, LOGITS_IN).double()
    for parameter in module.parameters():  # generic weights: no zero biases, no zero memory
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def slow_resize(x, height, width):
    """TensorFlow 1's legacy bilinear rule, cell by cell."""
    _, channels, h, w = x.shape
    out = torch.zeros(len(x), channels, height, width, dtype=x.dtype)
    for v in range(height):
        for u in range(width):
            y, z = v * h / height, u * w / width
            y0, x0 = int(y), int(z)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = y - y0, z - x0
            top = x[..., y0, x0] * (1 - dx) + x[..., y0, x1] * dx
            bottom = x[..., y1, x0] * (1 - dx) + x[..., y1, x1] * dx
            out[..., v, u] = top * (1 - dy) + bottom * dy
    return out


def bilinear(image, y, x):
    """image [C, H, W] at one point; zero outside."""
    _, height, width = image.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return torch.zeros(len(image), dtype=image.dtype)
    y0, x0 = math.floor(y), math.floor(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    return (
        image[:, y0, x0] * (1 - dy) * (1 - dx)
        + image[:, y0, x1] * (1 - dy) * dx
        + image[:, y1, x0] * dy * (1 - dx)
        + image[:, y1, x1] * dy * dx
    )


def slow_crop(image, box, size):
    x1, y1, x2, y2 = box.tolist()
    points = [
        [(y1 + i * (y2 - y1) / (size - 1), x1 + j * (x2 - x1) / (size - 1)) for j in range(size)] for i in range(size)
    ]
    return torch.stack([torch.stack([bilinear(image, *p) for p in row], 1) for row in points], 1)


def slow_read(m, memory, cells, image):
    conv = lambda layer, x: F.conv2d(x[None], layer.weight, layer.bias, padding=1)[0]  # noqa: E731
    found = []
    for r, box in enumerate(cells):
        first = conv(m.context[0], memory[image[r]])
        x = first + conv(m.context[2], conv(m.context[1], first.relu()).relu())
        patch = slow_crop(x, box, m.patch_size)
        flat = torch.stack([patch[c, i, j] for i in range(5) for j in range(5) for c in range(4)])
        hidden = (m.read1.weight @ flat + m.read1.bias).relu()
        found.append((m.read2.weight @ hidden + m.read2.bias).relu())
    return torch.stack(found)


def slow_write(m, memory, patches, logits, cells, image):
    size, out = m.patch_size, memory.clone()
    changes = []
    for r, box in enumerate(cells):
        x = torch.einsum("of,fpq->opq", m.map_patch.weight[:, :, 0, 0], patches[r]) + m.map_patch.bias[:, None, None]
        x = (x + (m.map_logits.weight @ logits[r])[:, None, None]).relu()
        x = F.conv2d(x[None], m.input.weight, m.input.bias, padding=1).relu()
        h = slow_crop(memory[image[r]], box, size)[None]
        g = m.gru
        both = lambda kind, h: (  # noqa: E731
            F.conv2d(x, g[f"{kind}_x"], g[f"{kind}_bias"], padding=1) + F.conv2d(h, g[f"{kind}_h"], padding=1)  # noqa: B023
        )
        reset, update = both("reset", h).sigmoid(), both("update", h).sigmoid()
        new = both("new", reset * h).relu()
        changes.append((update * (new - h))[0])
    for b in range(len(memory)):
        for v in range(memory.shape[2]):
            for u in range(memory.shape[3]):
                covering = []
                for r, (x1, y1, x2, y2) in enumerate(cells.tolist()):
                    y, x = (v - y1) / (y2 - y1) * (size - 1), (u - x1) / (x2 - x1) * (size - 1)
                    if image[r] == b and 0 <= y <= size - 1 and 0 <= x <= size - 1:
                        covering.append(bilinear(changes[r], y, x))
                if covering:
                    out[b, :, v, u] += sum(covering) / len(covering)
    return out


def scene():
    torch.manual_seed(1)
    cells = torch.tensor([[0.3, 0.2, 3.7, 2.9], [1.1, 1.4, 4.2, 4.6], [2.2, 0.1, 7.5, 6.5], [0.4, 0.7, 1.3, 1.6]])
    ptr, image = torch.tensor([0, 2, 2, 4]), [0, 0, 2, 2]  # the middle image has no regions
    memory = torch.randn(3, 4, 6, 7, dtype=torch.float64)
    patches = torch.randn(4, FEATURES, 5, 5, dtype=torch.float64)
    logits = torch.randn(4, LOGITS_IN * CLASSES, dtype=torch.float64)
    return memory, patches, logits, cells, ptr, image


def regions_of(patches, logits, cells, ptr) -> Regions:
    return Regions(cells * 16, cells, ptr, patches, None, logits.unflatten(1, (LOGITS_IN, CLASSES)))


def read(module, memory, cells, ptr):
    return module.read(LocalState(memory, module.weights()), Regions(None, cells, ptr, None, None, None))


def write(module, memory, *regions):
    return module.write(LocalState(memory, module.weights()), regions_of(*regions)).memory


def start(module, images, height, width):
    return module.start(torch.empty(images, FEATURES, height, width), Regions(*[None] * 6), None).memory


def test_read_is_the_slow_reading():
    memory, _, _, cells, ptr, image = scene()
    module = build()
    # cells are float32 and meant exactly, so only float64 rounding is left
    torch.testing.assert_close(read(module, memory, cells, ptr), slow_read(module, memory, cells.double(), image))


@pytest.mark.parametrize("gate", [1, 0], ids=["one-gate", "channel-gates"])
def test_write_is_the_slow_reading(gate):
    memory, patches, logits, cells, ptr, image = scene()
    module = build(gate)
    assert module.gru["reset_x"].shape[0] == (gate or 4)
    written = write(module, memory, patches, logits, cells, ptr)
    torch.testing.assert_close(written, slow_write(module, memory, patches, logits, cells.double(), image))
    assert torch.equal(written[1], memory[1])  # nobody writes there
    assert not torch.equal(written[0], memory[0])


def test_every_weight_matters_to_what_is_read_after_writing():
    memory, patches, logits, cells, ptr, _ = scene()
    for gate in (1, 0):
        module = build(gate)
        found = read(module, write(module, start(module, 3, 6, 7) + memory, patches, logits, cells, ptr), cells, ptr)
        (module.classifier(found).sin().sum() + module.confidence(found).sin().sum()).backward()
        assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("source", [(3, 3), (20, 20), (1, 1), (2, 5)])
@pytest.mark.parametrize("target", [(6, 7), (38, 25), (3, 3), (1, 1), (1, 9)])
def test_resize_legacy_is_tensorflows_rule(source, target):
    x = torch.randn(2, 3, *source, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_legacy(x, *target), slow_resize(x, *target))


def test_resize_legacy_by_hand():
    x = torch.tensor([[[[0.0, 4.0]]]])
    assert resize_legacy(x, 1, 4).flatten().tolist() == [0, 2, 4, 4]  # source 0, 0.5, 1, 1.5: no half-pixel shift
    assert resize_legacy(x, 2, 2).tolist() == [[[[0, 4], [0, 4]]]]


def test_the_memory_starts_alike_for_all_images():
    module = build()
    memory = start(module, 3, 5, 8)
    assert memory.shape == (3, 4, 5, 8)
    assert torch.equal(memory[0], memory[2]) and torch.equal(memory[:1], resize_legacy(module.initial, 5, 8))


def test_regions_of_other_images_change_nothing():
    memory, patches, logits, cells, ptr, _ = scene()
    module = build()
    together = write(module, memory, patches, logits, cells, ptr)
    alone = write(module, memory[2:], patches[2:], logits[2:], cells[2:], torch.tensor([0, 2]))
    torch.testing.assert_close(together[2:], alone)
    torch.testing.assert_close(
        read(module, together, cells, ptr)[2:], read(module, alone, cells[2:], torch.tensor([0, 2]))
    )


def test_no_regions():
    module = build()
    memory, ptr = start(module, 2, 5, 4), torch.zeros(3, dtype=torch.int64)
    empty = torch.zeros(0, 4)
    written = write(
        module,
        memory,
        torch.zeros(0, FEATURES, 5, 5).double(),
        torch.zeros(0, LOGITS_IN * CLASSES).double(),
        empty,
        ptr,
    )
    assert torch.equal(written, memory)
    assert read(module, memory, empty, ptr).shape == (0, 8)


def test_initial_weights_are_the_authors():
    torch.manual_seed(0)
    config = ModelConfig(memory_channels=48, memory_size=5, patch_size=3, hidden=96)
    module = LocalModule(config, 64, 40, 2)
    weights = dict(module.named_parameters())
    fixed = ["map_patch", "map_logits", "classifier", "confidence"]
    expected = {f"{name}.weight": 0.01 for name in fixed} | {
        f"gru.{kind}_{side}": 0.01 for kind in ("new", "reset", "update") for side in "xh"
    }
    he = ["context.0", "context.1", "context.2", "input", "read1", "read2"]
    expected |= {f"{name}.weight": math.sqrt(2 / weights[f"{name}.weight"][0].numel()) for name in he}
    for name, std in expected.items():
        n = weights[name].numel()
        # the deviation of n normal numbers is off by std / sqrt(2 n); five times that is out of reach of chance
        assert abs(weights[name].std().item() / std - 1) < 5 / math.sqrt(2 * n), name
        assert abs(weights[name].mean().item()) < 5 * std / math.sqrt(n), name
    zero = {name for name, weight in weights.items() if not weight.any()}
    assert zero == set(weights) - set(expected)
    assert all(name.endswith("bias") or name == "initial" for name in zero)
    assert module.map_logits.bias is None and module.confidence.bias is None
