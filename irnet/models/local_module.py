"""The local module: a spatial memory that all regions of an image read and write. Knows nothing of images or losses."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irnet_kernels import ConvGRUWeights, conv_gru, crop_resize, paste_mean
from irnet_kernels.convolution import Conv3x3
from irnet_kernels.numerics import autocast

from ..config import ModelConfig
from .regions import Regions
from .shared_linear import SharedWeight, share, shared_linear


class LocalWeights(NamedTuple):
    """The weights that write and read the memory, which are cast once for all roll-outs of a batch."""

    gru: ConvGRUWeights
    read: tuple[SharedWeight, SharedWeight]


class LocalState(NamedTuple):
    """The spatial memory, and what writes and reads it."""

    memory: Tensor  # [B, D, H, W]
    weights: LocalWeights


class LocalModule(nn.Module):
    """Memory [B, D, H, W] on the feature map's cells; `logits_in` predictions of C classes are written into it.

    Results of layers are changed in place where no layer's gradient needs them: fewer passes, fewer maps at once.
    Forward hooks on the layers see them before that; full backward hooks on them are refused by PyTorch. `read1` and
    `read2` hold weights that all reads of a roll-out share (shared_linear.py); hooks on them are not called.
    """

    def __init__(self, config: ModelConfig, features: int, classes: int, logits_in: int):
        super().__init__()
        d, p, gate = config.memory_channels, config.patch_size, config.gate_channels or config.memory_channels
        self.patch_size = p
        self.initial = nn.Parameter(torch.zeros(1, d, config.memory_size, config.memory_size))
        # write
        self.map_patch = nn.Conv2d(features, d, 1)
        self.map_logits = nn.Linear(logits_in * classes, d, bias=False)
        self.input = Conv3x3(d, d)
        shapes = ConvGRUWeights(
            new_x=(d, d, 3, 3),
            new_h=(d, d, 3, 3),
            reset_x=(gate, d, 3, 3),
            reset_h=(gate, d, 3, 3),
            update_x=(gate, d, 3, 3),
            update_h=(gate, d, 3, 3),
            new_bias=(d,),
            reset_bias=(gate,),
            update_bias=(gate,),
        )
        self.gru = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes._asdict().items()})
        # read
        self.context = nn.ModuleList(Conv3x3(d, d) for _ in range(3))
        self.read1 = nn.Linear(p * p * d, config.hidden)
        self.read2 = nn.Linear(config.hidden, config.hidden)
        self.classifier = nn.Linear(config.hidden, classes)
        self.confidence = nn.Linear(config.hidden, 1, bias=False) if config.attention == "learned" else None
        self._initialise()

    def weights(self) -> LocalWeights:
        """The weights of any number of roll-outs, in the dtype of their products."""
        gru = ConvGRUWeights(**dict(zip(self.gru, autocast(*self.gru.values()), strict=True)))
        return LocalWeights(gru, (share(self.read1), share(self.read2)))

    def start(self, features: Tensor, regions: Regions, weights: LocalWeights) -> LocalState:
        """The state before the first iteration; the memory has the size of the maps and is the same for every image."""
        images, _, height, width = features.shape
        return LocalState(resize_legacy(self.initial, height, width).expand(images, -1, -1, -1), weights)

    def first_read(self, state: LocalState, regions: Regions) -> Tensor:
        """What the ConvNet's prediction is judged by: what each region reads in the memory before any write."""
        return self.read(state, regions)

    def read(self, state: LocalState, regions: Regions) -> Tensor:
        """What each region reads in the memory: [R, hidden]."""
        return self.look(state, self.contexts(state), regions)

    def contexts(self, state: LocalState) -> Tensor:
        """What stands in the memory, and around it: [B, D, H, W]."""
        first, second, third = self.context
        x = first(state.memory)
        return third(second(F.relu(x)).relu_()).add_(x)

    def look(self, state: LocalState, contexts: Tensor, regions: Regions) -> Tensor:
        """What each region reads in `contexts`: [R, hidden]."""
        x = crop_resize(contexts, regions.cells, regions.ptr, self.patch_size)
        x = x.permute(0, 2, 3, 1).flatten(1)  # row, column, channel: as the authors flatten
        for weight in state.weights.read:
            x = shared_linear(x, weight).relu_()
        return x

    def write(self, state: LocalState, regions: Regions) -> LocalState:
        """The state after every region has written its patch and its last predictions into the memory."""
        return self.paste(state, self.changes(state, regions), regions)

    def changes(self, state: LocalState, regions: Regions) -> Tensor:
        """By how much each region would change the memory under it: [R, D, P, P]."""
        said = self.map_logits(regions.logits.flatten(1))
        x = self.map_patch(regions.patches).add_(said[:, :, None, None]).relu_()
        x = self.input(x).relu_()
        before = crop_resize(state.memory, regions.cells, regions.ptr, self.patch_size)
        return conv_gru(x, before, state.weights.gru)

    def paste(self, state: LocalState, changes: Tensor, regions: Regions) -> LocalState:
        """The state after the changes of all regions of the images."""
        return state._replace(memory=paste_mean(state.memory, changes, regions.cells, regions.ptr))

    def _initialise(self) -> None:
        """As the authors: N(0, 0.01), but He for the context and input convolutions and the wide FC layers."""
        for module in [*self.context, self.input, self.read1, self.read2]:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        for module in filter(None, (self.map_patch, self.map_logits, self.classifier, self.confidence)):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, weight in self.gru.items():
            if not name.endswith("bias"):
                nn.init.normal_(weight, std=0.01)


def resize_legacy(x: Tensor, height: int, width: int) -> Tensor:
    """[B, C, h, w] -> [B, C, height, width] by TensorFlow 1's bilinear rule: source = destination * in / out."""
    rows, columns = (_legacy_weights(n_in, n_out, x) for n_in, n_out in zip(x.shape[2:], (height, width), strict=True))
    return torch.einsum("yh,bchw,xw->bcyx", rows, x, columns)


def _legacy_weights(n_in: int, n_out: int, like: Tensor) -> Tensor:
    """The [n_out, n_in] matrix of the legacy rule; positions past the last source cell read that cell."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # bfloat16 has no numbers between large cells
    source = (torch.arange(n_out, dtype=dtype, device=like.device) * (n_in / n_out)).clamp(max=n_in - 1)
    cells = torch.arange(n_in, dtype=dtype, device=like.device)
    return (1 - (source[:, None] - cells).abs()).clamp(min=0).to(like.dtype)
