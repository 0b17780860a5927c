"""A linear layer that a roll-out applies several times, whose weight's gradient is made once.

Autograd would make the gradient of the weight at every use, and add them up. For the wide layers of the local module
these are products of few rows, which are bound by the memory that they write, and every one is as large as the weight.
Who can do without the gradient itself, takes what it is the product of: see `taken_by`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from irnet_kernels.numerics import autocast

ENOUGH = 512  # rows for which a matrix product is bound by arithmetic, and need not wait for more


class Taker(Protocol):
    """Takes the gradient [O, I] of a shared weight in parts."""

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Take a part, the product of the transposed outputs' gradient [R, O] and inputs [R, I]."""

    def finish(self) -> None:
        """There are no more parts in this backward pass."""


_taker_of: Callable[[Tensor], Taker | None] = lambda weight: None  # noqa: E731


@contextlib.contextmanager
def taken_by(taker_of: Callable[[Tensor], Taker | None]) -> Iterator[None]:
    """Within it, roll-outs hand the gradients of shared weights to what `taker_of` gives for the parameter, if it does.

    Backward passes then leave no gradient at the parameter, whose hooks are called all the same.
    """
    global _taker_of
    before, _taker_of = _taker_of, taker_of
    try:
        yield
    finally:
        _taker_of = before


class _Gradient:
    """The gradient [O, I] of a shared weight in one backward pass."""

    def __init__(self, taker: Taker | None) -> None:
        self.taker = taker
        self.product: Tensor | None = None
        self.rows: list[tuple[Tensor, Tensor]] = []  # of the outputs' gradient [R, O] and the inputs [R, I] of uses

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add what one use gives, which is kept until there are rows enough."""
        self.rows.append((outputs, inputs))
        if sum(len(some) for some, _ in self.rows) >= ENOUGH:
            self.total()

    def total(self) -> Tensor | None:
        """Multiply the rows that are kept; returns the gradient of all uses so far, None without any and if taken."""
        if self.rows:
            outputs, inputs = (
                torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self.rows, strict=True)
            )
            self.rows.clear()
            if self.taker is not None:
                self.taker.add(outputs, inputs)
            elif self.product is None:
                self.product = outputs.T @ inputs
            else:
                self.product.addmm_(outputs.T, inputs)
        return self.product


class _Gradients(dict[int, _Gradient]):
    """The gradient of each backward pass by the id of its graph task; several passes may go through one graph."""

    def __init__(self, taker: Taker | None) -> None:
        super().__init__()
        self.taker = taker


class SharedWeight(NamedTuple):
    """The weight and bias of an nn.Linear, cast once for a roll-out, and what backward passes make of its uses."""

    weight: Tensor  # [O, I]
    bias: Tensor  # [O]
    gradients: _Gradients | None  # None: autograd makes the weight's gradient as it does anywhere


def share(layer: nn.Linear) -> SharedWeight:
    """The weights of `layer` for any number of `shared_linear` calls of one roll-out."""
    weight, bias = autocast(layer.weight, layer.bias)
    if not (weight.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return SharedWeight(weight, bias, None)
    gradients = _Gradients(_taker_of(layer.weight))
    return SharedWeight(_Shared.apply(weight, gradients), bias, gradients)


def shared_linear(x: Tensor, shared: SharedWeight) -> Tensor:
    """F.linear(x, weight, bias) for x [R, I] -> [R, O]; the weight's gradient comes when all uses have had theirs."""
    if shared.gradients is None or torch.compiler.is_compiling():
        return F.linear(x, shared.weight, shared.bias)
    return _Use.apply(*autocast(x), *shared)


class _Shared(torch.autograd.Function):
    """The weight itself. Its backward runs behind those of all uses, and hands on what they have left."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradients: _Gradients) -> Tensor:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        accumulated = ctx.gradients.pop(torch._C._current_graph_task_id(), None)
        total = accumulated.total() if accumulated is not None else None
        if accumulated is not None and accumulated.taker is not None:
            accumulated.taker.finish()
        if grad is None or total is None:
            return (total if grad is None else grad), None
        return grad + total, None


class _Use(torch.autograd.Function):
    """One use of a shared weight, whose gradient it leaves to `_Shared`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gradients: _Gradients) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradients = gradients
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            this = torch._C._current_graph_task_id()
            if this not in ctx.gradients:
                ctx.gradients.clear()  # of an earlier backward pass that did not go as far as the weight
                ctx.gradients[this] = _Gradient(ctx.gradients.taker)
            ctx.gradients[this].add(grad, x.detach())
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, grad.sum(0) if ctx.needs_input_grad[2] else None, None
