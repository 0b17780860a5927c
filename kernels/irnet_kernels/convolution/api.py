"""conv3x3: schema, function, layer, fake and gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import dispatch
from ..numerics import autocasting, empty_map
from . import reference
from .workspace import CHANNELS


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) for kernels of 3x3.

    On a CPU, in float32, the C++ implementation takes Winograd's products where they are faster, which is decided by
    shapes alone (`fewer_products` of csrc/bindings/convolution.cpp). Deterministic, whatever the number of threads.

    Args:
        x: [B, C, H, W]; channels_last is the fast layout.
        weight: [D, C, 3, 3].
        bias: [D] or None.
        impl: "auto", or one of "cpp", "reference". "auto" is PyTorch's convolution where Winograd's products never
            serve: on GPUs, under autocast, in other dtypes, for narrow layers and without the extension.

    Returns:
        [B, D, H, W]; differentiable any number of times in all arguments.
    """
    if impl == "auto" and not _may_pay(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    chosen = dispatch.choose("conv3x3", impl, x.device.type)
    out: Tensor = dispatch.overload("conv3x3", chosen)(x, weight, bias)
    return out


def _may_pay(x: Tensor, weight: Tensor) -> bool:
    """Numbers of maps and cells, which an exported program takes any of, are looked at when it runs."""
    floats = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not autocasting("cpu")
    return floats and min(weight.shape[:2]) >= CHANNELS and dispatch.preferred("conv3x3", "cpu") == "cpp"


class Conv3x3(nn.Conv2d):
    """nn.Conv2d(inputs, outputs, 3, padding=1) by `conv3x3`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, D, H, W]."""
        return conv3x3(x, self.weight, self.bias)


def _save(ctx: dispatch.Context, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradient(op: dispatch.Operators, ctx: dispatch.Context, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        op("conv3x3_backward")(grad, x, weight, False) if of_x else None,
        op("conv3x3_backward")(grad, x, weight, True) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


def _save_backward(ctx: dispatch.Context, inputs: tuple[Any, ...], output: Any) -> None:
    grad, x, weight, ctx.of_weight = inputs
    ctx.save_for_backward(grad, x, weight)


def _second_gradient(op: dispatch.Operators, ctx: dispatch.Context, grad: Tensor) -> tuple[Any, ...]:
    """Either gradient is linear in the one that it is made of, and in the weight or x."""
    first, x, weight = ctx.saved_tensors
    if ctx.of_weight:
        return op("conv3x3")(x, grad, None), op("conv3x3_backward")(first, x, grad, False), None, None
    return op("conv3x3")(grad, weight, None), None, op("conv3x3_backward")(first, grad, weight, True), None


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return empty_map(x, (x.shape[0], weight.shape[0], *x.shape[2:]))


dispatch.define(
    "conv3x3",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    reference=reference.conv3x3,
    fake=_fake,
    backward=_gradient,
    save=_save,
    public=False,
)
dispatch.define(
    "conv3x3_backward",
    "(Tensor grad, Tensor x, Tensor weight, bool of_weight) -> Tensor",
    reference=reference.conv3x3_backward,
    fake=lambda grad, x, weight, of_weight: empty_map(x, (weight if of_weight else x).shape),
    backward=_second_gradient,
    save=_save_backward,
    public=False,
)
