"""The definition of conv3x3 and its gradients: PyTorch's convolution."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..numerics import empty_map, opmath_dtype


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, C, H, W] convolved with weight [D, C, 3, 3], with zeros around the map."""
    dtype = opmath_dtype(x.dtype)
    out = conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), padding=1)
    return empty_map(x, out.shape).copy_(out)


def conv3x3_backward(grad: Tensor, x: Tensor, weight: Tensor, of_weight: bool) -> Tensor:
    """The gradient to x or to the weight."""
    dtype = opmath_dtype(x.dtype)
    one, output_mask = [1, 1], [not of_weight, of_weight, False]
    gradients = torch.ops.aten.convolution_backward(
        grad.to(dtype), x.to(dtype), weight.to(dtype), None, one, one, one, False, [0, 0], 1, output_mask
    )
    gradient = gradients[of_weight]
    return empty_map(x, gradient.shape).copy_(gradient)
