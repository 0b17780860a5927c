"""The arithmetic of irnet's operators, by formulas: two for each product of a matrix product or of a convolution.

PyTorch counts its own operators (torch.utils.flop_counter), but for addmm_, and knows nothing of others. As there,
sums, means and functions of single elements count nothing. The formulas take the shapes of the arguments.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import convolution  # noqa: F401  # which irnet_kernels itself does not import: it defines operators

Shape = Sequence[int]


def _addmm(own: Shape, first: Shape, second: Shape, **_: Any) -> int:
    return 2 * first[0] * first[1] * second[1]


def _conv3x3(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    maps, channels, height, width = x
    return 2 * maps * height * width * 9 * channels * weight[0]


def _conv3x3_backward(grad: Shape, x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _conv3x3(x, weight)  # of one gradient, to x or to the weight


def _conv_gru(inputs: Shape, state: Shape, weights: Sequence[Shape], **_: Any) -> int:
    regions, channels, height, width = inputs
    gates = weights[2][0]  # of reset_x
    return 2 * regions * height * width * 9 * channels * (2 * channels + 4 * gates)


def _conv_gru_backward(grad: Shape, inputs: Shape, state: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _conv_gru(inputs, state, weights)


def _propagate(x: Shape, edges: Sequence[Shape], weight: Shape, **_: Any) -> int:
    types, inputs, outputs = weight
    return 2 * x[0] * x[1] * types * inputs * outputs


def _propagate_backward(grad: Shape, x: Shape, edges: Sequence[Shape], weight: Shape, **_: Any) -> int:
    return 2 * _propagate(x, edges, weight)


def _propagate_regions(x: Shape, boxes: Shape, ptr: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    types, inputs, outputs = weight
    return 2 * x[0] * types * inputs * outputs


def _propagate_regions_backward(grad: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    return 2 * _propagate_regions(x, *rest)


def _segment(inputs: Shape, other: Shape, ptr: Shape, **_: Any) -> int:
    return 2 * inputs[0] * inputs[1] * other[-1]


FORMULAS = {
    torch.ops.aten.addmm_: _addmm,
    torch.ops.irnet.conv3x3: _conv3x3,
    torch.ops.irnet.conv3x3_backward: _conv3x3_backward,
    torch.ops.irnet.conv_gru: _conv_gru,
    torch.ops.irnet.conv_gru_backward: _conv_gru_backward,
    torch.ops.irnet.propagate: _propagate,
    torch.ops.irnet.propagate_backward: _propagate_backward,
    torch.ops.irnet.propagate_regions: _propagate_regions,
    torch.ops.irnet.propagate_regions_backward: _propagate_regions_backward,
    torch.ops.irnet.segment_matmul: _segment,
    torch.ops.irnet.segment_outer: _segment,
}
