"""The definition of conv_gru and its gradient in plain PyTorch: six 3x3 convolutions and the passes between.

r.h, which is multiplied by weights of the inputs' dtype, is rounded to that dtype; all else is rounded at the end.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..numerics import empty_map, opmath_dtype


def conv_gru(inputs: Tensor, state: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(u.(n - h), n, r, u): the change of the state, and what the gradient needs beyond the inputs."""
    dtype = opmath_dtype(inputs.dtype)
    x, h = inputs.to(dtype), state.to(dtype)
    new_x, new_h, reset_x, reset_h, update_x, update_h, new_bias, reset_bias, update_bias = (
        w.to(dtype) for w in weights
    )
    r = (conv2d(x, reset_x, reset_bias, padding=1) + conv2d(h, reset_h, padding=1)).sigmoid()
    u = (conv2d(x, update_x, update_bias, padding=1) + conv2d(h, update_h, padding=1)).sigmoid()
    reset_state = (r * h).to(inputs.dtype).to(dtype)
    n = (conv2d(x, new_x, new_bias, padding=1) + conv2d(reset_state, new_h, padding=1)).relu()
    change, new, reset, update = (empty_map(inputs, t.shape).copy_(t) for t in (u * (n - h), n, r, u))
    return change, new, reset, update


def conv_gru_backward(
    grad: Tensor, inputs: Tensor, state: Tensor, weights: list[Tensor], new: Tensor, reset: Tensor, update: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients to inputs, state and the nine weights, in their order."""
    dtype = opmath_dtype(grad.dtype)
    g, x, h, n, r, u = (t.to(dtype) for t in (grad, inputs, state, new, reset, update))
    new_x, new_h, reset_x, reset_h, update_x, update_h, *_ = (w.to(dtype) for w in weights)

    pre_n = g * u * (n > 0)
    d_rh, d_new_h, _ = _conv_gradient(pre_n, (r * h).to(inputs.dtype).to(dtype), new_h)
    pre_r = (d_rh * h).sum_to_size(r.shape) * r * (1 - r)
    pre_u = (g * (n - h)).sum_to_size(u.shape) * u * (1 - u)
    dx_n, d_new_x, d_new_bias = _conv_gradient(pre_n, x, new_x)
    dx_r, d_reset_x, d_reset_bias = _conv_gradient(pre_r, x, reset_x)
    dx_u, d_update_x, d_update_bias = _conv_gradient(pre_u, x, update_x)
    dh_r, d_reset_h, _ = _conv_gradient(pre_r, h, reset_h)
    dh_u, d_update_h, _ = _conv_gradient(pre_u, h, update_h)

    d_inputs = empty_map(inputs, inputs.shape).copy_(dx_n + dx_r + dx_u)
    d_state = empty_map(state, state.shape).copy_(d_rh * r + dh_r + dh_u - g * u)
    d_weights = (
        d_new_x,
        d_new_h,
        d_reset_x,
        d_reset_h,
        d_update_x,
        d_update_h,
        d_new_bias,
        d_reset_bias,
        d_update_bias,
    )
    return d_inputs, d_state, [torch.empty_like(w).copy_(d) for d, w in zip(d_weights, weights, strict=True)]


def _conv_gradient(grad: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a padded 3x3 convolution to its input, weight and bias."""
    bias = [weight.shape[0]]
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, inputs, weight, bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    return gradients
