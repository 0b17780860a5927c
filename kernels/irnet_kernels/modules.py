"""The operators as nn.Modules, with their settings and weights. They add no mathematics of their own."""

import math

import torch
from torch import Tensor, nn

from .boxes import Boxes
from .graph import REGION_TYPES, EdgeSet, propagate, propagate_regions
from .gru import ConvGRUWeights, conv_gru
from .roi import crop_resize, paste_mean


class CropResize(nn.Module):
    """`crop_resize` with its settings: a patch of every region, sampled from its image's feature map.

    Args:
        size: Samples per side, at least 1.
        border: What a sample outside the map is: "zero", or "clamp" for the nearest border sample.
        spatial_scale: Cells per unit of the boxes: 1 / stride for boxes in pixels.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".
    """

    def __init__(self, size: int = 7, *, border: str = "zero", spatial_scale: float = 1.0, impl: str = "auto"):
        super().__init__()
        self.size, self.border, self.spatial_scale, self.impl = size, border, spatial_scale, impl

    def forward(self, features: Tensor, boxes: Boxes, ptr: Tensor | None = None) -> Tensor:
        """features [B, C, H, W] -> [R, C, size, size]; arguments and errors are those of `crop_resize`."""
        return crop_resize(
            features, boxes, ptr, self.size, border=self.border, spatial_scale=self.spatial_scale, impl=self.impl
        )

    def extra_repr(self) -> str:
        return f"size={self.size}, border={self.border!r}, spatial_scale={self.spatial_scale}, impl={self.impl!r}"


class PasteMean(nn.Module):
    """`paste_mean` with its settings: to every cell of a memory the mean of the patches over it is added.

    Args:
        spatial_scale: Cells per unit of the boxes: 1 / stride for boxes in pixels.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".
    """

    def __init__(self, *, spatial_scale: float = 1.0, impl: str = "auto"):
        super().__init__()
        self.spatial_scale, self.impl = spatial_scale, impl

    def forward(self, memory: Tensor, patches: Tensor, boxes: Boxes, ptr: Tensor | None = None) -> Tensor:
        """memory [B, C, H, W], patches [R, C, P, P] -> like memory; the rest as in `paste_mean`."""
        return paste_mean(memory, patches, boxes, ptr, spatial_scale=self.spatial_scale, impl=self.impl)

    def extra_repr(self) -> str:
        return f"spatial_scale={self.spatial_scale}, impl={self.impl!r}"


class ConvGRUCell(nn.Module):
    """`conv_gru` with its weights, which are parameters named as in `ConvGRUWeights`.

    They start as in the authors' code: kernels from N(0, 0.01), biases at zero.

    Args:
        channels: C of inputs and state.
        gate_channels: Channels of the gates, 1 or C.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Raises:
        ValueError: The gates have neither 1 nor C channels.
    """

    def __init__(self, channels: int, gate_channels: int = 1, *, impl: str = "auto"):
        super().__init__()
        if gate_channels not in (1, channels):
            raise ValueError(f"gate_channels must be 1 or {channels}, got {gate_channels}")
        self.channels, self.gate_channels, self.impl = channels, gate_channels, impl
        for name in ConvGRUWeights._fields:
            outputs = channels if name.startswith("new") else gate_channels
            shape = (outputs,) if name.endswith("bias") else (outputs, channels, 3, 3)
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels and set the biases to zero."""
        for name, weight in self.weights()._asdict().items():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=0.01)

    def weights(self) -> ConvGRUWeights:
        """The parameters as `conv_gru` takes them."""
        return ConvGRUWeights(*(getattr(self, name) for name in ConvGRUWeights._fields))

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """inputs and state [R, C, P, P] -> the change of the state, u.(n - h): the new state is `state` plus that."""
        return conv_gru(inputs, state, self.weights(), impl=self.impl)

    def extra_repr(self) -> str:
        return f"{self.channels}, gate_channels={self.gate_channels}, impl={self.impl!r}"


class RegionGraphConv(nn.Module):
    """`propagate_regions` with its weights: messages between the regions of each image, over edges from their boxes.

    The parameter `weight` [5, in_features, out_features] starts uniform, as He et al. (2015) for the sum of all types.

    Args:
        in_features: D_in.
        out_features: D_out.
        bandwidth: Pixels over which the influence of a region falls to 1/e, above 0.
        learn_geometry: Learn the bandwidth, as the parameter `log_bandwidth` [], which starts at the logarithm of
            `bandwidth`, and one factor for every edge type, as the parameter `scale` [5], which starts at 1.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bandwidth: float = 50.0,
        learn_geometry: bool = False,
        *,
        impl: str = "auto",
    ):
        super().__init__()
        self.in_features, self.out_features, self.bandwidth, self.impl = in_features, out_features, bandwidth, impl
        self.weight = nn.Parameter(torch.empty(len(REGION_TYPES), in_features, out_features))
        self.log_bandwidth = nn.Parameter(torch.empty(())) if learn_geometry else None
        self.scale = nn.Parameter(torch.empty(len(REGION_TYPES))) if learn_geometry else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights; put bandwidth and scale, where they are learned, back to where they start."""
        stacked_uniform(self.weight)
        if self.scale is not None and self.log_bandwidth is not None:
            nn.init.constant_(self.log_bandwidth, math.log(self.bandwidth))
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor, boxes: Boxes, ptr: Tensor | None = None) -> Tensor:
        """x [R, D_in] -> [R, D_out]; boxes, ptr and errors are those of `propagate_regions`."""
        bandwidth = self.bandwidth if self.log_bandwidth is None else self.log_bandwidth.exp()
        return propagate_regions(x, boxes, ptr, self.weight, bandwidth=bandwidth, scale=self.scale, impl=self.impl)

    def extra_repr(self) -> str:
        learned = self.scale is not None
        sizes = f"{self.in_features}, {self.out_features}"
        return f"{sizes}, bandwidth={self.bandwidth}, learn_geometry={learned}, impl={self.impl!r}"


class ClassGraphConv(nn.Module):
    """`propagate` with its weights: messages over the edges of a typed graph, which every call is given.

    The parameter `weight` [num_types, in_features, out_features] starts uniform, as He et al. (2015) for the sum of all
    types.

    Args:
        in_features: D_in.
        out_features: D_out.
        num_types: T, the edge types of the graphs.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".
    """

    def __init__(self, in_features: int, out_features: int, num_types: int, *, impl: str = "auto"):
        super().__init__()
        self.in_features, self.out_features, self.num_types, self.impl = in_features, out_features, num_types, impl
        self.weight = nn.Parameter(torch.empty(num_types, in_features, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights."""
        stacked_uniform(self.weight)

    def forward(self, x: Tensor, edges: EdgeSet) -> Tensor:
        """x [N, D_in] or [B, N, D_in] -> [N, D_out] or [B, N, D_out]; arguments and errors are those of `propagate`."""
        return propagate(x, edges, self.weight, impl=self.impl)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, num_types={self.num_types}, impl={self.impl!r}"


def stacked_uniform(weight: Tensor) -> Tensor:
    """He's uniform initialisation, in place, of stacked weights [T, D_in, D_out], whose products are added up."""
    bound = math.sqrt(6 / max(1, weight.shape[0] * weight.shape[1]))
    return nn.init.uniform_(weight, -bound, bound)
