"""A linear layer that a roll-out applies several times, whose weight's gradient is one matrix product over all of them.

Autograd would make the gradient of the weight at every use, and add them up. For the wide layers of the local module
these are products of few rows, which are bound by the memory that they write, and every one is as large as the weight.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from irnet_kernels.numerics import autocast

# Rows of the outputs' gradient [R, O] and of the inputs [R, I] of every use, by the backward pass that met them.
_Rows = dict[int, list[tuple[Tensor, Tensor]]]


class SharedWeight(NamedTuple):
    """The weight and bias of an nn.Linear, cast once for a roll-out; `rows` belongs to the backward pass."""

    weight: Tensor  # [O, I]
    bias: Tensor  # [O]
    rows: _Rows


def share(layer: nn.Linear) -> SharedWeight:
    """The weights of `layer` for any number of `shared_linear` calls of one roll-out."""
    weight, bias = autocast(layer.weight, layer.bias)
    rows: _Rows = {}
    if weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        weight = _Shared.apply(weight, rows)
    return SharedWeight(weight, bias, rows)


def shared_linear(x: Tensor, shared: SharedWeight) -> Tensor:
    """F.linear(x, weight, bias) for x [R, I] -> [R, O]; the weight's gradient comes when all uses have had theirs."""
    if shared.weight.grad_fn is None or torch.compiler.is_compiling():
        return F.linear(x, shared.weight, shared.bias)
    return _Use.apply(x.to(shared.weight.dtype), *shared)


class _Shared(torch.autograd.Function):
    """The weight itself. Its backward runs behind those of all uses, and multiplies their rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: _Rows) -> Tensor:
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        met = ctx.rows.pop(torch._C._current_graph_task_id(), [])
        if met:
            outputs, inputs = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*met, strict=True))
            product = outputs.T @ inputs
            grad = product if grad is None else grad + product
        return grad, None


class _Use(torch.autograd.Function):
    """One use of a shared weight, whose gradient it leaves to `_Shared`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.rows.setdefault(torch._C._current_graph_task_id(), []).append((grad, x.detach()))
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, grad.sum(0) if ctx.needs_input_grad[2] else None, None
