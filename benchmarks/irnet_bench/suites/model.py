"""Cases of the model suite, and what they share with the training suite's. Measures nothing.

Heights and widths are in cells of 16 pixels. A 16-bit dtype means autocast, as in training: the inputs stay float32.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

import irnet_kernels
from irnet.config import Config, ModelConfig, validate
from irnet.data.sample import Batch
from irnet.engine.build import compile_parts
from irnet.models.backbone import STRIDE
from irnet.models.irnet import IRNet
from irnet.models.predictions import Predictions
from irnet_kernels import EdgeSet, dispatch

from .. import peers
from ..case import Implementation, Setup, Work, case
from ..machine import variable

CPU = {"images": 4, "regions": 16, "height": 12, "width": 16, "channels": 64, "hidden": 256}
CPU |= {"classes": 80, "patch": 7, "iterations": 2}
PAPER = {"images": 8, "regions": 64, "height": 38, "width": 63, "channels": 512, "hidden": 4096}
PAPER |= {"classes": 80, "patch": 7, "iterations": 3}
TINY = {"images": 2, "regions": 4, "height": 5, "width": 6, "channels": 8, "hidden": 12}
TINY |= {"classes": 6, "patch": 3, "iterations": 2}
ON_MAPS = {"cpu": CPU | {"features": 64}, "cuda": PAPER | {"features": 1024}, "gate": TINY | {"features": 6}}
# resnet: 50 or 101 layers; 0 is the small backbone
ON_IMAGES = {"cpu": CPU | {"resnet": 0}, "cuda": PAPER | {"resnet": 50}, "gate": TINY | {"resnet": 0}}


@case("model", **ON_MAPS)
def reason_local(setup: Setup) -> Work:
    """The roll-out of the local module on feature maps, without a backbone: all predictions and confidences."""
    return roll_out(setup, "local")


@case("model", **ON_MAPS)
def reason_global(setup: Setup) -> Work:
    """The roll-out of the global module on feature maps, without a backbone: all predictions and confidences."""
    return roll_out(setup, "global")


@case("model", **ON_MAPS)
def reason_full(setup: Setup) -> Work:
    """The roll-out of both modules on feature maps, without a backbone: all predictions and confidences."""
    return roll_out(setup, "full")


@case("model", **ON_IMAGES)
def forward_full(setup: Setup) -> Work:
    """The backbone and both modules on images: all predictions and confidences."""
    model, batch = build(setup, "full"), random_batch(setup)

    def compute(model: IRNet) -> Tensor:
        part = in_dtype_of(model, batch)
        low = autocast_dtype(setup, model)
        with torch.autocast(setup.device.type, low, enabled=low is not None):
            return everything(model(part))

    ways = implement(setup, model, compute)
    return Work(weights(model), ways, items=setup.images, unit="images", slack=slack(setup))


def roll_out(setup: Setup, variant: str) -> Work:
    """A case of `IRNet.reason`."""
    model, batch = build(setup, variant, Given(setup.features)), random_batch(setup)
    features = in_float32(setup).normal(setup.images, setup.features, setup.height, setup.width)

    def compute(model: IRNet, features: Tensor) -> Tensor:
        low = autocast_dtype(setup, model)
        with torch.autocast(setup.device.type, low, enabled=low is not None):
            maps = features.to(low or features.dtype)  # in autocast's dtype, as a backbone hands them over
            return everything(model.reason(maps, batch.boxes, batch.ptr))

    inputs = [features, *weights(model)]
    return Work(inputs, implement(setup, model, compute), items=len(batch.boxes), unit="regions", slack=slack(setup))


class Given(nn.Module):
    """In the place of a backbone where the feature maps are given; a patch's feature is its mean."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.feature_channels = channels

    def head(self, patches: Tensor) -> Tensor:
        return patches.mean((2, 3))


def everything(predictions: Predictions) -> Tensor:
    """[R, K (C + 1)]: all predictions and confidences. Unlike `final`, which is detached, they reach every weight."""
    return torch.cat([*predictions.logits.values(), predictions.confidences.T], 1)


# ------------------------------------------------------------------------------------------------------------- set-up


def build(setup: Setup, variant: str, trunk: nn.Module | None = None) -> IRNet:
    """A model of the case's sizes with generic weights: zero memories and tiny classifiers would hide mistakes."""
    config = ModelConfig(
        variant=variant,
        backbone=f"resnet{setup.resnet}" if trunk is None and setup.resnet else "small",
        iterations=setup.iterations,
        patch_size=setup.patch,
        memory_channels=setup.channels,
        hidden=setup.hidden,
        graph_channels=setup.channels,
    )
    validate(Config(config), "the case's shape")
    gpus = [setup.device] if setup.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(setup.seed)
        class_graph = random_class_graph(setup.classes)
        with setup.device:  # 100 million weights are drawn in no time on a GPU, in seconds on a CPU
            model = IRNet(config, setup.classes, class_graph, trunk=trunk)
        for name, weight in model.named_parameters():
            if not name.startswith("backbone"):
                fan_in = weight[0].numel() if weight.dim() > 1 else 4
                nn.init.normal_(weight, std=math.sqrt(1.5 / fan_in))
    return model.to(setup.device)


def random_class_graph(classes: int) -> EdgeSet:
    """Two relations in which a class receives from sixteen others, or all there are."""
    relations = []
    for _ in range(2):
        src = torch.rand(classes, classes).argsort(1)[:, :16]
        dst = torch.arange(classes)[:, None].expand_as(src)
        relations.append((src.flatten(), dst.flatten(), torch.rand(src.numel())))
    return EdgeSet.from_edges(relations, classes, normalize=True)


def random_batch(setup: Setup) -> Batch:
    """Images of one size with their regions and labels.

    The boxes lie on a grid of two pixels: then no sample is so near a border that rounding decides on which side.
    """
    plain, ptr = in_float32(setup), setup.ragged(setup.images, setup.regions)
    height, width = setup.height * STRIDE, setup.width * STRIDE
    images = [plain.normal(3, height, width) for _ in range(setup.images)]
    boxes = (plain.boxes(int(ptr[-1]), height, width) / 2).round() * 2
    labels = torch.randint(0, setup.classes, (len(boxes),), generator=plain.generator).to(setup.device)
    return Batch(images, boxes, ptr, labels, [f"{i}.png" for i in range(setup.images)])


def slack(setup: Setup) -> float:
    """What gradients through ReLUs may be off by: rounding puts units near zero on the other side.

    It does so to a share of about eps of them, which changes a gradient by the root of that; and if to one alone, that
    is one of as many terms as the patches have cells. Twice that, for truth and implementation both round.
    """
    cells = setup.images * setup.regions * setup.patch**2
    return 2 * max(torch.finfo(setup.dtype).eps, 1 / max(cells, 1)) ** 0.5


def in_float32(setup: Setup) -> Setup:
    """The same set-up for inputs that stay float32, from the beginning of its random numbers."""
    return Setup(setup.shape, torch.float32, setup.device, setup.seed)


def in_dtype_of(model: IRNet, batch: Batch) -> Batch:
    """The batch with its images in the dtype of the weights, float32 or float64; boxes are float32 always."""
    return replace(batch, images=[image.to(model.classifier.weight.dtype) for image in batch.images])


def autocast_dtype(setup: Setup, model: IRNet) -> torch.dtype | None:
    """What autocast is on for in this case; None, off, in float32 and for the truth, whose weights are float64."""
    exact = model.classifier.weight.dtype == torch.float64
    return setup.dtype if setup.dtype.itemsize == 2 and not exact else None


# ---------------------------------------------------------------------------------------------------- implementations


def weights(model: IRNet) -> list[Tensor]:
    """The weights that are trained: inputs, in the order in which `bind` takes them."""
    return [p.detach() for p in model.parameters() if p.requires_grad]


def implement(setup: Setup, model: IRNet, compute: Callable[..., Tensor]) -> dict[str, Implementation]:
    """`compute(model, *inputs)` by the reference operators, by those irnet chooses, and with torch.compile."""
    call = bind(model, compute)

    def reference(*inputs: Tensor) -> Tensor:
        with variable("IRNET_IMPL", "reference"):  # what calls that leave it open take
            return call(*inputs)

    ways = {"reference": Implementation(reference)}
    if any(dispatch.choose(op, "auto", setup.device.type) != "reference" for op in irnet_kernels.available()):
        ways["auto"] = Implementation(call)

    def compiled() -> Callable[..., Tensor]:
        """As `irnet train --compile` does it."""
        copied = share(model)
        compile_parts(copied)
        return bind(copied, compute)

    ways["torch.compile"] = peers.compiled_by(compiled)
    return ways


def bind(model: IRNet, compute: Callable[..., Tensor], keep: bool = False) -> Callable[..., Tensor]:
    """`compute(model, *inputs)` as a function of the inputs and of the trained weights, float32 or float64.

    keep  leave the weights in the model after the call, for a backward pass that reads them again
    """
    module = _Computed(model, compute)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    own = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    fixed = {name: tensor.detach() for name, tensor in own.items() if name not in names}

    def call(*inputs: Tensor) -> Tensor:
        given, trained = inputs[: -len(names)], inputs[-len(names) :]
        # What is not trained follows in dtype, or it would round the truth.
        tensors = {name: t.to(trained[0].dtype) if t.is_floating_point() else t for name, t in fixed.items()}
        tensors |= dict(zip(names, trained, strict=True))
        if not keep:
            return functional_call(module, tensors, given)
        for name, tensor in tensors.items():
            path, _, key = name.rpartition(".")
            owner = module.get_submodule(path)
            (owner._parameters if key in owner._parameters else owner._buffers)[key] = tensor
        return module(*given)

    return call


class _Computed(nn.Module):
    """`compute(model, ...)` as a module, as functional_call wants it."""

    def __init__(self, model: IRNet, compute: Callable[..., Tensor]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(self.model, *inputs)


def share(model: IRNet) -> IRNet:
    """A copy with the same tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
