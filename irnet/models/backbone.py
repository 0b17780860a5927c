"""ConvNets from image to feature map to region feature. No reasoning happens here.

A backbone has two parts: `forward` makes the map (stride 16) of whole images, `head` one vector of each patch that was
cropped from it. Neither lets images of a batch, or distant pixels, see each other: no batch statistics.
"""

import itertools
import pickle
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from irnet_kernels.convolution import conv3x3

from ..config import ModelConfig
from ..errors import InputError
from .weights import find_weights

STRIDE = 16
# What torch.load raises for damaged files.
_DAMAGE = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, EOFError),
    *(struct.error, pickle.UnpicklingError),
)


def build(config: ModelConfig) -> nn.Module:
    """The backbone that `config` names, with its weights loaded where a file is given."""
    if config.backbone == "small":
        model = SmallBackbone(config.backbone_channels)
    else:
        model = ResNet({"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[config.backbone])
    if config.backbone_weights:
        load_weights(model, find_weights(config.backbone_weights))
    return model


class SmallBackbone(nn.Module):
    """Four strided 3x3 convolutions for CPUs: stride 16, receptive field 31 pixels. Patches get one more."""

    receptive_field = 31

    def __init__(self, channels: int = 64):
        super().__init__()
        widths = (3, channels // 2, channels, channels, channels)
        self.stem = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.patch = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        for conv in [*self.stem, self.patch]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.channels, self.feature_channels = channels, 2 * channels

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, channels, ceil(H / 16), ceil(W / 16)]."""
        x = images
        for conv in self.stem:
            x = F.relu(conv(x))
        return x

    def head(self, patches: Tensor) -> Tensor:
        """[R, channels, P, P] -> [R, feature_channels]."""
        return F.relu(self.patch(patches)).mean((2, 3))


class ResNet(nn.Module):
    """ResNet-50 or -101 with frozen batch-norm, under torchvision's and timm's parameter names.

    Blocks 1 to 3 make the map; block 4, at stride 1, works on patches, as in the authors' code. The stem and block 1
    are frozen.
    """

    channels, feature_channels = 1024, 2048

    def __init__(self, depths: tuple[int, int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(64)
        self.layer1 = _stage(64, 64, depths[0], 1)
        self.layer2 = _stage(256, 128, depths[1], 2)
        self.layer3 = _stage(512, 256, depths[2], 2)
        self.layer4 = _stage(1024, 512, depths[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in (self.conv1, self.layer1):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1024, ceil(H / 16), ceil(W / 16)]."""
        with torch.no_grad():
            x = conv_norm(self.conv1, self.bn1, images.contiguous(memory_format=torch.channels_last)).relu_()
            x = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        return self.layer3(self.layer2(x))

    def head(self, patches: Tensor) -> Tensor:
        """[R, 1024, P, P] -> [R, 2048]."""
        return self.layer4(patches).mean((2, 3))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the stride sits in the 3x3, as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = FrozenBatchNorm(4 * width)
        self.bn3.weight.fill_(0.5)  # without a checkpoint: keeps the scale of features from growing with depth
        self.downsample = None
        if inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = conv_norm(self.conv1, self.bn1, x).relu_()
        out = conv_norm(self.conv2, self.bn2, out).relu_()
        out = conv_norm(self.conv3, self.bn3, out)
        return out.add_(x if self.downsample is None else conv_norm(*self.downsample, x)).relu_()


class FrozenBatchNorm(nn.Module):
    """Batch-norm with fixed statistics and affine terms, which `conv_norm` folds into the convolution before it."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and addend of every channel, [channels] each."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale


def conv_norm(conv: nn.Conv2d, norm: FrozenBatchNorm, x: Tensor) -> Tensor:
    """The convolution and the batch-norm behind it in one pass over the map: the norm's terms go into the weights."""
    scale, shift = norm.affine()
    weight = conv.weight * scale[:, None, None, None]
    if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
        return conv3x3(x, weight, shift)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a torchvision or timm ResNet checkpoint (.safetensors, or .pth read as plain tensors only).

    The classifier's fc.* and the num_batches_tracked counters are left out; every other key must fit. InputError names
    the file and the first keys that do not.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "give a checkpoint file, or leave backbone_weights empty") from error
    except (*_DAMAGE, SafetensorError) as error:
        trouble = f"cannot be read as a checkpoint ({' '.join(str(error).split())[:200]})"
        raise InputError(path, trouble, "give a torchvision or timm state dict (.pth or .safetensors)") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {str(key): value for key, value in state.items()} if isinstance(state, dict) else {}
    state = {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    misfits = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or misfits:
        trouble = "; ".join(
            f"{len(keys)} {what} (first: {keys[0]})"
            for what, keys in (("keys missing", missing), ("keys unknown", unknown), ("shapes differ", misfits))
            if keys
        )
        raise InputError(path, f"does not fit this backbone: {trouble}", "give the checkpoint of the named ResNet")
    model.load_state_dict(state)


def _stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [Bottleneck(inputs, width, stride)]
    blocks += [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
